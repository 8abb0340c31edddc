"""Activations that are captured once and kept: of a behaviour's prompts, or of the text stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from circuits.schema.behaviour import PICTURES, languages, of_pictures
from circuits.schema.fields import added, free
from circuits.schema.model import Dtype, Site
from circuits.schema.reading import When
from circuits.schema.sae import NonFinitePolicy

if TYPE_CHECKING:
    from circuits.schema import BaseConfig


class ActivationSource(Enum):
    """What activations are captured of."""

    behaviour = "behaviour"  # the prompts of `behaviour`
    data = "data"  # the first sequences of `data`'s training stream


class Selected(Enum):
    """Which tokens' activations are kept."""

    all = "all"
    image = "image"  # those that stand for the picture
    text = "text"  # all others
    last = "last"  # the last one, from which the answer begins
    mean = "mean"  # the mean over all: one row a sample


SEQUENCES = 2000  # of the training stream, where neither activations.n_sequences nor activations.tokens is given


@dataclass
class ActivationsConfig:
    """Which activations are kept, and how. One section describes one artifact, for each site and layer."""

    source: ActivationSource = (
        ActivationSource.behaviour
    )  # what is captured: the behaviour's prompts or the text stream
    site: Any = Site.resid_post.value  # one site, or a list of them (one artifact each, from one forward pass)
    last_n: int | None = None  # the last so many tokens of each sequence; null: all
    skip_first: int | None = None  # leading tokens left out; null: 1 for data (as SAEs are trained), 0 for prompts
    dtype: Dtype = Dtype.fp32  # how values are stored
    batch_size: int = 16  # sequences a forward pass
    select: Selected = added(Selected.all)  # of which tokens, where there are pictures  # noqa: RUF009
    language: Any = added(None)  # english, arabic or both, an artifact each; null: as the behaviour  # noqa: RUF009
    nonfinite: NonFinitePolicy = NonFinitePolicy.fail  # a NaN or infinity: fail, or drop the sample at every layer
    n_sequences: int | None = None  # how many sequences of the text; null: 2,000, unless tokens is given
    tokens: int | None = None  # instead of n_sequences: as many sequences as give so many rows
    world_size: int = free(1)  # processes that share the work
    shard: int = free(0)  # which of them this is: 'activations.shard=range(0,4)' activations.world_size=4
    chunk: int = free(1024)  # samples between moments at which the work done is safe from a kill


_OF_DATA = When(  # not strict: an SAE's store is one of data, whatever stands here
    "activations.source",
    ("data",),
    strict=False,
    hint="behaviour.n_samples says how many prompts; activations.source=data does",
)
_OF_PICTURES = When("behaviour.name", PICTURES, strict=False)
READ_WHEN = {
    "activations.language": (_OF_PICTURES,),
    "activations.select": (_OF_PICTURES,),
    "activations.n_sequences": (_OF_DATA,),
    "activations.tokens": (_OF_DATA,),
}


def sites(activations: ActivationsConfig) -> tuple[str, ...]:
    """The sites asked for, each once, in the order given."""
    given = activations.site if isinstance(activations.site, (list, tuple)) else [activations.site]
    return tuple(dict.fromkeys(site.value if isinstance(site, Site) else str(site) for site in given))


def asked_in(cfg: BaseConfig) -> tuple[str, ...]:
    """The languages in which a behaviour's pictures are captured; none of text."""
    if not of_pictures(cfg.behaviour) or cfg.activations.source is ActivationSource.data:
        return ()
    given = cfg.activations.language
    if given is None:
        return languages(cfg.behaviour)
    return tuple(given) if isinstance(given, (list, tuple)) else (str(given),)


def check(activations: ActivationsConfig) -> list[str]:
    known = [site.value for site in Site]
    errors = [
        f"activations.site={site}: no such site; sites: {' '.join(known)}"
        for site in sites(activations)
        if site not in known
    ]
    if not sites(activations):
        errors.append(f"activations.site=[]: no site named; sites: {' '.join(known)}")
    for name in ("last_n", "batch_size", "n_sequences", "tokens", "world_size", "chunk"):
        value = getattr(activations, name)
        if value is not None and value < 1:
            errors.append(f"activations.{name}={value}: at least 1")
    if activations.skip_first is not None and activations.skip_first < 0:
        errors.append(f"activations.skip_first={activations.skip_first}: 0 or more")
    if not 0 <= activations.shard < max(1, activations.world_size):
        errors.append(
            f"activations.shard={activations.shard}: 0 to {max(1, activations.world_size) - 1} "
            f"(activations.world_size={activations.world_size})"
        )
    if activations.n_sequences is not None and activations.tokens is not None:
        errors.append(
            f"activations.n_sequences={activations.n_sequences} and activations.tokens={activations.tokens}: one of the two"
        )
    return errors
