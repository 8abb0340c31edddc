"""The rules every behaviour keeps: right answers, equal lengths, balance, no leak, no prompt on both sides of the split."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from circuits.data import mixture
from circuits.data.behaviours import BEHAVIOURS, Behaviour, Example, split
from circuits.data.behaviours.arithmetic import domain
from circuits.data.behaviours.base import WORD, unseen
from circuits.data.behaviours.cf import CAPITALS
from circuits.data.behaviours.facts import FIELDS
from circuits.data.behaviours.neg import CATEGORY

NAMES = {
    "grammar_agreement",
    "factual_recall",
    "facts",
    "cf",
    "neg",
    "logic",
    "sentiment_continuation",
    "arithmetic",
    "induction",
    "ioi",
}
DRAWS = 3000


def draws(behaviour: Behaviour, n: int = DRAWS, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [behaviour.draw(rng) for _ in range(n)]


def answer(name: str, prompt: str) -> str:
    """The right next word of `prompt`, worked out from its words alone and not from how it was generated."""
    words = WORD.findall(prompt)
    if name == "grammar_agreement":
        start = next(i for i, w in enumerate(words) if w.lower() == "the")
        past = words[0] in ("Yesterday", "Last")
        return (("was", "were") if past else ("is", "are"))[words[start + 1].endswith("s")]
    if name == "factual_recall":
        return next(CAPITALS[w] for w in words if w in CAPITALS)
    if name == "facts":
        return next(FIELDS[w] for w in words if w in FIELDS)
    if name == "cf":
        supposed, asked = (w for w in words if w in CAPITALS)
        return next(w for w in words if w in CAPITALS.values()) if supposed == asked else CAPITALS[asked]
    if name == "neg":
        noun = next(w for w in words if w in CATEGORY)
        return str((CATEGORY[noun] in words) != ("not" in words)).lower()
    if name == "logic":
        names = [w for w in words if w in BEHAVIOURS["ioi"].words and w[0].isupper() and w not in ("When", "Then")]
        greater = {(names[0], names[1]), (names[2], names[3])}
        greater |= {(a, d) for a, b in greater for c, d in greater if b == c}
        return "yes" if (names[4], names[5]) in greater else "no"
    if name == "arithmetic":
        return str(sum(int(w) for w in words if w.isdigit()))
    if name == "induction":
        return words[words.index(words[-1]) + 1]
    if name == "ioi":
        counts = Counter(w for w in words[1:] if w[0].isupper())
        return min(counts, key=lambda w: counts[w])
    pairs = {"felt": ("sad", "happy"), "was": ("negative", "positive"), "us": ("cry", "smile"), "hated": ()}
    pairs["All of us"] = ("hated", "loved")
    good = any(
        w in words
        for w in ["amazing", "brilliant", "delightful", "excellent", "great", "lovely", "superb", "wonderful"]
    )
    return pairs["All of us" if prompt.endswith("All of us") else words[-1]][good]


def test_the_ten_behaviours_are_found() -> None:
    assert set(BEHAVIOURS) == NAMES
    assert all(b.name == name for name, b in BEHAVIOURS.items())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_target_is_right_for_clean_and_foil_for_corrupt(name: str) -> None:
    for e in draws(BEHAVIOURS[name]):
        assert e.target == f" {answer(name, e.clean)}", e
        assert e.foil == f" {answer(name, e.corrupt)}", e
        assert e.target != e.foil


@pytest.mark.parametrize("name", sorted(NAMES))
def test_prompts_are_well_formed(name: str) -> None:
    behaviour = BEHAVIOURS[name]
    known = set(behaviour.words)
    for e in draws(behaviour):
        clean, corrupt = WORD.findall(e.clean), WORD.findall(e.corrupt)
        assert len(clean) == len(corrupt)
        assert len(WORD.findall(e.target)) == len(WORD.findall(e.foil)) == 1
        assert f" {clean[-1]}" != e.target, "the prompt ends with its answer"
        assert {*clean, *corrupt, e.target.strip(), e.foil.strip(), *WORD.findall(e.rest)} <= known
        assert e.group and e.factors


@pytest.mark.parametrize("name", sorted(NAMES))
def test_answers_are_balanced(name: str) -> None:
    """No constant answer does well: not one for all prompts, and not one per first or last word of the prompt."""
    examples = draws(BEHAVIOURS[name])
    targets = Counter(e.target for e in examples)
    limit = {"grammar_agreement": 0.35, "neg": 0.53, "logic": 0.53}.get(name, 0.2)
    assert max(targets.values()) / DRAWS < limit
    foils = Counter(e.foil for e in examples)
    assert max(abs(targets[t] - foils[t]) for t in targets) < 0.06 * DRAWS
    if name in ("neg", "logic"):
        for word in range(3):
            by_word = Counter((WORD.findall(e.clean)[word], e.target) for e in examples)
            for (w, t), n in by_word.items():
                total = n + by_word[w, next(x for x in targets if x != t)]
                assert n / total < 0.62 or total < 200


@pytest.mark.parametrize("name", ["induction", "ioi"])
def test_the_answer_is_at_no_fixed_place(name: str) -> None:
    places, distances = Counter[int](), Counter[int]()
    for e in draws(BEHAVIOURS[name]):
        words = WORD.findall(e.clean)
        place = words.index(e.target.strip())
        places[place] += 1
        distances[len(words) - place] += 1
    assert max(places.values()) < 0.55 * DRAWS and max(distances.values()) < 0.55 * DRAWS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_split_is_a_tenth_and_every_answer_is_trained_on(name: str) -> None:
    texts = {e.clean: e for e in draws(BEHAVIOURS[name])}
    held = [e for e in texts.values() if split(e) == "heldout"]
    assert 0.05 < len(held) / len(texts) < 0.15
    trained = {e.target for e in texts.values() if split(e) == "train"}
    assert {e.target for e in held} <= trained
    assert len({e.group for e in texts.values()}) >= 8 or name == "logic"


def test_every_sum_is_trained_on_in_some_wording() -> None:
    examples = list(domain())
    assert len(examples) == 400 and len({e.clean for e in examples}) == 400
    assert {int(e.target) for e in examples} == set(range(19))
    sums = [(e.clean, [int(w) for w in WORD.findall(e.clean) if w.isdigit()]) for e in examples if split(e) == "train"]
    assert len({tuple(s) for _, s in sums}) == 100


def test_the_two_relations_share_no_entity_and_no_answer() -> None:
    assert not {*CAPITALS, *CAPITALS.values()} & {*FIELDS, *FIELDS.values()}


def test_draws_depend_on_the_generator_alone() -> None:
    for behaviour in BEHAVIOURS.values():
        assert draws(behaviour, 50) == draws(behaviour, 50) != draws(behaviour, 50, seed=1)


def test_unseen_gives_different_heldout_texts() -> None:
    for behaviour in BEHAVIOURS.values():
        found = unseen(behaviour, np.random.default_rng(0), 30)
        assert len({e.clean for e in found}) == len(found) >= 30
        if behaviour.domain is None:
            assert {split(e) for e in found} == {"heldout"}


def test_the_mixture_is_random_access() -> None:
    blocks = [mixture.sentences(0, i, 20) for i in range(3)]
    assert mixture.sentences(0, 2, 20) == blocks[2]
    assert blocks[0] != blocks[1] != mixture.sentences(1, 1, 20)


def test_the_mixture_never_trains_on_heldout_prompts() -> None:
    def prompts(side: mixture.Split) -> set[str]:
        found = set()
        for s in mixture.sentences(0, 0, 8000, side):
            start, end = s.text.split(s.answer)[0], len(WORD.findall(s.text))
            assert WORD.findall(s.text)[s.place] == s.answer.strip() and s.place < end - 1 and start
            found.add(" ".join(WORD.findall(s.text)[: s.place]))
        return found

    train, heldout = prompts("train"), prompts("heldout")
    assert not train & heldout


def test_the_mixture_holds_all_behaviours_alike_or_by_share() -> None:
    counts = Counter(s.behaviour for s in mixture.sentences(0, 0, 8000))
    assert set(counts) == NAMES and min(counts.values()) > 650
    shares = {name: float(name == "ioi") for name in NAMES}
    assert {s.behaviour for s in mixture.sentences(0, 0, 100, shares=shares)} == {"ioi"}


def test_the_fingerprint_follows_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mixture.fingerprint()
    assert before == mixture.fingerprint()
    other = BEHAVIOURS["ioi"].draw
    changed = Behaviour("ioi", "", BEHAVIOURS["ioi"].words, lambda rng: other(rng)._replace(target=" Mary"))
    monkeypatch.setitem(BEHAVIOURS, "ioi", changed)
    assert mixture.fingerprint() != before
