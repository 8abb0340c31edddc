"""What a study of interventions is, in plain values; every preset in ``conf/intervention/`` is one of these. No torch."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from circuits.errors import UserError, suggest

HERE = Path(__file__).parent
PATCHES = ("counterfactual",)
"""Edits that take the values of the pair's other prompt."""
FITTED = ("mean", "optimal", "steer")
"""Edits that learn something of prompts that are not measured."""

CAPTIONS = "captions"
"""The units of a study of pictures: features, while captions are written. No lens, and edits of its own."""
CONTROLLED = ("head_groups", "features", "neurons", "steer", CAPTIONS)
"""Units beside which random ones of equal size are measured."""
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Of steering, where none are named."""


class Direction(Enum):
    """Which prompt of a pair is edited, where the other one's values are patched in."""

    noising = "noising"  # the clean prompt is edited: does breaking it break the answer?
    denoising = "denoising"  # the corrupt prompt is edited: does restoring it restore the answer?


class Metric(Enum):
    """What of an answer is compared."""

    first_token = "first_token"  # logit of the target's first token − that of the foil's
    full_target = "full_target"  # log-probability of the whole target − that of the whole foil


class Split(Enum):
    """Which prompts are measured."""

    all = "all"
    train = "train"
    test = "test"


class Across(Enum):
    """Which layers are edited in one pass, where captions are written."""

    each = "each"  # one after the other, each by itself
    adjacent = "adjacent"  # each with the next of the chosen ones
    all = "all"  # all chosen ones together


class Cluster(Enum):
    """The unit that is drawn for an interval."""

    prompt = "prompt"  # a distinct clean prompt
    group = "group"  # all prompts about the same thing


@dataclass
class Settings:
    """Which units, which edit, on which prompts, against which controls."""

    units: str = "heads"  # what is edited: a file of circuits/interventions/units
    edit: Any = "zero"  # what takes its place: a file of circuits/interventions/edits, or a list of them
    heads: Any = None  # [L0H2,L5H1], or numbers of heads of each layer; null: all heads of the layers
    groups: Any = None  # of heads or features, such as [[L0H2,L0H4],[L0H2,L0H7]]; null: chosen on the other split
    sizes: Any = field(default_factory=lambda: [2])  # of the groups that are chosen: all sets of so many of the top_k
    top_k: int = 6  # heads (or features) with the largest effects on the other split, from which groups are chosen
    n_groups: int = 10  # feature groups
    group_size: int = 1  # features of one group
    features: Any = (
        None  # [3,17]: features by number, each a group or a direction to steer along; null: chosen, or none
    )
    neurons: Any = None  # [3,17,42]: neurons by number; null: the n_groups with the largest estimated effect
    shapley: int = 0  # random orders of the top_k heads, for sampled Shapley values; 0: none
    site: str = "resid_post"  # which site of a layer sites and positions are edited at
    positions: Any = "all"  # all, last, differing, -1, [0,-2], factor:<name>, text:<words>: the tokens that are edited
    last_n: int = 20  # positions of a map, counted from the prompt's end
    direction: Direction = Direction.noising  # of patching: which prompt of a pair is edited
    mean: str = "all"  # all, position or factor:<name>: what a mean is taken over
    scale: float = 2.0  # of edit=scale: 0 removes, 2 amplifies, −1 inverts
    steps: int = 2  # gradient steps of an optimal constant from its second-order one, over four prompts each
    strengths: Any = None  # of steering, in lengths of the mean difference: null means [0.5,1,2,4]
    shots: int = 4  # demonstrations in the prompt that steering is held against; 0: none
    generate: int = 20  # tokens of text written under each steering direction; 0: none
    metric: Metric = Metric.first_token  # compare the logits of the answers' first tokens, or whole answers
    split: Split | None = (
        None  # prompts that are measured; null: all, or test where something is fitted or chosen on train
    )
    samples: int | None = None  # prompts that are measured, the first ones; null: all of the split
    controls: int = 20  # random sets of equal size at the same layers, measured beside each group
    direct: bool = True  # direct effects and self-repair of single heads, beside their total effect
    cluster: Cluster = Cluster.prompt  # the unit that is drawn for an interval: a prompt, or all about the same thing
    resamples: int = 5000  # of the bootstrap and of permutation tests
    bound: float | None = None  # an effect within it counts as none; null: a tenth of the mean difference without edits
    alpha: float = 0.05  # of corrected p, and of the test of equivalence
    batch_size: Any = 32  # rows of a pass, or auto: as many as fit, found by trying; results agree to 1e-5
    low_memory: bool = (
        False  # keep the stream entering one layer at a time, for one more pass a layer; says what it saves
    )
    factors: Any = None  # of units=captions: what features are multiplied by; 0 ablates, [1.5,2,3] amplifies; null: 0
    across: Across = Across.each  # of units=captions: which layers are edited in one pass
    caption_controls: int = 0  # of units=captions: random sets under which captions are written, too
    verify: str | None = (
        None  # measure some prompts again on this device or at this precision: cpu, cuda:1, fp32, cpu/bf16
    )
    verify_samples: int = 8  # of so many prompts

    @property
    def edits(self) -> list[str]:
        """The edits, each once, in order."""
        return list(dict.fromkeys(map(str, self.edit if isinstance(self.edit, (list, tuple)) else [self.edit])))

    @property
    def strength_list(self) -> list[float]:
        """The strengths of steering, each once, in order."""
        return list(dict.fromkeys(map(float, STRENGTHS if self.strengths is None else _listed(self.strengths))))

    @property
    def factor_list(self) -> list[float]:
        """What features are multiplied by while captions are written, each once, in order."""
        return list(dict.fromkeys(map(float, [0.0] if self.factors is None else _listed(self.factors))))

    @property
    def fits(self) -> bool:
        """Whether something is fitted or chosen on prompts that are not measured."""
        chosen = {"head_groups": self.groups, "features": self.features or self.groups, "neurons": self.neurons}
        if self.units == CAPTIONS:  # features are chosen on training pictures
            return True
        return bool(set(FITTED) & set(self.edits)) or (self.units in chosen and chosen[self.units] is None)

    @property
    def measured(self) -> Split:
        """The split that is measured."""
        return self.split or (Split.test if self.fits else Split.all)

    @property
    def pairs(self) -> bool:
        """Whether corrupt prompts are read."""
        return bool(set(PATCHES) & set(self.edits)) or self.direction is Direction.denoising


