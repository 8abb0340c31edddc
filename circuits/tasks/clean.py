"""``task=clean``: what the store and the runs hold, and what may go; ``confirm=true`` deletes it.

Without ``confirm=true`` nothing is touched. What goes by itself are activations, which a command makes again, and what
processes that are gone left behind; everything else goes only when an archive holds the very same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file
from circuits.schema.reading import When
from circuits.words import size

if TYPE_CHECKING:
    from circuits.console import Terminal
    from circuits.launch.keeping.policy import Asked, Thing
    from circuits.launch.sweep import Sweep

READS = ("of", "confirm")
READ_WHEN = {"clean.archive": (When("clean.archived", (True,)),)}
SHOWN = 20  # things that are named


@dataclass
class Options:
    """Options of cleaning."""

    kinds: list[str] = field(
        default_factory=list
    )  # kinds of artifacts, leftovers, runs; none: activations and leftovers
    older_than: str | None = None  # only what was made before that: 12h, 30d, 2w
    archived: bool = False  # also what is kept otherwise, where an archive holds the very same files
    archive: str | None = named_file(None)  # that archive


def run(cfg: BaseConfig) -> int:
    """Show what may go; with ``confirm=true`` delete it. Exit code 1 when something could not be deleted."""
    from circuits.console import console
    from circuits.launch import sweep
    from circuits.launch.keeping import policy

    options: Any = getattr(cfg, "clean")  # noqa: B009 (joined to the schema at run time)
    policy.check(options.kinds, options.archived)
    outputs, multirun = Path(cfg.outputs), Path(cfg.multirun)
    age = policy.seconds(options.older_than)
    of = sweep.find(cfg.of, outputs, multirun) if cfg.of else None
    archive = _archive(options) if options.archived else None
    asked = policy.Asked(outputs, multirun, options.kinds, age, of, archive)
    sweeps = sweep.every(outputs, multirun)
    things = policy.plan(asked, sweeps)
    shown = console()
    _table(shown, things)
    going = [thing for thing in things if thing.stays is None]
    _named(shown, going, sweeps)
    return _delete(shown, asked, going, sweeps, cfg.confirm)


def _archive(options: Options) -> Any:
    from circuits.launch.keeping import tar

    if options.archive is None:
        raise UserError("clean.archived=true: in which archive? clean.archive=FILE")
    try:
        return tar.read(Path(options.archive))
    except tar.Unfit as e:
        raise UserError(f"clean.archive={options.archive}: {e}; nothing was deleted") from e
    except OSError as e:
        raise UserError(f"clean.archive={options.archive}: {e.strerror or e}") from e


def _table(shown: Terminal, things: Sequence[Thing]) -> None:
    from circuits.console import Rows

    table = Rows(("kind", "number", "size", "policy", "goes", "size", "what stays, and why"), texts=(6,))
    for what in dict.fromkeys(thing.what for thing in things):
        mine = [thing for thing in things if thing.what == what]
        going = [thing for thing in mine if thing.stays is None]
        reasons = Counter(thing.stays for thing in mine if thing.stays is not None)
        told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
        more = f"; {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
        policies = " ".join(dict.fromkeys(thing.policy for thing in mine)) if what != "leftovers" else "nobody's"
        sums = [size(sum(thing.bytes for thing in some)) for some in (mine, going)]
        table.add(what, str(len(mine)), sums[0], policies, str(len(going)), sums[1] if going else "", told + more)
    if things:
        shown.table(table)


def _named(shown: Terminal, going: Sequence[Thing], sweeps: Sequence[Sweep]) -> None:
    """What goes, one line each; what stands on it; the commands that make it again."""
    commands = {one.id: one.record["command"] for one in sweeps}
    for thing in going[:SHOWN]:
        on = f"  {len(thing.under)} made from it, which stay readable" if thing.under else ""
        about = f"  {thing.policy}" if thing.what == "leftovers" else ""
        shown.tell(f"  {thing.name}  {size(thing.bytes)}{about}{on}")
    if len(going) > SHOWN:
        shown.tell(f"  … and {len(going) - SHOWN:,} more")
    regenerable = [thing for thing in going if thing.policy == "regenerable"]
    again = dict.fromkeys(commands[thing.by] for thing in regenerable if thing.by in commands)
    for command in list(again)[:SHOWN]:
        shown.tell(f"made again by: {command}")


def _delete(shown: Terminal, asked: Asked, going: Sequence[Thing], sweeps: Sequence[Sweep], confirm: bool) -> int:
    from circuits.launch.keeping import deleting

    total = size(sum(thing.bytes for thing in going))
    if not going:
        shown.tell("nothing to delete")
        return 0
    if not confirm:
        shown.tell(f"nothing was deleted; the same with confirm=true deletes {len(going):,}, {total}")
        return 0
    left = deleting.delete(asked, going)
    deleting.empty_days([one for one in sweeps if not one.path.exists()])
    gone = [thing for thing in going if all(thing is not other for other, _ in left)]
    shown.tell(f"deleted {len(gone):,}, {size(sum(thing.bytes for thing in gone))}")
    for thing, why in left:
        shown.tell(f"  not deleted: {thing.name}: {why}")
    return 1 if left else 0
