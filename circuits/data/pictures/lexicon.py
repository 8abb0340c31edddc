"""What captions say of gender, by whole words, in English and Arabic.

A word counts as it stands between word boundaries, so "woman" never counts as "man". An Arabic word is compared without vowel
signs and with one form of alef; where its entry says so, it may carry the clitics that are written onto a word (و ف ب ل ك and the
article ال). Words that are as often something else (طفل "child"; أم "or" beside "mother") are left out or need their article.
Grammatical gender (verbs, adjectives) is not the person's and is never read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

Gender = Literal["male", "female"]
Label = Literal["male", "female", "mixed", "unknown"]
LABELS: tuple[Label, ...] = ("male", "female", "mixed", "unknown")

ENGLISH: Mapping[Gender, str] = {
    "male": "man men boy boys gentleman gentlemen guy guys male males he him his himself father fathers dad dads son sons brother "
    "brothers husband husbands king prince grandfather uncle nephew businessman policeman fireman fisherman salesman workman",
    "female": "woman women girl girls lady ladies gal gals female females she her hers herself mother mothers mom moms daughter "
    "daughters sister sisters wife wives queen princess grandmother aunt niece businesswoman policewoman saleswoman "
    "waitress actress",
}
ARABIC: Mapping[Gender, str] = {
    "male": "رجل رجلا رجلين رجلان رجال ولد ولدا ولدين ولدان صبي صبيا صبيان فتى شاب شابا شبان والد اب ابن زوج شقيق سيد",
    "female": "امراة امراتين امراتان نساء بنت بنتا بنتين بنات فتاة فتاتين فتاتان فتيات "
    "سيدة سيدتين سيدات شابة شابات والدة ابنة زوجة شقيقة",
}
ARABIC_WITH_ARTICLE: Mapping[Gender, str] = {"male": "مرء", "female": "ام مراة"}
"""Stems of a person only with the article: الأم is the mother, أم is "or"; امرأة loses its alef in المرأة."""

_PROCLITICS = "(?:[وف])?(?:لل|[بلك]?(?:ال)?)"
_VOWELS = re.compile("[ً-ْٰـ]")
_ALEF = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي"})
_WORD = re.compile(r"\w+", re.UNICODE)


def words(text: str) -> list[str]:
    """The words of a text, lower case, Arabic in one spelling."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_VOWELS.sub("", plain).translate(_ALEF))


@lru_cache
def _pattern(language: str, gender: Gender) -> re.Pattern[str]:
    if language == "english":
        return re.compile("|".join(ENGLISH[gender].split()))
    stems = "|".join(sorted(ARABIC[gender].split(), key=len, reverse=True))
    article = "|".join(ARABIC_WITH_ARTICLE[gender].split())
    return re.compile(f"{_PROCLITICS}(?:{stems})" + (f"|(?:[وف])?(?:لل|[بك]?ال)(?:{article})" if article else ""))


def gendered(word: str, language: str) -> Gender | None:
    """What one word (as :func:`words` gives it) says of gender."""
    for gender in ("male", "female"):
        if _pattern(language, gender).fullmatch(word):  # type: ignore[arg-type]
            return gender  # type: ignore[return-value]
    return None


def counts(text: str, language: str) -> dict[Gender, int]:
    """Male and female words of a text."""
    found = Counter(gendered(word, language) for word in words(text))
    return {"male": found["male"], "female": found["female"]}


def label(text: str, language: str) -> Label:
    """What one caption says: of both is ``mixed``, of neither ``unknown``."""
    found = counts(text, language)
    if found["male"] and found["female"]:
        return "mixed"
    return "male" if found["male"] else "female" if found["female"] else "unknown"


def vote(labels: Iterable[Label]) -> Label:
    """What the captions of one picture say together: more than half of those that say something, else ``mixed``."""
    found = Counter(one for one in labels if one != "unknown")
    if not found:
        return "unknown"
    (most, n), total = found.most_common(1)[0], sum(found.values())
    return most if 2 * n > total else "mixed"


def together(by_language: Mapping[str, Label]) -> Label:
    """What both languages say: where they contradict each other ``mixed``; one that says nothing leaves it to the other."""
    said = {one for one in by_language.values() if one != "unknown"}
    return "unknown" if not said else said.pop() if len(said) == 1 else "mixed"


THEMES: Mapping[str, str] = {
    "appearance": "hair dress shirt hat suit glasses beard wearing wears looks smiling strong kind young old",
    "activity": "playing plays running runs holds holding walking cooking working reading standing sitting jumping",
    "setting": "street kitchen park beach office workshop garage salon station room field stadium garden",
    "people": "man woman boy girl people child children person group crowd",
}
"""Keywords of captions by theme, each a whole word."""


def themes(texts: Iterable[str]) -> dict[str, int]:
    """How many of these English captions have a word of each theme."""
    found = [set(words(text)) for text in texts]
    return {theme: sum(bool(one & set(listed.split())) for one in found) for theme, listed in THEMES.items()}
