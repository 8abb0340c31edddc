"""``export.format=source_layout of=STUDY``: a study of pictures under the names of the documents that it comes from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.files import read_json, write_json


def _of_a_part(one: Any) -> tuple[bool, str]:
    """Statistics of all pictures come before those of some, which have the same name there."""
    if one.kind != "bias_stats":
        return False, one.id
    return json.loads(one.manifest["payload"])["config"]["bias_stats"]["where"] is not None, one.id


def write(found: Any, out: Path) -> int:
    """Write every artifact of a study that has a place there; how many files.

    Raises:
        UserError: the study is not one of pictures.
    """
    from circuits.activations.store import ActivationStore
    from circuits.data.pictures.saved import read
    from circuits.features import source_layout

    every = sorted({one.id: one for one in (*found.made, *found.below)}.values(), key=_of_a_part)
    sets = [one for one in every if one.kind == "prompts" and (one.path / "pictures.parquet").exists()]
    if not sets:
        raise UserError(
            f"of={found.sweep.id}: no set of pictures among its artifacts; source_layout is of pipeline=gender_bias"
        )
    pictures, written = read(sets[0].path), []
    source_layout.write_pictures(pictures, out)
    source_layout.write_report(found.sweep.path, out)
    for one in every:
        if one.kind == "activations" and "language" in (store := ActivationStore(one.path)).facts:
            written.append(source_layout.write_activations(store, pictures, out))
        elif one.kind == "sae":
            written.append(source_layout.write_sae(one.path, int(one.manifest["layers"][0]), out))
        elif one.kind == "bias_stats" and not (out / source_layout.RESULTS).exists():
            results = read_json(one.path / "results.json")
            stamped = {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), **results}
            source_layout.write_result(stamped, out / source_layout.RESULTS)
        elif one.kind == "interventions" and (one.path / "cross_layer.json").exists():
            cross = read_json(one.path / "cross_layer.json")
            known = (
                read_json(out / source_layout.CROSS_LAYER)
                if (out / source_layout.CROSS_LAYER).exists()
                else {"layers": []}
            )
            if len(cross["layers"]) > len(known["layers"]):
                source_layout.write_result(cross, out / source_layout.CROSS_LAYER)
    languages = pictures.languages
    layers = sorted({int(path.stem.split("_")[1]) for path in written if path.name.startswith("layer_")})
    facts = {
        "layers": layers,
        "languages": languages,
        "expected": len(layers) * len(languages),
        "found": sum(path.name.startswith("layer_") for path in written),
        "artifacts": sorted(one.id for one in every),
    }
    write_json(out / source_layout.EXTRACTION / "extraction_metadata.json", facts, make=True)
    return sum(path.is_file() for path in out.rglob("*"))
