"""One element of a sweep: ``python -m circuits.launch.element DIR``, the same command here, on a cluster and by hand.

Several directories are a pack (``pack=N``): in this process, each with its own log, status and outcome.

``DIR`` holds ``config.yaml`` (resolved) and ``element.json``. No Hydra and no pickle is involved, and the exit status is the
truth: 0 done, 1 failed, 2 DIR is no element's, 3 a gate said no, 128 + signal when it was asked to stop.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuits.run import streams
from circuits.run.running import Opened, on_cluster
from circuits.run.signals import StopFlag, Stopped  # signals are handled before anything heavy is imported
from circuits.state import State, state_of
from circuits.store.places import LOG


def main(argv: list[str]) -> int:
    """Run the element in directory ``argv[0]``, or the pack of several."""
    streams.prepare()
    stop = StopFlag().install(grace_s=float(os.environ.get("CIRCUITS_GRACE_S", "30")))
    directories = [Path(word).resolve() for word in argv]
    try:
        if not argv:
            print("usage: python -m circuits.launch.element DIR [DIR …]", file=sys.stderr)
            return 2
        return run(directories[0], stop) if len(argv) == 1 else run_pack(directories, stop)
    finally:
        stop.over()


def run_pack(directories: list[Path], stop: StopFlag) -> int:
    """Run these elements; the exit code of the one that was stopped, else of the first that failed.

    Those that can be made in one go (SAEs that are trained on one stream) are, the others run one after the other. Asked to stop,
    those that run save their work; those that were not begun stay as they are, for the next time.
    """
    codes, waiting = [], []
    for number, directory in enumerate(directories, 1):
        if (before := _ended_before(directory)) is not None:
            codes.append(before)
        else:
            waiting.append(_opened(directory, f"pack {number}/{len(directories)}"))
    codes += [code for code in waiting if isinstance(code, int)]
    for group in _groups([one for one in waiting if isinstance(one, Opened)]):
        if "CIRCUITS_STDOUT_IS_LOG" in os.environ:  # else a person's terminal
            _output_to(group[0].directory / LOG)
        for one in group:
            one.begin(stop, echo=one is group[0])
        running = [one for one in group if one.context is not None]
        failures = _together(running) if len(running) > 1 else {}
        for number, one in enumerate(running):
            one.perform(failures.get(number))
        codes += [one.end() for one in group]
        settle(group)
        if any(one.code > 128 for one in group):  # stopped; asked between two elements, the next stops as it begins
            break
    return next((code for code in codes if code > 128), next((code for code in codes if code), 0))


def _opened(directory: Path, place: str = "") -> Opened | int:
    """The element of a directory; on a cluster Slurm's state decides what becomes of it when it is stopped."""
    opened = Opened.at(directory, place)
    if isinstance(opened, Opened) and on_cluster():
        from circuits.launch.slurm import requeue
        from circuits.run import status

        if why := requeue.barred(directory):
            print(f"error: {why}", flush=True)
            status.write_plain(directory, State.cancelled, task=opened.record["task"], error=why, exit_code=1)
            requeue.close(directory, print)
            return 1
        opened.judge = requeue.judge
    return opened


def settle(ended: Sequence[Opened]) -> None:
    """Close the elements that ended in this process; on a cluster: their claims, the sweep's page, and the queue, asked once."""
    if on_cluster():
        from circuits.launch.slurm import requeue

        for one in ended:
            if not one.again:
                requeue.close(one.directory, one.log.write)
        asking = [one for one in ended if one.again == "ask"]
        if asking and not requeue.queue_again(asking[0].log.write):
            for one in asking:
                told = "could not be queued again; the same command goes on from what was saved"
                one.status.finish(State.interrupted, one.code, told)
                requeue.close(one.directory, one.log.write)
    for one in ended:
        one.log.close()


def _groups(elements: list[Opened]) -> list[list[Opened]]:
    """Elements that can be made in one go beside one another, in the order of their first."""
    found: dict[Any, list[Opened]] = {}
    for number, one in enumerate(elements):
        found.setdefault(one.together or number, []).append(one)
    return list(found.values())


def _together(elements: list[Opened]) -> dict[int, BaseException]:
    """Make in one go what can be; what went wrong, by place. A failure of the whole leaves every element to itself."""
    from circuits.store import registry

    kind = registry.kind(elements[0].record["task"])
    try:
        return dict(kind.run_together([one.context for one in elements]))
    except Stopped as e:
        return dict.fromkeys(range(len(elements)), e)
    except Exception as e:
        elements[0].log.write(traceback.format_exc().rstrip())
        for one in elements:
            one.log.write(f"not made in one go with its pack ({type(e).__name__}: {e}); it goes on by itself")
        return {}


def _ended_before(directory: Path) -> int | None:
    """The exit code of an element that had ended when Slurm queued its pack's array element again; None of any other."""
    from circuits.run import status

    if int(os.environ.get("SLURM_RESTART_COUNT") or "0") == 0 or not on_cluster():
        return None
    facts = status.read(directory, trust_running=True)
    state = state_of(facts)
    return int(facts.get("exit_code") or 0) if state.measured or state is State.failed else None


def _output_to(log: Path) -> None:
    """Send standard output and errors, of libraries too, to this element's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.environ["CIRCUITS_STDOUT_IS_LOG"] = str(log)


def run(directory: Path, stop: StopFlag) -> int:
    """Run the element in `directory` in this process; its exit code."""
    opened = _opened(directory)
    if isinstance(opened, int):
        return opened
    opened.begin(stop)
    if opened.context is not None:
        opened.perform()
    code = opened.end()
    settle([opened])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
