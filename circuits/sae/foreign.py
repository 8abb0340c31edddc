"""An SAE's directory, of whichever of the formats that are read here."""

from __future__ import annotations

from pathlib import Path

from circuits.sae import formats, sparsify
from circuits.sae.directory import is_sparsify
from circuits.sae.modules import SAE


def load(directory: Path) -> SAE:
    """The SAE in a SAELens or sparsify directory, in float32 on the CPU."""
    return sparsify.load(directory) if is_sparsify(directory) else formats.load(directory)
