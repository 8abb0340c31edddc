"""What the elements of a sweep took, and the checklist, read from their directories for the page and for task=status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json, write_atomic, write_json
from circuits.launch.sweep import Sweep
from circuits.run import checklist, config, evidence, private, sampler, usage
from circuits.state import State
from circuits.store import registry
from circuits.store.places import CODE

if TYPE_CHECKING:
    from circuits.report.types import Check, Cost, Element

PROFILE = "profile/profile.json"  # circuits.profiling writes it
WINDOW = {"phase", "amount", "unit", "seconds", "by", "total", "operators", "trace", "table"}
LOCK = "requirements.lock"


def use_of(found: Sweep, item: Mapping[str, Any], facts: Mapping[str, Any]) -> usage.Use:
    """What an element asked for and took; `facts` is its status."""
    directory = found.directory(dict(item))
    return usage.use_of(config.read(directory / "config.yaml"), facts, _json(directory / "provenance.json"))


def next_time(found: Sweep, known: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """What to ask for next time, by task (a pipeline has several); `known` is every element's status."""
    uses: dict[str, list[usage.Use]] = {}
    for item in found.record["elements"]:
        use = use_of(found, item, known[item["index"]])
        uses.setdefault(str(item.get("task") or found.record["task"]), []).append(use)
    return {task: words for task, several in uses.items() if (words := usage.next_time(several))}


def next_line(found: Sweep, known: Mapping[int, Mapping[str, Any]]) -> str:
    """:func:`next_time` as one line; each task's by its name where there are several."""
    words = next_time(found, known)
    tasks = {str(item.get("task") or found.record["task"]) for item in found.record["elements"]}
    if len(tasks) == 1:
        return next(iter(words.values()), "")
    return "; ".join(f"{task}: {given}" for task, given in words.items())


def costs(found: Sweep, elements: Sequence[Element]) -> list[Cost]:
    """For the page: every element that ran; of those that are drawn with their samples."""
    from circuits.report.resources import DRAWN

    items = {item["index"]: item for item in found.record["elements"]}
    known = {one.index: cost for one in elements if (cost := _cost(found, items[one.index], one)) is not None}
    for cost in sorted(known.values(), key=lambda cost: -(cost.seconds or 0))[:DRAWN]:
        known[cost.index] = replace(cost, samples=sampler.read(found.directory(dict(items[cost.index]))))
    return list(known.values())


def _cost(found: Sweep, item: Mapping[str, Any], element: Element) -> Cost | None:
    from circuits.report.types import Cost

    if element.state is State.cached or not element.wall_s:
        return None
    directory = found.directory(dict(item))
    taken: Mapping[str, Any] = element.status.get("usage") or _so_far(sampler.read(directory), element.status)
    use = use_of(found, item, {**element.status, "usage": taken})
    kind = registry.kinds().get(use.task)
    band = usage.BANDS.get(use.task)
    return Cost(
        index=element.index,
        name=element.name,
        series=element.series,
        seconds=use.seconds,
        asked_seconds=use.asked_seconds,
        memory=use.memory,
        asked_memory=use.asked_memory,
        cores=use.cores,
        asked_cores=use.asked_cores,
        gpu_busy=use.gpu_busy,
        gpu_band=band[0] if band and use.gpu_busy is not None else None,
        gpu_memory=use.gpu_memory,
        gpu_memory_of=use.gpu_memory_of,
        celsius=use.celsius,
        hint=usage.hint(use.task, taken, kind.memory_keys[:1] if kind else ()),
        phases=taken.get("phases") or {},
        profile=private.public(_profile(directory)),
        place=str(Path(item["dir"]) / Path(PROFILE).parent),
    )


def _profile(directory: Path) -> dict[str, Any]:
    """What profile= found, as far as it is whole."""
    found = _json(directory / PROFILE)
    return {**found, "windows": [one for one in found.get("windows") or [] if set(one) >= WINDOW]} if found else {}


def _so_far(rows: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> dict[str, Any]:
    """Of an element that runs, or was killed, what its samples say."""
    return usage.summary(rows, 1, status.get("peak_gpu_bytes") is not None)


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none that can be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# -- the checklist ---------------------------------------------------------------------------------------------------


def checks(found: Sweep, elements: Sequence[Element], out: Path) -> list[Check]:
    """The checklist of a sweep, also written beside its page as JSON and as Markdown."""
    from circuits.report.types import Check

    manifests = {ref.label: _json(ref.path / "manifest.json") or None for one in elements for ref in one.artifacts}
    seen = [
        evidence.Evidence(
            one.name,
            one.state,
            config.read(found.directory(item) / "config.yaml"),
            one.status,
            one.provenance,
            {ref.label: manifests[ref.label] for ref in one.artifacts},
        )
        for item, one in zip(found.record["elements"], elements, strict=True)
    ]
    lock = CODE / LOCK
    scripts = len(list((found.path / "slurm").glob("*.sh")))
    asked = evidence.Sweep(
        seen,
        checklist.locked(lock.read_text(encoding="utf-8")) if lock.exists() else None,
        found.record["launcher"]["backend"] != "local",
        scripts,
    )
    items = checklist.items(asked)
    if items:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / checklist.FILE, private.public(checklist.as_json(items, found.id)))
        write_atomic(out / checklist.PAGE, private.hide(checklist.as_markdown(items, found.id)).encode())
    return [Check(item.title, item.passed, private.hide(item.reason)) for item in items]
