"""One element of a sweep: ``python -m circuits.run.element DIR``, the same command here, on a cluster and by hand.

Several directories are a pack (``pack=N``): one after the other in this process, each with its own log, status and outcome.

``DIR`` holds ``config.yaml`` (resolved) and ``element.json``. No Hydra and no pickle is involved, and the exit status is the
truth: 0 done, 1 failed, 2 DIR is no element's, 3 a gate said no, 128 + signal when it was asked to stop.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from circuits.run.signals import StopFlag, Stopped  # first: signals are handled before anything heavy is imported

RECORD = "element.json"
LOG = "run.log"
SWEEP = "sweep.json"
HURRIED_S = 5.0  # for W&B, when we were asked to stop: whoever asked will not wait long


def main(argv: list[str]) -> int:
    """Run the element in directory ``argv[0]``, or the pack of several."""
    stop = StopFlag().install(grace_s=float(os.environ.get("CIRCUITS_GRACE_S", "30")))
    if not argv:
        print("usage: python -m circuits.run.element DIR [DIR …]", file=sys.stderr)
        return 2
    directories = [Path(word).resolve() for word in argv]
    return run(directories[0], stop) if len(argv) == 1 else run_pack(directories, stop)


def run_pack(directories: list[Path], stop: StopFlag) -> int:
    """Run these elements one after the other; the exit code of the one that was stopped, else of the first that failed.

    Asked to stop, the one that runs saves its work; those that were not begun stay as they are, for the next time.
    """
    codes = []
    for number, directory in enumerate(directories, 1):
        if (before := _ended_before(directory)) is not None:
            codes.append(before)
            continue
        if "CIRCUITS_STDOUT_IS_LOG" in os.environ:  # else a person's terminal
            _output_to(directory / LOG)
        codes.append(run(directory, stop, f"pack {number}/{len(directories)}"))
        if codes[-1] > 128:  # stopped; one that was asked between two elements stops the next as it begins
            break
    return next((code for code in codes if code > 128), next((code for code in codes if code), 0))


def _ended_before(directory: Path) -> int | None:
    """The exit code of an element that had ended when Slurm queued its pack's array element again; None of any other."""
    from circuits.run import status

    if int(os.environ.get("SLURM_RESTART_COUNT") or "0") == 0 or not _on_cluster():
        return None
    facts = status.read(directory, trust_running=True)
    return int(facts.get("exit_code") or 0) if facts.get("state") in ("done", "cached", "gate", "failed") else None


