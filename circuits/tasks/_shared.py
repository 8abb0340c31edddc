"""What several tasks declare alike: the model and the text as inputs, and what fits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuits.schema import BaseConfig, DataSource
from circuits.store.contents import Contents
from circuits.store.kinds import Input, Layers, ModelDims


def model_input(cfg: BaseConfig) -> list[Input]:
    """The embedded model, where it is the model; any other one is read from its files."""
    return [Input("tiny", (), cfg)] if cfg.model.embedded is not None else []


def text_input(cfg: BaseConfig) -> list[Input]:
    """The tokenised corpus, where there is one; the embedded model's text is drawn as it is read."""
    return [Input("tokens", (), cfg)] if cfg.data.source is not DataSource.embedded else []


def mixture(cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
    """For the key: the embedded generator's identity, where it is the data."""
    if cfg.data.source is not DataSource.embedded:
        return {}
    from circuits.tiny import mixture

    return {"mixture": contents.once("mixture", mixture.fingerprint)}


def context_problems(cfg: BaseConfig, dims: ModelDims) -> list[str]:
    """Sequences of text that are longer than the model reads."""
    if dims.context is None or cfg.data.context <= dims.context:
        return []
    return [f"data.context={cfg.data.context}: more than the model's {dims.context} positions"]


def layer_name(layers: Layers) -> str:
    """``L3``, in a label; ``L`` where no layer is known yet."""
    return f"L{layers[0] if layers else ''}"
