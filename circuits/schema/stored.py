"""An SAE that is trained from stored activations: which store that is, and which one it cannot be trained from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from circuits.schema.activations import ActivationsConfig, ActivationSource
from circuits.schema.model import Site
from circuits.schema.sae import SaeConfig, SaeSource

if TYPE_CHECKING:
    from circuits.schema import BaseConfig

ROWS_A_DIMENSION = 100  # at least: fewer distinct vectors are learned by heart


def read(cfg: BaseConfig) -> bool:
    """Whether SAEs of this config are trained from a store."""
    return cfg.sae.source is SaeSource.store and cfg.sae.from_ is None


def section(cfg: BaseConfig, site: Site | None = None) -> ActivationsConfig:
    """The section of the store: of data, at the SAE's site (or `site`), without the positions that the SAE leaves out."""
    given = cfg.activations
    skip = cfg.sae.skip_first if given.skip_first is None else given.skip_first
    return replace(given, source=ActivationSource.data, site=(site or cfg.sae.site).value, skip_first=skip)


def problems(cfg: BaseConfig, given: ActivationsConfig, width: int | None, beside: int = 0) -> list[str]:
    """Why the SAE of `cfg` cannot be trained from the store `given`, at a site of this width (a transcoder: with another one's
    rows beside it)."""
    errors = []
    if given.skip_first != cfg.sae.skip_first:
        errors.append(
            f"activations.skip_first={given.skip_first}: sae.skip_first={cfg.sae.skip_first} is what the SAE is measured "
            "with; give both the same value"
        )
    if given.last_n is not None:
        errors.append(f"activations.last_n={given.last_n}: an SAE is trained and measured on all tokens; leave it out")
    if width is None:
        return errors
    most = given.n_sequences and given.n_sequences * (cfg.data.context - cfg.sae.skip_first)
    errors += few(given.tokens or most, width, cfg.sae)
    row_bytes = (width + beside) * (4 if given.dtype.value == "fp32" else 2)
    needed = 4 * cfg.sae.batch_size * row_bytes / 1e9  # two blocks of two batches
    if cfg.sae.ram < needed:
        errors.append(
            f"sae.ram={cfg.sae.ram}: two batches of sae.batch_size={cfg.sae.batch_size} have to fit twice; at least "
            f"sae.ram={math.ceil(needed * 1000) / 1000}"
        )
    return errors


def few(rows: int | None, width: int, sae: SaeConfig) -> list[str]:
    """The refusal of too few distinct rows; every row is a token of its own, and a second pass brings none."""
    if rows is None or sae.allow_small or rows >= ROWS_A_DIMENSION * width:
        return []
    more = "raise activations.tokens" if sae.source is SaeSource.store else "give more text (data.path)"
    return [
        f"sae.source={sae.source.value}: {rows:,} rows are fewer than {ROWS_A_DIMENSION} × the site's width {width} "
        f"({ROWS_A_DIMENSION * width:,}); {more}, or go on with sae.allow_small=true"
    ]
