"""What is looked up about an SAE's features: examples, histograms, promoted tokens, association with a behaviour's factors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from circuits.schema.fields import free, named_file
from circuits.schema.reading import When


class Pool(Enum):
    """How a feature's activations over the tokens of a prompt become one number."""

    max = "max"
    mean = "mean"
    last = "last"  # at the last token


@dataclass
class InterpretConfig:
    """Which features are described, from how much held-out text, and how they are tested on the behaviour's prompts."""

    n_sequences: int = 2048  # held-out sequences of `data`
    features: Any = None  # a list of feature numbers; null: the most often active ones, at most max_features
    max_features: int = 2000  # most features that are described
    top_k: int = 10  # examples of a feature, each from another sequence
    window: int = 12  # tokens kept before and after an example's peak
    n_tokens: int = 10  # promoted and suppressed tokens
    associate: bool = True  # test features on the prompts of `behaviour`
    pool: Pool = Pool.max  # how a feature's activations over a prompt become one number
    min_prompts: int = 5  # training prompts that a factor's level needs in order to be tested
    shuffles: int = 20  # of the labels: the control
    fdr: float = 0.05  # q below which an association counts
    batch_size: int = free(32)  # sequences (or prompts) a forward pass; results agree to rounding
    labels: str | None = named_file(
        None
    )  # CSV with columns feature,label (and layer), edited by people; shown in reports


#: Settings of the test of features on the behaviour's prompts.
OF_ASSOCIATION = ("pool", "fdr", "shuffles", "min_prompts")
READ_WHEN = {
    **{f"interpret.{name}": (When("interpret.associate", (True,), strict=False),) for name in OF_ASSOCIATION},
    "interpret.max_features": (When("interpret.features", (None,), strict=False),),
}


def chosen(interpret: InterpretConfig) -> tuple[int, ...] | None:
    """The features that are asked for by number, in order, each once; None: by activity."""
    given = interpret.features
    if given is None:
        return None
    listed = given if isinstance(given, (list, tuple)) else [given]
    return tuple(sorted(dict.fromkeys(listed)))


def check(interpret: InterpretConfig) -> list[str]:
    errors = []
    for name, least in (("n_sequences", 1), ("max_features", 1), ("top_k", 1), ("window", 0), ("n_tokens", 1),
                        ("min_prompts", 2), ("shuffles", 1), ("batch_size", 1)):  # fmt: skip
        if (value := getattr(interpret, name)) < least:
            errors.append(f"interpret.{name}={value}: at least {least}")
    if not 0 < interpret.fdr < 1:
        errors.append(f"interpret.fdr={interpret.fdr}: a share above 0 and below 1")
    given = interpret.features
    if given is not None:
        listed = given if isinstance(given, (list, tuple)) else [given]
        if not listed:
            errors.append("interpret.features=[]: no feature named; null takes the most often active ones")
        bad = [one for one in listed if isinstance(one, bool) or not isinstance(one, int) or one < 0]
        if bad:
            errors.append(f"interpret.features={bad[0]}: feature numbers are whole numbers from 0; write [3,17,42]")
    return errors