def files(folder: str) -> list[str]:
    """The names that a registry of files offers: ``units`` or ``edits``."""
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE / folder)]) if m.name != "base")


HEAD = re.compile(r"[LaA]?(\d+)[.]?[Hh](\d+)")


def heads(given: Any, layers: Sequence[int]) -> list[tuple[int, int]]:
    """(layer, head) of a list such as ``[L0H2, 0.h4, 7]``; a number means that head of each of `layers`.

    Raises:
        UserError: something that names no head, or nothing at all.
    """
    listed = given if isinstance(given, (list, tuple)) else [given]
    found: list[tuple[int, int]] = []
    for one in listed:
        if isinstance(one, int) and not isinstance(one, bool):
            found += [(layer, one) for layer in layers]
        elif isinstance(one, str) and (match := HEAD.fullmatch(one)):
            found.append((int(match[1]), int(match[2])))
        else:
            raise UserError(f"heads: {one!r} names no head; write L0H2, or a number for that head of each layer")
    if not found:
        raise UserError("heads=[]: no head named; null takes all heads of the layers")
    return list(dict.fromkeys(found))


def check(s: Settings, layers: Sequence[int], depth: int | None = None, n_heads: int | None = None) -> list[str]:
    """What is wrong with the settings for a model of so many layers and heads (None: not known yet), one line each."""
    from circuits.interventions.positions import parse

    errors = []
    for name, values in (("units", [s.units]), ("edits", s.edits)):
        known = [*files(name), *({"units": [CAPTIONS], "edits": ["project"]}[name])]
        errors += [f"{name.rstrip('s') if name == 'edits' else name}={v}: there is none" + suggest(v, known, name)
                   for v in values if v not in known]  # fmt: skip
    try:
        parse(s.positions)
    except UserError as e:
        errors += e.messages
    for name, least in (("top_k", 2), ("n_groups", 1), ("group_size", 1), ("last_n", 1), ("steps", 1), ("resamples", 1),
                        ("verify_samples", 1), ("controls", 0), ("shapley", 0), ("shots", 0), ("generate", 0),
                        ("caption_controls", 0)):  # fmt: skip
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    if s.batch_size != "auto" and (
        isinstance(s.batch_size, bool) or not isinstance(s.batch_size, int) or s.batch_size < 1
    ):
        errors.append(f"batch_size={s.batch_size}: a whole number from 1, or auto")
    if s.units == CAPTIONS and s.caption_controls > s.controls:
        errors.append(f"caption_controls={s.caption_controls}: at most controls={s.controls}")
    if s.verify is not None:
        errors += _verify(s.verify)
    if s.samples is not None and s.samples < 1:
        errors.append(f"samples={s.samples}: at least 1")
    if not 0 < s.alpha < 1:
        errors.append(f"alpha={s.alpha}: a share above 0 and below 1")
    if s.bound is not None and s.bound <= 0:
        errors.append(f"bound={s.bound}: above 0")
    if s.fits and s.split is Split.all:
        errors.append(
            "split=all: something is fitted or chosen on prompts that are not measured (mean or optimal constants, groups, "
            "directions); split=test or split=train leaves the other side for that"
        )
    if 1 / (s.resamples + 1) > s.alpha:
        errors.append(
            f"resamples={s.resamples}: the smallest p is 1/{s.resamples + 1}, above alpha={s.alpha:g}; raise it"
        )
    errors += [*_groups(s), *_steering(s)]
    groups = [group for group in _listed(s.groups) if group] if s.units == "head_groups" else []
    try:
        named = [*(heads(s.heads, layers) if s.heads is not None else []),
                 *(head for group in groups for head in heads(group, layers))]  # fmt: skip
    except UserError as e:
        return [*errors, *e.messages]
    for layer, head in dict.fromkeys(named):
        if depth is not None and layer >= depth:
            errors.append(f"heads: L{layer}H{head}: the model has {depth} layers (0-{depth - 1})")
        elif n_heads is not None and head >= n_heads:
            errors.append(f"heads: L{layer}H{head}: layer {layer} has {n_heads} heads (0-{n_heads - 1})")
    return errors


