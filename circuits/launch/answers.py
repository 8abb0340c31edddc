"""What every launcher does beside running elements: answers from the store, their log, the page, the exit code."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError, UserError
from circuits.files import read_json, write_json
from circuits.launch.plan import Element
from circuits.launch.sweep import Sweep
from circuits.run import config, status, tracked
from circuits.schema import TrackingMode
from circuits.state import State, state_of
from circuits.store import gates, registry
from circuits.store.contents import Contents
from circuits.store.kinds import Kind
from circuits.store.places import LOG, RECORD
from circuits.store.store import Artifact, Store, content_hash

CACHED_S = 60.0  # that the cached elements of a sweep may take W&B, all together
FAILED_ITEMS = "failed_items.json"
Say = Callable[[str], None]


def answer_all(sweep: Sweep, elements: Iterable[Element], store: Store, note: Say) -> None:
    """The answers of these elements; what was made by other code is said once for each commit, with the first artifact."""
    older: dict[str, list[str]] = {}
    for element in elements:
        answer_cached(sweep, element, store, note, older)
    _tell_older(sweep, older, note)


def _tell_older(sweep: Sweep, older: Mapping[str, Sequence[str]], note: Say) -> None:
    here = (sweep.record["code"]["commit"] or "?")[:10]
    for commit, ids in older.items():
        more, verb = (f" and {len(ids) - 1} more", "were") if len(ids) > 1 else ("", "was")
        note(f"{ids[0]}{more} {verb} made by commit {commit}; this is {here}")


def answer_cached(
    sweep: Sweep, element: Element, store: Store, note: Say, older: dict[str, list[str]] | None = None
) -> None:
    """The element's answer from the store, gates included. One that has answered (in a sweep that is recovered) keeps its own.

    `older` collects what was made by other code, by its commit; without it that is said at once.
    """
    if state_of(status.read(sweep.directory(element))).measured:
        return
    kind = registry.kind(element.task)
    asked = gates.refusals(kind.gates(element.cfg), element.cfg, store.find, Contents(store.root / ".hashes.json"))
    entries, gate = [], "; ".join(asked) or None
    for one, key in element.keys.items():
        layer = one[0] if isinstance(one, tuple) else one
        artifact = store.find(key)
        if artifact is None:
            raise UserError(f"{key.id} went away while it was being read; run the same command again")
        metrics = read_json(artifact.path / "metrics.json")
        shown = {**metrics, **kind.derived(element.cfg, metrics)}
        entries.append(status.entry(kind, artifact, layer, shown, cached=True))
        gate = gate or kind.gate(element.cfg, metrics)
        found: dict[str, list[str]] = {} if older is None else older
        _note_provenance(sweep, artifact, store, note, found)
        if older is None:
            _tell_older(sweep, found, note)
    facts: dict[str, Any] = {"task": kind.name, "began": status.now(), "ended": status.now(), "artifacts": entries}
    if gate:
        facts.update(error=gate, exit_code=3)
    status.write_plain(sweep.directory(element), State.gate if gate else State.cached, **facts)


def gate_of(element: Element, store: Store, contents: Contents) -> str | None:
    """Why the answer from the store to `element` is refused by a gate, or None."""
    kind = registry.kind(element.task)
    if asked := gates.refusals(kind.gates(element.cfg), element.cfg, store.find, contents):
        return "; ".join(asked)
    if type(kind).gate is Kind.gate:
        return None
    found = [artifact for key in element.keys.values() if (artifact := store.find(key)) is not None]
    measured = (kind.gate(element.cfg, read_json(one.path / "metrics.json")) for one in found)
    return next(filter(None, measured), None)


def refuse(sweep: Sweep, refused: Iterable[tuple[Element, str]]) -> None:
    """Close elements that a gate keeps from starting."""
    for element, why in refused:
        error = f"not started: {why}"
        status.write_plain(sweep.directory(element), State.cancelled, task=element.task, error=error, exit_code=1)


def _note_provenance(sweep: Sweep, artifact: Artifact, store: Store, note: Say, older: dict[str, list[str]]) -> None:
    """Say when an answer from the store was made from another build of an input; put it to the `older` if by other code."""
    here, there = sweep.record["code"], artifact.manifest["code"]
    if here["commit"] != there["commit"]:
        older.setdefault((there["commit"] or "?")[:10], []).append(artifact.id)
    for name, facts in artifact.manifest["inputs"].items():
        manifest = store.root / facts["id"] / "manifest.json"
        if manifest.exists() and facts["content"]:
            found = read_json(manifest)
            now = content_hash(found["files"], found.get("measured", ()))
            before = content_hash(found["files"], found.get("measured", ()), besides=())  # as it was once counted
            if facts["content"] not in (now, before):
                note(
                    f"{artifact.id} was made from another build of its input {name} ({facts['id']}: content "
                    f"{facts['content'][:10]} then, {now[:10]} now); reuse=force makes it anew"
                )


def log_cached(sweep: Sweep, directories: Iterable[Path], note: Say) -> None:
    """Cached elements log their stored summary, so that a sweep is whole in W&B too. Once for each, and in W&B as many as
    `CACHED_S` are enough for: the job of the element that ends last waits for it."""
    from circuits.run.tracking import FILE, Tracker

    told: set[str] = set()

    def warn(text: str) -> None:  # where the files are stands in the other elements' logs
        if text.startswith("warning") and text not in told:
            told.add(text)
            note(text)

    wanted = [directory for directory in directories if not (directory / FILE).exists()]
    end, left = time.monotonic() + CACHED_S, 0
    for directory in wanted:
        facts = status.read(directory)
        record, cfg = read_json(directory / RECORD), config.load(directory / "config.yaml")
        kind, group = registry.kind(record["task"]), sweep.record["group"]
        budget = end - time.monotonic()
        if budget <= 0 and cfg.tracking.mode is not TrackingMode.disabled:
            left, cfg.tracking.mode = left + 1, TrackingMode.disabled
        given, own = (sweep.id, record["overrides"], record["swept"]), [*tracked.tags(kind, cfg, None), "cached"]
        tracker = Tracker(directory, cfg.tracking, group, own, warn, kind.name, stored=True)
        for item in facts["artifacts"]:
            layer, path = item["layer"], Path(item["path"])
            metrics = {**read_json(path / "metrics.json"), **item["metrics"]}
            settings = tracked.settings(kind, cfg, *given, artifact=item["id"], cached=True)
            tags, key = tracked.tags(kind, cfg, layer), tracked.stored(item["id"], record["name"])
            tracked.tell(tracker, f"{sweep.id}/{record['name']}", key, layer, metrics, settings, tags, path)
        tracker.close(max(0.0, min(CACHED_S, budget)))
    if left:
        note(
            f"{left} of {len(wanted)} cached elements are not in W&B: {CACHED_S:.0f} s were up; their metrics.jsonl has all"
        )


@contextlib.contextmanager
def telling(sweep: Sweep, directories: Sequence[Path], note: Say) -> Iterator[None]:
    """Cached elements are logged (:func:`log_cached`) while the block runs; what there is to say of it comes at its end."""
    said: list[str] = []
    wrong: list[Exception] = []

    def work() -> None:
        try:
            log_cached(sweep, directories, said.append)
        except Exception as e:
            wrong.append(e)

    thread = threading.Thread(target=work, name="cached", daemon=True)
    thread.start()
    yield
    thread.join()
    for text in said:
        note(text)
    if wrong:
        raise wrong[0]


def write_failed(sweep: Sweep, facts: Mapping[int, Mapping[str, Any]], note: Say) -> None:
    """``failed_items.json`` in the sweep's directory: what failed, why, and where its log is; no file where nothing did."""
    items = {item["index"]: item for item in sweep.record["elements"]}
    failed = [
        {
            "index": index,
            "name": items[index]["name"],
            "state": state_of(found),
            "error": found.get("error"),
            "log": str(sweep.directory(items[index]) / LOG),
        }
        for index, found in sorted(facts.items())
        if (state := state_of(found)).badly or state is State.gate
    ]
    try:
        if failed:
            write_json(sweep.path / FAILED_ITEMS, failed)
        else:
            (sweep.path / FAILED_ITEMS).unlink(missing_ok=True)
    except CircuitsError as e:  # a full disk: the exit code and the table still tell
        note(str(e))


def make_report(sweep: Sweep, note: Say) -> Path | None:
    """The sweep's page; a sweep is done, whatever became of its page."""
    try:
        page: Path = registry.modules()["report"].make(sweep.path)
        return page
    except Exception as e:
        note(f"no report ({type(e).__name__}: {e}); task=report of={sweep.id} makes it again")
        return None


def exit_code(facts: Iterable[dict[str, Any]]) -> int:
    """Of a whole sweep, from its elements' facts: 0, the one reason that all failures share (2 or 3), else 1."""
    codes = {_code(f) for f in facts}
    codes.discard(0)
    if not codes:
        return 0
    return codes.pop() if len(codes) == 1 and codes <= {2, 3} else 1


def _code(facts: Mapping[str, Any]) -> int:
    state = state_of(facts)
    return 0 if state.well else 3 if state is State.gate else facts.get("exit_code") or 1
