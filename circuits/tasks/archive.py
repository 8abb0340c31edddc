"""``task=archive of=SWEEP archive.path=DIR``: a sweep and what it stands on in one tar; ``archive.restore=FILE``: back again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file
from circuits.schema.reading import SET, When
from circuits.words import size, visible

READS = ("of",)
_MAKES = When("archive.restore", (None,))
READ_WHEN = {
    "of": (_MAKES,),
    "archive.path": (_MAKES,),
    "archive.kinds": (_MAKES, When("of", (SET,), hint="of=SWEEP says of what")),
}


@dataclass
class Options:
    """Options of the archive."""

    path: str | None = named_file(None)  # the directory for SWEEP.tar, or the tar itself; nothing is replaced
    kinds: list[str] = field(default_factory=list)  # kinds of artifacts; none: all but those that are made again
    restore: str | None = named_file(None)  # an archive to put back into outputs and multirun


def run(cfg: BaseConfig) -> int:
    """Archive a sweep, or restore one; exit code 1 where something that is there was not replaced."""
    options: Any = getattr(cfg, "archive")  # noqa: B009 (joined to the schema at run time)
    return _restore(cfg, Path(options.restore)) if options.restore is not None else _archive(cfg, options)


def _archive(cfg: BaseConfig, options: Options) -> int:
    from circuits.console import console, relative
    from circuits.launch import sweep
    from circuits.launch.keeping import archive

    if cfg.of is None:
        raise UserError("archive: of which sweep? of=SWEEP; task=status lists them; archive.restore=FILE puts one back")
    if options.path is None:
        raise UserError("archive: where to? archive.path=DIR")
    found = sweep.find(cfg.of, Path(cfg.outputs), Path(cfg.multirun))
    target = archive.target_of(options.path, found)
    archive.refuse_live(found, "archive")
    chosen = archive.choose(found, Path(cfg.outputs) / "artifacts", options.kinds)
    shown, elements = console(), found.record["elements"]
    shown.tell(f"{found.id} · {found.record['task']} · {len(elements)} element{'s' * (len(elements) != 1)}")
    for kind, count, total in archive.by_kind(chosen.taken):
        shown.tell(f"  {kind}  {count}  {size(total)}")
    for kind, count, total in archive.by_kind(chosen.left):
        why = "made again when it is needed" if archive.policy(kind) == "regenerable" else "not among archive.kinds"
        shown.tell(f"  left out: {kind}  {count}  {size(total)} ({why})")
    if chosen.absent:
        shown.tell(f"  not in the store any more: {' '.join(chosen.absent)}")
    if chosen.links:
        shown.tell(f"  left out: {chosen.links} links")
    made = archive.make(found, chosen, target)
    shown.tell(f"archive   {relative(made.path)}  {size(made.bytes)}  {made.files:,} files, read back and checked")
    shown.tell(f"sha256    {made.sha256}")
    shown.tell(f"restore   python launch.py task=archive archive.restore={relative(made.path)}")
    return 0


def _restore(cfg: BaseConfig, file: Path) -> int:
    from circuits.console import console
    from circuits.launch.keeping.restore import restore

    done = restore(file, Path(cfg.outputs), Path(cfg.multirun))
    shown, names = console(), done.listing.about.get("sweep")
    shown.tell(f"{file.name}: {len(done.listing.files):,} files checked, of {visible(str(names))}")
    for what, units in (("restored", done.new), ("there already", done.equal)):
        for unit in units:
            shown.tell(f"  {what:<13}  {unit}")
    for unit, why in done.differing.items():
        shown.tell(f"  left as it is  {unit}: {why}")
    return 1 if done.differing else 0
