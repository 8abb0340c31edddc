"""``sae.from=``: an SAE by its directory, its artifact or its name on the hub. Whichever it was, its content enters the key.

``sae/tiny-L1-topk-9c41d2a81f3e`` or the hash alone name an artifact of this store, ``clt/…`` a cross-layer transcoder's;
``owner/name/DIRECTORY@COMMIT`` is one on the hub. What is found is written into the element's config as a directory, so that it
runs with what was checked.
"""

from __future__ import annotations

import re
from pathlib import Path

from circuits import schema
from circuits.errors import CircuitsError, UserError
from circuits.schema import BaseConfig
from circuits.store.keys import HASH_CHARACTERS

ARTIFACT = re.compile(rf"(?:(?:sae|clt)/)?(?:[^/]+-)?([0-9a-f]{{{HASH_CHARACTERS}}}(?:[0-9a-f]{{52}})?)")
_SHOWN = 8  # artifacts that are named in an error


def locate(cfg: BaseConfig) -> None:
    """Replace the names that ``<group>.from`` gives by the directories that they stand for.

    Raises:
        UserError: there is none.
    """
    from circuits.sae import cross_layer_sets

    for named in schema.naming(cfg, "from"):
        name = named.value
        if name is None:
            continue
        if Path(name).is_dir():
            if (Path(name) / cross_layer_sets.SET / "config.yaml").is_file():  # an artifact's directory
                setattr(named.section, named.name, str(Path(name) / cross_layer_sets.SET))
            continue
        try:
            setattr(named.section, named.name, str(_located(name, Path(cfg.outputs) / "artifacts")))
        except CircuitsError as e:
            raise UserError(f"{named.key.removesuffix('_')}={name}: {e}") from e


def _located(name: str, artifacts: Path) -> Path:
    from circuits.sae import cross_layer_sets, hub
    from circuits.store.store import verify

    if Path(name).is_absolute():
        raise UserError("no such directory")
    if found := ARTIFACT.fullmatch(name):
        kind = "clt" if name.startswith("clt/") else "sae"
        places = [p.parent for p in (artifacts / kind).glob(f"*-{found[1][:HASH_CHARACTERS]}/manifest.json")]
        if not places:
            there = sorted(f"{kind}/{p.parent.name}" for p in (artifacts / kind).glob("[!.]*/manifest.json"))
            alike = [one for one in there if one.startswith(name[: -len(found[1])])] or there
            shown = f"; there are: {' '.join(alike[:_SHOWN])}{' …' * (len(alike) > _SHOWN)}" if alike else ""
            raise UserError(f"no such artifact in {artifacts}{shown}")
        verify(places[0])
        return places[0] / cross_layer_sets.SET if kind == "clt" else places[0]
    return hub.directory(name)
