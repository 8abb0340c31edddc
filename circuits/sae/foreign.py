"""An SAE of whichever of the formats that are read here, as one of ours: what is stored differently is brought into our form.

* circuit-tracer: the encoder transposed; ``activation_function.threshold`` is the threshold. Its jump ReLU lets a negative
  pre-activation through where the threshold is negative, ours does not: such thresholds are refused.
* Gemma Scope 2: ``affine_skip_connection`` is W_skip transposed; an SAE's b_dec, which is not taken from the encoder's input there,
  is folded into b_enc.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from circuits.errors import UserError
from circuits.sae import formats, places, sparsify
from circuits.sae.directory import read
from circuits.sae.layered import THRESHOLDS
from circuits.sae.modules import SAE, SAEConfig
from circuits.sae.places import Form, Place

TRACER = {"W_enc": True, "W_dec": False, "W_skip": False, "b_enc": False, "b_dec": False}
SCOPE = {
    "w_enc": False,
    "w_dec": False,
    "affine_skip_connection": True,
    "b_enc": False,
    "b_dec": False,
    "threshold": False,
}
"""By a tensor's name there: whether it is stored transposed."""
OURS = {
    "w_enc": "W_enc",
    "w_dec": "W_dec",
    "affine_skip_connection": "W_skip",
    **dict.fromkeys(THRESHOLDS, "threshold"),
}
"""Names here, where they differ."""


def load(directory: Path, layer: int | None = None) -> SAE:
    """The SAE in a directory (of a set: the one of this layer), in float32 on the CPU.

    Raises:
        UserError: there is none, or it is not read.
    """
    try:
        found = places.chosen(directory, [] if layer is None else [layer])
    except ValueError as e:
        raise UserError(f"{directory}: {e}") from e
    if len(found) > 1:
        raise UserError(f"{directory} holds {len(found)} SAEs, one a layer: name the layer")
    place = found[0] if found else None
    if place is None or place.form is Form.saelens:
        return formats.load(directory if place is None else place.directory)
    return sparsify.load(place.directory) if place.form is Form.sparsify else _layered(place)


def _layered(place: Place) -> SAE:
    """A transcoder of circuit-tracer's, or what Gemma Scope 2 has."""
    try:
        found = read(place)
    except (OSError, ValueError) as e:
        raise UserError(f"{place.config}: {e}") from e
    cls, _ = formats.kinds()[found.architecture]
    sae = cls(SAEConfig(found.d_in, found.d_sae, found.k, found.d_out, found.normalize, found.skip))
    transposed = TRACER if place.form is Form.tracer else SCOPE
    weights: dict[str, Tensor] = {}
    for name, value in formats.read_weights(place.weights, found, place.config.name).items():
        weights[OURS.get(name, name)] = value.T.contiguous() if transposed.get(name, False) else value
    if place.form is Form.tracer and "threshold" in weights and (below := int((weights["threshold"] < 0).sum())):
        raise UserError(
            f"{place.weights}: the threshold of {below} features is below 0, where their activations may be, and features here "
            "are not negative"
        )
    sae.load_state_dict(formats.folded(weights, found))
    return sae.eval()