def _output_to(log: Path) -> None:
    """Send standard output and errors, of libraries too, to this element's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.environ["CIRCUITS_STDOUT_IS_LOG"] = str(log)


def run(directory: Path, stop: StopFlag, place: str = "") -> int:
    """Run the element in `directory` in this process; its exit code. `place` in a pack is said in its log."""
    from circuits.errors import CircuitsError, GateError
    from circuits.files import read_json
    from circuits.run import config
    from circuits.run.status import Status

    try:
        record = read_json(directory / RECORD)
        cfg = config.load(directory / "config.yaml")
        log = Log(directory / LOG)
        status = Status(directory, record["task"])
    except FileNotFoundError as e:
        print(f"error: {e.filename}: no such file; {directory} is no element's directory", file=sys.stderr)
        return 2
    except CircuitsError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    _set_threads(cfg.task.resources.cpus)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")
    state, code, error, trace, again = "done", 0, None, None, ""
    if place:
        log.write(place)
    try:
        _perform(directory, record, cfg, status, stop, log)
    except Stopped as e:
        state, error, again = _stopped(str(e), status)
        code = 128 + (
            signal.SIGUSR2 if str(e) == "SIGUSR2" else signal.SIGINT if str(e) == "SIGINT" else signal.SIGTERM
        )
    except GateError as e:
        state, code, error = "gate", e.exit_code, str(e)
    except CircuitsError as e:
        state, code, error, trace = "failed", 1, str(e), traceback.format_exc()
    except Exception as e:
        state, code, error, trace = "failed", 1, _explain(e, cfg), traceback.format_exc()
    if trace:
        log.write(trace.rstrip())
    log.write(f"error: {error}" if error else "done")
    try:
        status.finish(state, code, error, trace)
        _provenance(directory, record, cfg, status)
    except CircuitsError as e:  # a full disk: the exit code still tells
        log.write(f"error: {e}")
        code = code or 1
    if _on_cluster():
        from circuits.run.slurm import requeue

        if again == "ask" and not requeue.queue_again(log.write):
            status.finish(
                "interrupted", code, "could not be queued again; the same command goes on from what was saved"
            )
            again = ""
        if not again:
            requeue.close(directory, log.write)
    log.close()
    return code


def _on_cluster() -> bool:
    """Whether a job of ours runs this (not somebody's own ``salloc`` session)."""
    return "CIRCUITS_SLURM_TAG" in os.environ and "SLURM_ARRAY_JOB_ID" in os.environ


def _stopped(reason: str, status: Any) -> tuple[str, str, str]:
    """Of an element that was asked to stop: its state, the line, and whether Slurm is to be asked to queue it again, or has."""
    if not _on_cluster():
        return "interrupted", f"stopped ({reason}); the same command goes on from what was saved", ""
    from circuits.run.slurm import requeue

    verdict = requeue.judge(reason, status.facts["timeouts"])
    status.facts["timeouts"] += verdict.timed_out
    state = "failed" if verdict.timed_out and not verdict.again else "interrupted"
    return state, verdict.error, "ask" if verdict.again else "queued" if verdict.queued else ""


def _set_threads(count: int) -> None:
    """The task's threads, whatever the shell or an element before us in this process had."""
    os.environ.update(OMP_NUM_THREADS=str(count), MKL_NUM_THREADS=str(count))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


class Log:
    """Lines with their time; to standard output, and to run.log when a launcher has not already sent that there."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] | None = None
        if os.environ.get("CIRCUITS_STDOUT_IS_LOG") != str(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, text: str) -> None:
        """One entry."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        try:
            print(line, flush=True)
            if self._file is not None:
                print(line, file=self._file, flush=True)
        except OSError:
            pass  # a full disk or a closed terminal; the run itself says so where it matters

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _perform(directory: Path, record: dict[str, Any], cfg: Any, status: Any, stop: StopFlag, log: Log) -> None:
    from hydra.utils import get_method

    from circuits.files import write_json
    from circuits.run import provenance, registry
    from circuits.run.content import Contents
    from circuits.run.context import Context, Run
    from circuits.run.store import Store
    from circuits.run.tracking import Tracker

    kind = registry.modules()[record["task"]].KIND
    outputs = Path(cfg.outputs)
    contents = Contents(outputs / "artifacts" / ".hashes.json")
    store = Store(outputs / "artifacts", say=log.write)
    name = f"{record['sweep']}/{record['name']}"
    log.write(f"{name}: {' '.join(record['overrides']) or 'defaults'}; pid {os.getpid()}")
    write_json(
        directory / "provenance.json",
        {"code": provenance.code(), "command": record["command"], "began": status.facts["began"]},
    )
    place = directory if (directory / SWEEP).exists() else directory.parent
    if edited := provenance.edited_since(place / SWEEP):
        log.write(f"warning: {edited}")
    tags = [record["task"], cfg.model.id.rsplit("/", 1)[-1]]
    tracker = Tracker(directory, cfg.tracking, record["group"], tags, log.write)
    layers = tuple(record["layers"])
    parts = Run(cfg, layers, directory, store, contents, status, stop, tracker, log.write, name, record["overrides"])
    context = Context(parts, kind)
    _same_keys(context, record)
    try:
        stop.check()
        for gate in kind.gates(cfg):
            context.gate_of(gate)
        get_method(cfg.task._target_)(context)
    finally:
        tracker.close(budget_s=HURRIED_S if stop.reason else None)


def _same_keys(context: Any, record: dict[str, Any]) -> None:
    """An element runs what was submitted: its keys must not have changed since (an edited file, other code)."""
    from circuits.errors import UserError
    from circuits.run.keys import unit

    for key, submitted in ((context.key(one), record["keys"][unit(one)]) for one in context.units):
        if key.hash != submitted:
            raise UserError(
                f"{key.id}: the artifact's key changed since this element was launched ({submitted[:12]} → {key.hash[:12]}): "
                "a file that the config names, or the code's version of the kind, was edited; launch it again"
            )


def _explain(error: Exception, cfg: Any) -> str:
    """One line for an error that nobody foresaw; out of memory names what to lower."""
    first = str(error).splitlines()[0] if str(error) else ""
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in first:
        from circuits.run import registry
        from circuits.run.keys import lookup

        keys = registry.kind(cfg.task.name).memory_keys
        named = " or ".join(f"{key} ({lookup(cfg, key)})" for key in keys)
        return f"out of memory: lower {named}, take fewer layers in one run, or use precision=bf16"
    return f"{kind}: {first}"


def _provenance(directory: Path, record: dict[str, Any], cfg: Any, status: Any) -> None:
    from circuits.files import write_json
    from circuits.run import provenance

    facts = status.facts
    write_json(
        directory / "provenance.json",
        {
            "task": record["task"],
            "sweep": record["sweep"],
            "element": record["name"],
            "command": record["command"],
            "overrides": record["overrides"],
            "seed": cfg.seed,
            "code": provenance.code(),
            "environment": provenance.environment(),
            "inputs": sorted({key for artifact in facts["artifacts"] for key in artifact.get("inputs", [])}),
            "artifacts": [artifact["id"] for artifact in facts["artifacts"]],
            "began": facts["began"],
            "ended": facts["ended"],
            "state": facts["state"],
            "exit_code": facts["exit_code"],
            "wall_s": facts["wall_s"],
            "peak_rss_bytes": facts["peak_rss_bytes"],
            "peak_gpu_bytes": facts["peak_gpu_bytes"],
        },
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