DTYPES = ("fp32", "bf16", "fp16")


def verify_with(given: str) -> tuple[str | None, str | None]:
    """(device, dtype) of ``cpu``, ``fp32``, ``cuda:1/bf16``; None where it says nothing."""
    parts = given.split("/")
    dtype = next((part for part in parts if part in DTYPES), None)
    return next((part for part in parts if part not in DTYPES), None), dtype


def _verify(given: str) -> list[str]:
    device, _ = verify_with(given)
    if len(given.split("/")) > 2 or (device is not None and not re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", device)):
        return [
            f"verify={given}: a device (cpu, cuda, cuda:1, mps), a precision ({' '.join(DTYPES)}), or both: cpu/fp32"
        ]
    return []


def _groups(s: Settings) -> list[str]:
    errors = []
    if s.groups is not None and s.units not in ("head_groups", "features"):
        errors.append(f"groups: units={s.units} has none; units=head_groups or units=features reads them")
    if s.groups is not None and not _listed(s.groups):
        errors.append("groups=[]: no group named; null chooses them on the other split")
    empty = [group for group in _listed(s.groups) if isinstance(group, (list, tuple)) and not group]
    if empty:
        errors.append("groups: a group with nothing in it")
    bad = [size for size in _listed(s.sizes) if not isinstance(size, int) or size < 2 or size > s.top_k]
    if s.units == "head_groups" and s.groups is None and bad:
        errors.append(f"sizes={bad[0]}: from 2 to top_k={s.top_k}")
    if "restore" in s.edits and s.units != "head_groups":
        errors.append("edit=restore: gives one head of a zeroed group back; units=head_groups has groups")
    return errors


def _steering(s: Settings) -> list[str]:
    errors = []
    if (s.units == "steer") != (s.edits == ["steer"]) and "steer" in (s.units, *s.edits):
        errors.append(
            f"edit={'+'.join(s.edits)}: units=steer and edit=steer belong together; intervention=steer sets both"
        )
    if s.units != "steer":
        return errors
    for one in _listed(s.features):
        if not isinstance(one, int) or isinstance(one, bool) or one < 0:
            errors.append(f"features={one}: a feature's number, from 0; only its direction is steered along")
    given = _listed(s.strengths)
    if s.strengths is not None and not given:
        errors.append("strengths=[]: no strength named, so that none can be chosen")
    for one in given:
        known = isinstance(one, (int, float)) and not isinstance(one, bool)
        if not known or not math.isfinite(one) or one < 0:
            errors.append(f"strengths={one}: a number from 0, in lengths of the mean difference")
    return errors


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
