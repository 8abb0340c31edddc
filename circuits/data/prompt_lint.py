"""What may be wrong with a prompt set (SPEC TL-3): duplicates, overlap, leakage, imbalance, lengths. Numbers and findings.

A finding is one line that a person should read before trusting a result on these prompts; the numbers are all there either way.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from circuits.data.prompts import Prompt

SHOWN = 20  # ids listed of each kind
DOMINANT = 0.8  # share of one answer from which a constant guess does well
BIAS = 0.2  # |times target − times foil| / n from which a constant preference for an answer shows in the mean


def lint(prompts: Sequence[Prompt], *, chat: bool = False) -> dict[str, Any]:
    """Counts, lengths and balance of a prompt set, and its ``findings`` in words; in a `chat` no answer joins its prompt."""
    clean = Counter((p.prompt, p.split) for p in prompts)
    facts: dict[str, Any] = {
        "n": len(prompts),
        "splits": dict(Counter(p.split for p in prompts)),
        "groups": {side: len({p.group for p in prompts if p.split == side}) for side in ("train", "test")},
        "distinct_prompts": len({p.prompt for p in prompts}),
        "duplicate_rows": sum(n - 1 for n in clean.values()),
        "overlap": _overlap(prompts),
        "leaking": _listed(p.id for p in prompts if _leaks(p)),
        "answers": _answers(prompts),
        "lengths": _lengths([len(p.ids) for p in prompts]),
        "corrupt_lengths": _lengths([len(p.corrupt_ids) for p in prompts if p.corrupt_ids is not None]),
        "without_corrupt": sum(p.corrupt is None for p in prompts),
        "unequal_lengths": _listed(
            p.id for p in prompts if p.corrupt_ids is not None and len(p.corrupt_ids) != len(p.ids)
        ),
        "joined": _listed(p.id for p in prompts if not chat and _joins(p)),
        "spaced_twice": _listed(p.id for p in prompts if not chat and _spaced_twice(p)),
        "multi_token": _listed(p.id for p in prompts if max(len(p.target_ids), len(p.foil_ids)) > 1),
    }
    facts["findings"] = findings(facts)
    return facts


def findings(facts: dict[str, Any]) -> list[str]:
    """What a reader should know, one line each."""
    n, answers, overlap = facts["n"], facts["answers"], facts["overlap"]
    lines = []
    if facts["duplicate_rows"]:
        lines.append(
            f"{facts['duplicate_rows']} of {n} rows repeat a clean prompt: {facts['distinct_prompts']} are distinct"
        )
    for what in ("prompts", "groups"):
        if overlap[what]:
            lines.append(f"{overlap[what]} {what} are in train and in test")
    if overlap["corrupt"]:
        lines.append(f"{overlap['corrupt']} corrupt prompts of one side of the split are clean prompts of the other")
    if facts["leaking"]["n"]:
        lines.append(f"{facts['leaking']['n']} prompts end with their own target")
    if answers["distinct"] == 1:
        lines.append(f"the target is always {answers['most_common'][0]!r}: a constant answer is right everywhere")
    elif answers["largest_share"] >= DOMINANT:
        share = f"{100 * answers['largest_share']:.0f}%"
        lines.append(f"{answers['most_common'][0]!r} is the target of {share} of the prompts")
    if answers["bias"] > BIAS and answers["distinct"] > 1:
        worst = answers["most_biased"]
        lines.append(
            f"{worst!r} is target and foil unevenly often: a model that prefers it seems to know the behaviour"
        )
    if facts["unequal_lengths"]["n"]:
        count = facts["unequal_lengths"]["n"]
        lines.append(f"{count} corrupt prompts differ in length from their clean ones: positions do not correspond")
    if facts["joined"]["n"]:
        lines.append(
            f"{facts['joined']['n']} prompts run into an answer without a space between two letters: is a space missing before it?"
        )
    if facts["spaced_twice"]["n"]:
        lines.append(f"{facts['spaced_twice']['n']} prompts end with a space and their answer begins with one")
    if facts["multi_token"]["n"]:
        lines.append(f"{facts['multi_token']['n']} prompts have an answer of several tokens")
    if facts["without_corrupt"]:
        lines.append(f"{facts['without_corrupt']} prompts have no corrupt prompt: they cannot be patched")
    return lines


def _overlap(prompts: Sequence[Prompt]) -> dict[str, int]:
    """What is on both sides of the split; `corrupt`: clean prompts of one side that are corrupt ones of the other."""

    def both(values: Any) -> int:
        train, test = ({values(p) for p in prompts if p.split == side} for side in ("train", "test"))
        return len((train & test) - {None})

    clean = {side: {p.prompt for p in prompts if p.split == side} for side in ("train", "test")}
    other = {"train": "test", "test": "train"}
    crossing = {p.corrupt for p in prompts if p.corrupt is not None and p.corrupt in clean[other[p.split]]}
    return {"prompts": both(lambda p: p.prompt), "groups": both(lambda p: p.group), "corrupt": len(crossing)}


def _joins(prompt: Prompt) -> bool:
    """Whether a word runs into another one, in a script that puts spaces between words."""
    return any(_spaces(prompt.prompt[-1]) and _spaces(answer[0]) for answer in (prompt.target, prompt.foil))


def _spaces(character: str) -> bool:
    return character.isalpha() and unicodedata.name(character, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _spaced_twice(prompt: Prompt) -> bool:
    return prompt.prompt[-1].isspace() and (prompt.target[0].isspace() or prompt.foil[0].isspace())


def _leaks(prompt: Prompt) -> bool:
    answer = prompt.target.strip()
    return prompt.prompt.rstrip().endswith(answer) and not prompt.prompt.rstrip()[: -len(answer)][-1:].isalnum()


def _answers(prompts: Sequence[Prompt]) -> dict[str, Any]:
    targets, foils = Counter(p.target for p in prompts), Counter(p.foil for p in prompts)
    excess = {answer: targets[answer] - foils[answer] for answer in sorted({*targets, *foils})}
    worst = max(excess, key=lambda answer: abs(excess[answer]))
    ranked = [answer for answer, _ in sorted(targets.items(), key=lambda pair: (-pair[1], pair[0]))]
    return {
        "distinct": len(targets),
        "most_common": ranked[:10],
        "largest_share": targets[ranked[0]] / len(prompts),
        "most_biased": worst,
        "bias": abs(excess[worst]) / len(prompts),
        "counts": {answer: {"target": targets[answer], "foil": foils[answer]} for answer in [*ranked, *sorted(foils)]},
    }


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Token lengths: extremes, median, and how many prompts have each."""
    if not lengths:
        return {"min": None, "median": None, "max": None, "counts": {}}
    counts = Counter(lengths)
    return {
        "min": min(lengths),
        "median": median(lengths),
        "max": max(lengths),
        "counts": {str(length): counts[length] for length in sorted(counts)},
    }


def _listed(ids: Any) -> dict[str, Any]:
    found = list(ids)
    return {"n": len(found), "ids": found[:SHOWN]}
