"""Stores that were moved or copied: records name places as they were, artifacts are found by their ids where the store is now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.errors import UserError
from circuits.launch import saved
from circuits.launch.sweep import Sweep

if TYPE_CHECKING:
    from circuits.report.types import ArtifactRef, Element


def elements(found: Sweep, store: Path | None = None) -> list[Element]:
    """A sweep's elements as the report reads them, with their artifacts below `store` where they are not where they were."""
    return [replace(one, artifacts=list(_found(one.artifacts, store))) for one in saved.elements(found)]


def _found(refs: Iterable[ArtifactRef], store: Path | None) -> Iterable[ArtifactRef]:
    for ref in refs:
        here = store / ref.label if store is not None else ref.path
        yield replace(ref, path=here) if not ref.path.exists() and here.exists() else ref


def refuse(found: Sweep, outputs: Path) -> None:
    """Refuse to go on in a store that is not there.

    Raises:
        UserError: the sweep's store was moved; the message is the command that makes the rest in this one.
    """
    before = Path(found.record["store"])
    if before != outputs / "artifacts" and not before.exists():
        raise UserError(
            f"of={found.id}: it was made in {before}, which is not there; the same command takes what is in {outputs} and makes "
            f"the rest: {found.record['command']}"
        )
