"""A bundle: a study to take home, in one folder that needs nothing of this program, of this machine or of the network.

::

    README.md                    what every file is and how it opens
    report.html  figures/        the page; each figure as SVG, PNG and the numbers in it
    metrics.csv                  one row an artifact: where it comes from in the sweep, and its numbers
    metrics/KIND/NAME.json       the same with all that was measured
    tables/KIND/NAME/*.csv       the artifacts' tables, and those of the prompts and measurements that they were made from
    configs/ELEMENT.yaml         what decided each element
    artifacts.json               ids, keys, inputs, code and libraries
    saes/NAME/                   the SAEs that were chosen, as SAELens directories with a card
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from circuits import tables
from circuits.errors import UserError
from circuits.files import read_json, write_atomic
from circuits.launch.keeping import holdings, moved
from circuits.launch.keeping.archive import policy
from circuits.launch.keeping.holdings import Holding
from circuits.launch.keeping.public import Public
from circuits.launch.sweep import Sweep
from circuits.run import config, status
from circuits.store import registry
from circuits.store.layers import parse_layers
from circuits.store.places import safe_name
from circuits.store.store import MANIFEST

LARGEST = 64 << 20  # bytes of a table: more is opened from the store
METRICS = "metrics.json"
TEXTS = (".csv", ".jsonl")
PAGES = (".html", ".svg", ".csv", ".md", ".yaml", ".jsonl", ".json")

WriteSae = Callable[[Holding, Path], None]


@dataclass(frozen=True)
class Study:
    """A sweep with what it made."""

    sweep: Sweep
    made: Sequence[Holding]
    below: Sequence[Holding]  # what is kept of that from which they were made (prompts, measurements)
    saes: Sequence[Holding]  # that its elements made or stand on
    store: Path


def study(sweep: Sweep, store: Path) -> Study:
    """A sweep with its artifacts.

    Raises:
        UserError: it has made nothing that is there.
    """
    known = holdings.every(store)
    refs = holdings.made_by(sweep)
    made = sorted((known[ref] for ref in refs if ref in known), key=lambda one: one.id)
    if not made:
        raise UserError(
            f"of={sweep.id}: none of its artifacts is in {store}; task=status of={sweep.id} says how it went"
        )
    inside = holdings.closure(refs | holdings.stands_on(sweep, store), known)
    there = sorted((known[ref] for ref in inside if ref in known), key=lambda one: one.id)
    below = [one for one in there if one not in made and policy(one.kind) == "keep"]
    return Study(sweep, made, below, [one for one in there if one.kind == "sae"], store)


def chosen(found: Study, wanted: Sequence[str]) -> list[Holding]:
    """The SAEs that ``export.saes`` names: by id, name, hash or layers, or all of them.

    Raises:
        UserError: a word names none; the message lists them.
    """
    there = {one.id: one for one in found.saes}
    picked: dict[str, Holding] = {}
    for word in map(str, wanted):
        mine = {id_: one for id_, one in there.items() if word == "all" or word in (id_, one.path.name, one.ref[1])}
        if not mine:
            try:
                layers = parse_layers(word, None)
            except UserError:
                layers = ()
            mine = {id_: one for id_, one in there.items() if set(one.manifest["layers"]) & set(layers)}
        if not mine:
            listed = " ".join(there) or "none"
            raise UserError(f"export.saes: {word}: no SAE of {found.sweep.id}; ids, layers or all; there are: {listed}")
        picked |= mine
    return list(picked.values())


def write(found: Study, saes: Sequence[Holding], out: Path, write_sae: WriteSae) -> int:
    """Write the bundle into the directory `out`, which is made; how many files it has."""
    out.mkdir(parents=True)
    public = _public(found)
    registry.modules()["report"].make(found.sweep.path, out, found.store)
    left = _tables(found, out / "tables")
    _metrics(found, out, public)
    _configs(found, out / "configs", public)
    facts = [_facts(one, public) for one in (*found.made, *found.below)]
    write_atomic(out / "artifacts.json", (json.dumps(facts, indent=2) + "\n").encode())
    for one in saes:
        write_sae(one, out / "saes" / one.path.name)
    write_atomic(out / "README.md", public.text(_readme(found, left, out)).encode())
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in PAGES:
            public.file(path)
    return sum(path.is_file() for path in out.rglob("*"))


def _public(found: Study) -> Public:
    sweep = found.sweep
    records: list[Any] = [sweep.record, *(dict(one.manifest) for one in (*found.made, *found.below))]
    for item in sweep.record["elements"]:
        directory = sweep.directory(item)
        records += [status.read(directory, trust_running=True), config.read(directory / "config.yaml")]
        records += [read_json(directory / "provenance.json")] if (directory / "provenance.json").exists() else []
    given = (sweep.record["directory"], sweep.record["store"], Path(sweep.record["store"]).parent)
    places = [found.store.parent, sweep.path.parents[1], Path.cwd(), *map(Path, given)]
    return Public(places, records)


def _tables(found: Study, out: Path) -> list[str]:
    """The tables of artifacts and runs as CSV; what was too large, by name."""

    left = []
    for one in (*found.made, *found.below):
        if policy(one.kind) == "regenerable":
            continue
        for name, path in holdings.files_below(one.path)[0].items():
            if path.suffix not in (".parquet", *TEXTS):
                continue
            if path.stat().st_size > LARGEST:
                left.append(f"{one.id}/{name}")
                continue
            target = out / one.kind / one.path.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":
                table = tables.read(path).map(_cell)
                table.to_csv(target.with_suffix(".csv"), index=False, lineterminator="\n")
            else:
                shutil.copyfile(path, target)
    for item in found.sweep.record["elements"]:
        for path in sorted(found.sweep.directory(item).glob("*.csv")):
            target = out / "runs" / item["name"] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return left


def _cell(value: Any) -> Any:
    """A cell of a table as CSV can hold it: what is a list, whole and as JSON."""
    return json.dumps(value.tolist()) if getattr(value, "shape", ()) else value


def _metrics(found: Study, out: Path, public: Public) -> None:
    """``metrics.csv`` and ``metrics/``."""
    rows = []
    asked: dict[str, Mapping[str, Any]] = {}
    for item in found.sweep.record["elements"]:
        for artifact in item["artifacts"].values():
            asked.setdefault(artifact, item)
    for one in (*found.made, *found.below):
        if not (one.path / METRICS).exists():
            continue
        measured = public.value(read_json(one.path / METRICS))
        place = out / "metrics" / one.kind
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / f"{one.path.name}.json", (json.dumps(measured, indent=2) + "\n").encode())
        if one in found.below:
            continue
        item = asked.get(one.id, {})
        first = {"artifact": one.id, "element": item.get("name", ""), **public.value(item.get("swept", {}))}
        rows.append({**first, **{name: value for name, value in measured.items() if _plain(value)}})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(rows)
    write_atomic(out / "metrics.csv", text.getvalue().encode())


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))


def _configs(found: Study, out: Path, public: Public) -> None:
    """What decided each element: the sections that its task reads."""
    out.mkdir()
    for element in moved.elements(found.sweep, found.store):
        text = yaml.safe_dump(public.value(config.plain(element.config)), sort_keys=False, allow_unicode=True)
        write_atomic(out / f"{safe_name(element.name)}.yaml", text.encode())


def _facts(one: Holding, public: Public) -> dict[str, Any]:
    """Where an artifact comes from; nothing of a machine or an account."""
    manifest = one.manifest
    kept = ("kind", "key", "version", "layers", "created", "inputs", "code", "tainted")
    facts = {"id": one.id, **{name: manifest[name] for name in kept if name in manifest}}
    facts["libraries"] = manifest.get("environment", {}).get("packages", {})
    facts["sha256"] = {name: file["sha256"] for name, file in manifest["files"].items() if name != MANIFEST}
    found: dict[str, Any] = public.value(facts)
    return found


OPENS: dict[str, tuple[str, str]] = {
    "report.html": ("the study on one page: answer, figures, tables, provenance", "any browser"),
    "figures": ("each figure of the page, and the numbers in it", "`.svg` `.png`: any viewer; `.csv`: any spreadsheet"),
    "metrics.csv": (
        "a row for each artifact: its element, what was swept, its numbers", "any spreadsheet, `pandas.read_csv`"),
    "metrics": ("the same with intervals and controls, a file for each artifact", "any editor, `json.load`"),
    "tables": (
        "the artifacts' tables, and those of what they were made from",
        "any spreadsheet, `pandas.read_csv`; `.jsonl`: a record a line"),
    "configs": ("every option that the elements read, a file for each", "any editor, `yaml.safe_load`"),
    "artifacts.json": (
        "id, key, inputs, code commit, libraries, file hashes of each artifact", "any editor, `json.load`"),
    "saes": (
        "the SAEs' weights and their cards, as SAELens has them",
        "`SAE.load_from_disk(DIR)` of sae_lens, `safetensors.torch.load_file`"),
    "checklist.md": ("what a reader needs to get the same numbers again, and what of it is there", "any editor"),
    "checklist.json": ("the same for programs", "any editor, `json.load`"),
}  # fmt: skip
"""What stands in a bundle, and what opens it."""


def _readme(found: Study, left: Sequence[str], out: Path) -> str:
    record = found.sweep.record
    lines = [
        f"# {record['name'] or record['id']}", "",
        *([record["note"], ""] if record.get("note") else []),
        f"Made by `{record['command']}` on {record['created'][:10]}, sweep `{record['id']}`. Nothing here needs the program that "
        "made it, or a network.", "",
        "| file | what it is | opens with |", "|---|---|---|",
    ]  # fmt: skip
    there = {path.name: path for path in out.iterdir()}
    for name in sorted(there, key=lambda name: ([*OPENS, name].index(name), name)):
        what, how = OPENS.get(name, ("made with the page", "any editor"))
        lines.append(f"| `{name}{'/' if there[name].is_dir() else ''}` | {what} | {how} |")
    if left:
        lines += ["", f"Too large for a table here, and left in the store: {' '.join(left)}"]
    lines += ["", "A number on the page names the artifact that it comes from; its key stands in `artifacts.json`.", ""]
    return "\n".join(lines)
