"""A sweep's saved files as the report reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json
from circuits.run import status, sweep

if TYPE_CHECKING:
    from circuits.report.types import Element


def element(found: sweep.Sweep, item: dict[str, Any]) -> Element:
    """One element of a sweep, with its state and the artifacts it answered with."""
    from omegaconf import OmegaConf

    from circuits.report.types import ArtifactRef, Element

    directory = found.directory(item)
    facts = status.read(directory)
    state = facts.get("state", "waiting")
    provenance = directory / "provenance.json"
    refs = [
        ArtifactRef(
            kind=a["kind"], key=a["id"].rsplit("-", 1)[-1], path=Path(a["path"]), layer=a["layer"], label=a["id"]
        )
        for a in facts.get("artifacts") or []
    ]
    return Element(
        index=item["index"],
        name=item["name"],
        overrides=item["overrides"],
        swept=item["swept"],
        state="failed" if state == "killed" else state,
        error=facts.get("error"),
        log=str(Path(item["dir"]) / "run.log"),
        wall_s=facts.get("wall_s"),
        artifacts=refs,
        config=OmegaConf.to_container(OmegaConf.load(directory / "config.yaml")),  # type: ignore[arg-type]
        status=facts,
        provenance=read_json(provenance) if provenance.exists() else {},
    )
