"""The lint sees what spoils a prompt set: each flaw of a known bad set is counted and said."""

from __future__ import annotations

from dataclasses import replace

from circuits.data.prompt_lint import lint
from circuits.data.prompts import Prompt

GOOD = [
    Prompt(f"p{i}", f"prompt {i}", f"other {i}", *answers, "b", split, f"g{i}", {}, (1, 2), (1, 3), (4,), (5,))
    for i, (answers, split) in enumerate(
        [((" yes", " no"), "train"), ((" no", " yes"), "train"), ((" yes", " no"), "test"), ((" no", " yes"), "test")]
    )
]


def test_a_good_set_has_no_finding() -> None:
    found = lint(GOOD)
    assert found["findings"] == [] and found["answers"]["bias"] == 0 and found["answers"]["largest_share"] == 0.5
    assert found["lengths"] == {"min": 2, "median": 2, "max": 2, "counts": {"2": 4}}


def test_duplicates_and_overlap_are_counted() -> None:
    found = lint([*GOOD, replace(GOOD[0], id="p4"), replace(GOOD[0], id="p5", split="test")])
    assert found["duplicate_rows"] == 1 and found["overlap"] == {"prompts": 1, "groups": 1, "corrupt": 0}
    assert "1 of 6 rows repeat a clean prompt: 4 are distinct" in found["findings"]
    assert "1 prompts are in train and in test" in found["findings"]
    crossing = lint([*GOOD[:3], replace(GOOD[3], corrupt="prompt 0")])
    assert crossing["overlap"]["corrupt"] == 1
    assert crossing["findings"] == ["1 corrupt prompts of one side of the split are clean prompts of the other"]


def test_a_prompt_that_ends_with_its_answer_leaks() -> None:
    leaking = [replace(GOOD[0], prompt="say yes"), replace(GOOD[1], prompt="a piano"), *GOOD[2:]]
    found = lint(leaking)
    assert found["leaking"] == {"n": 1, "ids": ["p0"]}, "the end of another word is no leak"


def test_a_constant_answer_is_said() -> None:
    found = lint([replace(p, target=" true", foil=" false") for p in GOOD])
    assert found["answers"]["distinct"] == 1 and "always ' true'" in found["findings"][0]


def test_unbalanced_answers_are_said() -> None:
    found = lint([replace(p, target=" yes", foil=" no") for p in GOOD[:3]] + GOOD[3:])
    assert found["answers"]["bias"] == 0.5 and any("unevenly" in line for line in found["findings"])


def test_lengths_spans_and_missing_corrupt_prompts_are_counted() -> None:
    odd = [replace(GOOD[0], corrupt_ids=(1,)), replace(GOOD[1], corrupt=None, corrupt_ids=None), GOOD[2]]
    found = lint([*odd, replace(GOOD[3], target_ids=(4, 4))])
    assert found["unequal_lengths"] == {"n": 1, "ids": ["p0"]}
    assert found["without_corrupt"] == 1 and found["multi_token"]["ids"] == ["p3"]
    assert len(found["findings"]) == 3
