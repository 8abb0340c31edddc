"""``task=convert convert.src=legacy/*.json``: configs of the Tiny Ablation Lab as command lines of this program.

Conditions become a sweep over behaviours, batteries presets of interventions; nothing is run. The lines go to standard output,
and to a script with ``convert.out=FILE.sh``. Whatever of a file has no place here is told, by file and field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import write_atomic
from circuits.prose import put
from circuits.schema import BaseConfig, Dtype
from circuits.schema.fields import named_file
from circuits.words import visible

if TYPE_CHECKING:
    from circuits.tasks._convert.lines import Converted


@dataclass
class Options:
    """Options of convert."""

    src: Any = None  # legacy configs: a file, a directory, a pattern such as 'legacy/*.json', or a list of them
    out: str | None = named_file(None)  # a shell script to write the lines into, too
    dry_run: bool = False  # print only, also where convert.out names a script
    device: str | None = None  # instead of the files' own: cuda, cuda:1, mps, cpu
    dtype: Dtype | None = None  # instead of the files' own
    low_memory: bool | None = None  # hold less in memory, in small batches; null: where a file says so
    batch: int | None = None  # prompts a pass, instead of the files' own
    data: str | None = named_file(None)  # where corpora/ and splits/ are; null: lab/data or data above a config


def run(cfg: BaseConfig) -> int:
    """Print the command lines, tell what was not carried over, and write the script.

    Raises:
        UserError: no file, no JSON, or nothing that could be converted.
    """
    from circuits.tasks._convert.lines import converted, script
    from circuits.tasks._convert.runs import Asked

    options: Options = getattr(cfg, "convert")  # noqa: B009 (joined to the schema at run time)
    if options.batch is not None and options.batch < 1:
        raise UserError(f"convert.batch={options.batch}: 1 or more")
    dtype = options.dtype.value if options.dtype else None
    data = Path(options.data) if options.data else None
    asked = Asked(options.device, dtype, options.low_memory, options.batch, data)
    found: list[Converted] = []
    alone: list[Path] = []
    errors: list[str] = []
    for file in _files(options.src):
        try:
            one = converted(file, asked)
        except UserError as e:
            errors += e.messages
            continue
        if one is None:
            alone.append(file)
        else:
            found.append(one)
    if errors:
        raise UserError(errors)
    read = {path for one in found for path in one.batteries}
    notes = list(dict.fromkeys(note for one in found for note in one.notes))
    notes += [f"{file}: a battery, which no run here names" for file in alone if file.resolve() not in read]
    if not any(one.lines for one in found):
        raise UserError(["convert.src: nothing in it could be converted", *notes])
    _show(found, notes)
    if options.out is not None and not options.dry_run:
        out = Path(options.out)
        write_atomic(out, script(found).encode(), make=True)
        out.chmod(0o755)
        put(f"written to {out}")
    return 0


def _files(src: Any) -> list[Path]:
    """The files that ``convert.src`` names, each once.

    Raises:
        UserError: one is not there, or nothing is named.
    """
    patterns = [str(one) for one in src] if isinstance(src, (list, tuple)) else [str(src)] if src else []
    if not patterns:
        raise UserError("convert.src: which configs; write 'convert.src=legacy/*.json', or a list of files")
    found: list[Path] = []
    errors = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            path = path / "*.json"
        start = Path(path.anchor)
        matches = [path] if path.is_file() else sorted(start.glob(str(path.relative_to(start))))
        files = [match for match in matches if match.is_file()]
        if not files:
            errors.append(f"convert.src={pattern}: no such file")
        found += files
    if errors:
        raise UserError(errors)
    return list({file.resolve(): file for file in found}.values())


def _show(found: list[Converted], notes: list[str]) -> None:
    """The lines on standard output, so that they can be piped into a shell; what is told of them beside it."""
    for one in found:
        print(f"# {visible(str(one.file))}")
        for line in one.lines:
            print(visible(line))
    for note in notes:
        put(f"note: {visible(note)}")
