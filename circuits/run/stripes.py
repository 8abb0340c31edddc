"""``cluster.stripe=N``: on Lustre the files of a new directory lie on N storage targets, so that many readers do not queue at one.

Files take the layout of their directory when they are made; what is there already stays as it is. Elsewhere nothing is done, which
is said once a process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from circuits.space import MOUNTS, mounted

TIMEOUT_S = 30.0
_said: set[str] = set()


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that holds `path` (``lustre``, ``ext4``), as the kernel names it; None where it does not say."""
    return mounted(path, mounts)[1]


def stripe(
    directory: Path, count: int, say: Callable[[str], None], of: Callable[[Path], str | None] | None = None
) -> bool:
    """Have the files that will be made in `directory` lie on `count` targets; whether that was done. What hinders is said once."""
    kind = (of or file_system)(directory)
    if kind != "lustre":
        _once(
            "file system",
            say,
            f"cluster.stripe={count}: {directory} is not on Lustre ({kind or 'unknown'}); left as it is",
        )
        return False
    try:
        done = subprocess.run(
            ["lfs", "setstripe", "-c", str(count), str(directory)],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        _once("lfs", say, f"cluster.stripe={count}: there is no lfs on this machine; left as it is")
        return False
    except (OSError, subprocess.TimeoutExpired) as e:
        _once("answer", say, f"cluster.stripe={count}: lfs did not answer ({type(e).__name__}); left as it is")
        return False
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
        _once(why, say, f"cluster.stripe={count}: {why}; left as it is")
    return done.returncode == 0


def _once(reason: str, say: Callable[[str], None], text: str) -> None:
    """Only the first time: a run makes many directories."""
    if reason not in _said:
        _said.add(reason)
        say(f"note: {text}")
