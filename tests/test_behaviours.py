"""The rules every behaviour keeps: right answers, equal lengths, balance, no leak, no prompt on both sides of the split."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import prompt_sets
import pytest
from configs import compose
from prompt_sets import bpe

from circuits.data import behaviours
from circuits.data.behaviours import BEHAVIOURS, Behaviour, Example, embedded, split
from circuits.data.behaviours.arithmetic import domain
from circuits.data.behaviours.base import WORD, Wording, unseen
from circuits.data.behaviours.facts import FIELDS
from circuits.data.behaviours.factual_recall import CAPITALS, WORLD
from circuits.data.behaviours.ioi import MORE_NAMES
from circuits.data.behaviours.neg import CATEGORY, MORE_MEMBERS
from circuits.data.prompt_build import Wanted, from_behaviour
from circuits.data.prompt_tokens import Encoder
from circuits.store import places, registry
from circuits.store.kinds import ModelDims
from circuits.tiny import mixture

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


def draws(behaviour: Behaviour, n: int = DRAWS, seed: int = 0, wording: Wording = "embedded") -> list[Example]:
    rng, draw = np.random.default_rng(seed), behaviour.generator(wording)
    return [draw(rng) for _ in range(n)]


CATEGORIES = CATEGORY | {noun: category for category, nouns in MORE_MEMBERS.items() for noun in nouns}
GOOD = {"amazing", "brilliant", "delightful", "excellent", "great", "lovely", "superb", "wonderful"}
MOODS = {  # how a prompt ends: what follows a bad and a good thing
    "I felt": ("sad", "happy"),
    "My review was": ("negative", "positive"),
    "It made us": ("cry", "smile"),
    "All of us": ("hated", "loved"),
    "my impression was very": ("negative", "positive"),
    "Honestly, I": ("hated", "loved"),
    "It was one of the": ("worst", "best"),
}


def answer(name: str, prompt: str) -> str:
    """The right next word of `prompt`, worked out from its words alone and not from how it was generated."""
    words = WORD.findall(prompt)
    if name == "grammar_agreement":
        head = words[next(i for i, w in enumerate(words) if w in ("near", "behind", "beside", "above")) - 1]
        perfect = prompt.startswith(("For many years", "Since last week"))
        past = prompt.startswith(("Yesterday", "Last year", "This morning"))
        return (("has", "have") if perfect else ("was", "were") if past else ("is", "are"))[head.endswith("s")]
    if name == "factual_recall":
        return next(WORLD[w] for w in words if w in WORLD)
    if name == "facts":
        return next(FIELDS[w] for w in words if w in FIELDS)
    if name == "cf":
        supposed, asked = (w for w in words if w in WORLD)
        return next(w for w in words if w in WORLD.values()) if supposed == asked else WORLD[asked]
    if name == "neg":
        noun = next(w for w in words if w in CATEGORIES)
        return str((CATEGORIES[noun] in words) != ("not" in words)).lower()
    if name == "logic":
        names = [w for w in words if w in MORE_NAMES]
        greater = {(names[0], names[1]), (names[2], names[3])}
        greater |= {(a, d) for a, b in greater for c, d in greater if b == c}
        return "yes" if (names[4], names[5]) in greater else "no"
    if name == "arithmetic":
        return str(sum(int(w) for w in words if w.isdigit()))
    if name == "induction":
        return words[words.index(words[-1]) + 1]
    if name == "ioi":
        counts = Counter(w for w in words if w in MORE_NAMES)
        return min(counts, key=lambda w: counts[w])
    bad_or_good = next(answers for end, answers in MOODS.items() if prompt.endswith(end))
    return bad_or_good[bool(GOOD & set(words))]


WORDINGS: list[tuple[str, Wording]] = [
    *((name, wording) for name in sorted(NAMES) for wording in ("embedded", "natural")),
    *((name, "digits") for name in sorted(NAMES) if BEHAVIOURS[name].digits is not None),
]


def test_the_ten_behaviours_are_found() -> None:
    assert set(BEHAVIOURS) >= NAMES
    assert all(b.name == name for name, b in BEHAVIOURS.items())


@pytest.mark.parametrize(("name", "wording"), WORDINGS)
def test_target_is_right_for_clean_and_foil_for_corrupt(name: str, wording: Wording) -> None:
    capital = name == "logic" and wording == "natural"  # " Yes" after "Answer:"
    for e in draws(BEHAVIOURS[name], wording=wording):
        for prompt, given in ((e.clean, e.target), (e.corrupt, e.foil)):
            right = answer(name, prompt)
            assert given == ("" if wording == "digits" else " ") + (right.capitalize() if capital else right), e
            assert prompt.endswith(" ") == (wording == "digits") and not prompt.endswith("  ")
        assert e.target != e.foil


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_prompts_are_well_formed(name: str) -> None:
    well_formed(BEHAVIOURS[name])


def well_formed(behaviour: Behaviour) -> None:
    known = set(behaviour.words)
    for e in draws(behaviour):
        clean, corrupt = WORD.findall(e.clean), WORD.findall(e.corrupt)
        assert len(clean) == len(corrupt)
        assert len(WORD.findall(e.target)) == len(WORD.findall(e.foil)) == 1
        assert f" {clean[-1]}" != e.target, "the prompt ends with its answer"
        assert {*clean, *corrupt, e.target.strip(), e.foil.strip(), *WORD.findall(e.rest)} <= known
        assert e.group and e.factors


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_answers_are_balanced(name: str) -> None:
    balanced(BEHAVIOURS[name])


def balanced(behaviour: Behaviour) -> None:
    """No constant answer does well: not one for all prompts, and not one per first or last word of the prompt."""
    name, examples = behaviour.name, draws(behaviour)
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


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_the_split_is_a_tenth_and_every_answer_is_trained_on(name: str) -> None:
    split_by_text(BEHAVIOURS[name])


def split_by_text(behaviour: Behaviour) -> None:
    texts = {e.clean: e for e in draws(behaviour)}
    held = [e for e in texts.values() if split(e) == "heldout"]
    assert 0.05 < len(held) / len(texts) < 0.15
    trained = {e.target for e in texts.values() if split(e) == "train"}
    assert {e.target for e in held} <= trained
    assert len({e.group for e in texts.values()}) >= 8 or behaviour.name == "logic"


def test_the_documents_behaviour_is_one_file_that_keeps_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (places.CODE / "docs" / "behaviours.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    (tmp_path / "colours.py").write_text(code)
    monkeypatch.setattr(behaviours, "__path__", [*behaviours.__path__, str(tmp_path)])
    found = behaviours._find()
    monkeypatch.delitem(sys.modules, f"{behaviours.__name__}.colours")
    monkeypatch.delattr(behaviours, "colours")
    assert set(found) == {*BEHAVIOURS, "colours"}
    for rule in (well_formed, balanced, split_by_text):
        rule(found["colours"])
    monkeypatch.setitem(BEHAVIOURS, "colours", found["colours"])
    monkeypatch.setattr(prompt_sets, "texts", prompt_sets.texts.__wrapped__)
    tokenizer = bpe.__wrapped__()  # one that has seen its words, whichever tests ran before
    built = from_behaviour("colours", "natural", Encoder(tokenizer), Wanted(80, 20, 0, "keep"))
    assert built.metrics["n_train"] == 80 and built.metrics["n_test"] == 20 and built.lint["overlap"]["groups"] == 0


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
    assert blocks[0] != blocks[1] and blocks[1] != mixture.sentences(1, 1, 20)


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
    assert set(counts) == set(BEHAVIOURS) and min(counts.values()) > 0.8 * 8000 / len(BEHAVIOURS)
    shares = {name: float(name == "ioi") for name in BEHAVIOURS}
    assert {s.behaviour for s in mixture.sentences(0, 0, 100, shares=shares)} == {"ioi"}


def test_the_fingerprint_follows_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mixture.fingerprint()
    assert before == mixture.fingerprint()
    other = BEHAVIOURS["ioi"].draw
    changed = Behaviour("ioi", "", BEHAVIOURS["ioi"].words, lambda rng: other(rng)._replace(target=" Mary"))
    monkeypatch.setitem(BEHAVIOURS, "ioi", changed)
    assert mixture.fingerprint() != before


def test_a_natural_only_behaviour_leaves_all_of_the_embedded_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mixture.fingerprint(), mixture.words(), mixture.sentences(0, 0, 50)
    example = Example("The house is", "The houses are", " red", " blue", "house", {})
    only = Behaviour("colours", "What colour a thing has.", (), lambda rng: example, natural_only=True)
    monkeypatch.setitem(BEHAVIOURS, "colours", only)
    assert (mixture.fingerprint(), mixture.words(), mixture.sentences(0, 0, 50)) == before
    assert "colours" not in embedded() and set(embedded()) == set(BEHAVIOURS) - {"colours"}
    assert only.generator("natural")(np.random.default_rng(0)) == example
    cfg = compose("task=prompts", "behaviour=ioi")
    cfg.behaviour.name = "colours"
    (problem,) = registry.kind("prompts").check(cfg, ModelDims(4, lambda site: 128), ())
    assert (
        "behaviour=colours: asked of models of natural language only; choose another model, or of arithmetic" in problem
    )
