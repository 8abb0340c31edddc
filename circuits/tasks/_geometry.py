"""Options of ``task=geometry``, and what is told of them before the start."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from circuits.errors import UserError, suggest
from circuits.schema import BaseConfig
from circuits.schema.behaviour import FILE
from circuits.schema.fields import free
from circuits.store.kinds import Layers, ModelDims

METHODS = ("full", "diagonal", "subspace", "per_token")
LEVEL = 0.05  # a p that no result could reach is said before the start


class Split(Enum):
    """Which of the behaviour's prompts are taken."""

    all = "all"
    train = "train"
    test = "test"


@dataclass
class Options:
    """Options of the geometric signature."""

    heads: Any = None  # the heads that are zeroed: [2,4,7]
    head_layer: int | None = None  # the layer whose heads they are; null: the layer that is looked at
    samples: int | None = 64  # prompts taken, the first ones of the split; null: all
    split: Split = Split.all  # of which prompts
    methods: Any = None  # entropies, of full diagonal subspace per_token; null: all four
    random_samples: int = 50  # random sets of as many other heads of that layer: the control
    batch_size: int = free(64)  # prompts a forward pass; results agree to rounding


def chosen_heads(given: Options) -> list[Any]:
    """The heads as they were written, one or a list."""
    return list(given.heads) if isinstance(given.heads, (list, tuple)) else [] if given.heads is None else [given.heads]


def chosen_methods(given: Options) -> list[Any]:
    """The entropies as they were written; all where nothing is."""
    if given.methods is None:
        return list(METHODS)
    return list(given.methods) if isinstance(given.methods, (list, tuple)) else [given.methods]


def options(cfg: BaseConfig) -> Options:
    """The section of this task."""
    found: Options = getattr(cfg, "geometry")  # noqa: B009 (joined to the schema at run time)
    return found


def problems(cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
    """Heads that the model does not have or that leave none to draw, methods that do not exist, numbers out of bounds."""
    given = options(cfg)
    heads, methods = chosen_heads(given), chosen_methods(given)
    errors = [
        f"geometry.{name}={value}: at least {least}"
        for name, least in (("samples", 2), ("random_samples", 1), ("batch_size", 1))
        if (value := getattr(given, name)) is not None and value < least
    ]
    errors += head_problems(heads) or _heads_beyond(heads, dims.heads)
    if not methods:
        errors.append("geometry.methods=[]: no entropy named; null takes all four")
    errors += [
        f"geometry.methods={method}: no such entropy{suggest(str(method), METHODS)}"
        for method in methods
        if method not in METHODS
    ]
    if (n := _prompts(cfg)) is not None and n < 2 and (given.samples is None or given.samples > 1):
        errors.append(f"geometry.split={given.split.value}: {n} prompts; at least 2 have a spread")
    return errors + _layer_problems(given.head_layer, dims.depth, layers)


def remarks(cfg: BaseConfig) -> list[str]:
    """A control too small for a small p, and fewer prompts than dimensions."""
    width, heads = _sizes(cfg)
    given, n = options(cfg), _prompts(cfg)
    k, found = len(chosen_heads(given)), []
    if small := few_controls(_controls(given, k, heads)):
        found.append(small)
    if width is not None and n is not None and n <= width:
        found.append(few_prompts(n, width))
    return found


def head_problems(heads: list[Any]) -> list[str]:
    """What is wrong with the list by itself."""
    if not heads:
        return ["geometry.heads: name the heads that are zeroed: geometry.heads=[2,4,7]"]
    if bad := [head for head in heads if isinstance(head, bool) or not isinstance(head, int) or head < 0]:
        return [f"geometry.heads={bad[0]}: heads are whole numbers from 0; write [2,4,7]"]
    if twice := [head for head in dict.fromkeys(heads) if heads.count(head) > 1]:
        return [f"geometry.heads: head {twice[0]} is named twice"]
    return []


def _heads_beyond(heads: list[int], total: int | None) -> list[str]:
    """Heads that a layer of `total` does not have, or too many of them for a control."""
    if total is None:
        return []
    if outside := [head for head in heads if head >= total]:
        return [f"geometry.heads={outside[0]}: out of range, a layer of the model has {total} heads (0-{total - 1})"]
    left = total - len(heads)
    if left < len(heads):
        return [
            f"geometry.heads: {len(heads)} of {total} heads leave {left}, too few to draw {len(heads)} others as a control; "
            f"name at most {total // 2}"
        ]
    return []


def _layer_problems(head_layer: int | None, depth: int | None, layers: Layers) -> list[str]:
    if head_layer is None:
        return []
    if head_layer < 0 or (depth is not None and head_layer >= depth):
        within = "" if depth is None else f", the model has {depth} layers (0-{depth - 1})"
        return [f"geometry.head_layer={head_layer}: out of range{within}"]
    if below := [layer for layer in layers if layer < head_layer]:
        return [f"geometry.head_layer={head_layer}: its heads change nothing at layer={below[0]}, below it"]
    return []


def _prompts(cfg: BaseConfig) -> int | None:
    """How many prompts there will be; None where a file has to be read first."""
    given, behaviour = options(cfg), cfg.behaviour
    if behaviour.name == FILE:
        return given.samples
    train, test = behaviour.n_samples or 0, behaviour.n_test or 0
    n = {Split.all: train + test, Split.train: train, Split.test: test}[given.split]
    return n if given.samples is None else min(n, given.samples)


def _sizes(cfg: BaseConfig) -> tuple[int | None, int | None]:
    """The model's width and heads, as far as they are known without a network."""
    model = cfg.model
    if model.embedded is not None:
        from circuits.tiny.spec import TinySpec

        return model.embedded.width, TinySpec.heads
    from circuits.models.identify import directory_of, inspect_model

    if directory_of(model.id) is None:
        return model.width, None
    try:
        dims = inspect_model(model.id).dims
    except UserError:  # said by the checks
        return None, None
    return dims.width, dims.heads


def _controls(given: Options, k: int, heads: int | None) -> int:
    """How many control sets there will be, as far as is known."""
    from circuits.geometry.controls import how_many

    return given.random_samples if heads is None or 2 * k > heads else how_many(heads, k, given.random_samples)


def few_controls(n: int) -> str | None:
    """Why no result of `n` controls can be significant, or None."""
    from circuits.geometry.controls import smallest_p

    one, two = smallest_p(n)
    if two <= LEVEL:
        return None
    return (
        f"geometry: with {n} control sets no two-sided p can be below {two:.2g} (one-sided {one:.2g}); {int(2 / LEVEL) - 1} "
        f"sets are needed for {LEVEL:g} (geometry.random_samples; a layer has only so many heads)"
    )


def few_prompts(n: int, width: int) -> str:
    """What fewer prompts than dimensions mean."""
    return (
        f"geometry: {n:,} prompts in {width:,} dimensions: full and per-token entropy and the activation KL mostly measure the "
        "ridge (the total variance); subspace and diagonal entropy do not"
    )
