"""What an artifact is made from, and what that is made from: walked for checks, for what is read, for remarks. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.schema.behaviour import of_pictures
from circuits.schema.reading import failing
from circuits.store import registry
from circuits.store.kinds import Input, Kind, Layers, ModelDims

SOME: Layers = (0,)
"""A layer like any other, where only the kinds of the inputs matter."""


def of(kind: Kind, cfg: BaseConfig, layers: Layers = SOME) -> list[Input]:
    """The inputs of `kind` at `layers` under `cfg`.

    Raises:
        UserError: it names a kind that it does not declare to need, or two inputs alike.
    """
    found = kind.inputs(kind.normal(cfg), layers)
    names = [one.name for one in found]
    for one in found:
        if one.kind not in kind.needed:
            raise UserError(
                f"kind {kind.name}: {one.kind} is an input and does not stand in its needs: {' '.join(kind.needed)}"
            )
        if names.count(one.name) > 1:
            raise UserError(f"kind {kind.name}: two inputs are called {one.name}; give them names")
    return found


def walk(kind: Kind, cfg: BaseConfig, layers: Layers = SOME) -> Iterator[tuple[Kind, BaseConfig, Layers]]:
    """`kind` and all that it is made from under `cfg`, inputs after what they are for."""
    yield kind, cfg, layers
    for one in of(kind, cfg, layers):
        yield from walk(registry.kind(one.kind), one.cfg, one.layers)


Family = Iterable[tuple[Kind, BaseConfig, Layers]]
"""What :func:`walk` gives."""


def problems(family: Family, dims: ModelDims) -> list[str]:
    """What these kinds find wrong, each line once; a site that the model lacks is such a finding."""
    found: list[str] = []
    for one, mine, at in family:
        try:
            found += one.check(mine, dims, at)
            found += _pictured(one, mine, at, dims)
        except UserError as e:
            found += e.messages
    return list(dict.fromkeys(found))


def _pictured(kind: Kind, cfg: BaseConfig, at: Layers, dims: ModelDims) -> list[str]:
    """A behaviour of pictures, where prompts of text are read, or of a model that takes none."""
    if not of_pictures(cfg.behaviour):
        return []
    if kind.pictures:
        from circuits.models.sites import FAMILIES

        family = FAMILIES.get(dims.model_type or "")
        if "model" not in kind.sections or family is None or family.tower:
            return []
        return [
            f"behaviour={cfg.behaviour.name}: model={cfg.model.id} is a language model ({dims.model_type}) and takes no pictures; "
            "choose a vision-language model (model=tiny_vlm, gemma-3-4b-it)"
        ]
    if not any(one.kind == "prompts" and one.name != "pictures" for one in of(kind, cfg, at)):
        return []
    able = " ".join(name for name, other in sorted(registry.kinds().items()) if other.pictures)
    return [
        f"behaviour={cfg.behaviour.name}: pictures, and task={kind.name} reads prompts of text; tasks for pictures: {able}"
    ]


def remarks(family: Family) -> list[str]:
    """What a person should know of an artifact and of what it is made from, each line once."""
    return list(dict.fromkeys(line for one, mine, at in family for line in one.remarks(mine, at)))


def sections(kind: Kind, cfg: BaseConfig) -> frozenset[str]:
    """The config sections (``sae``, ``model.embedded``) that `kind`, its inputs and its gates read under this very config."""
    found: set[str] = set()
    for one, mine, _ in walk(kind, cfg):
        found |= {name for name in one.sections if failing(one.when, name, mine) is None}
        found |= set(getattr(registry.modules()[one.name], "READS", ()))
        for gate in one.gates(mine):
            found |= sections(registry.kind(gate), mine)
    return frozenset(found)
