"""How much may still be written at a place: what is free on its file system, and what a quota leaves of it. No torch.

On a cluster the file system is never full and the quota is. ``lfs quota`` tells it on Lustre, ``quota`` elsewhere; where neither is
there, answers or knows of one, the file system alone counts.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from circuits.words import size

MOUNTS = Path("/proc/self/mounts")
TIMEOUT_S = 10.0
BLOCK = 1024


@dataclass(frozen=True)
class Space:
    """Bytes that are free, and how many of them the user's quota leaves (None: there is none, or nobody tells)."""

    free: int
    quota: int | None = None

    @property
    def bytes(self) -> int:
        """What may be written."""
        return self.free if self.quota is None else min(self.free, self.quota)

    def __str__(self) -> str:
        if self.quota is None or self.quota >= self.free:
            return f"{size(self.free)} free"
        return f"{size(self.quota)} left of the quota ({size(self.free)} free)"


def space(path: Path) -> Space:
    """What may be written below `path`, or below the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    place, kind = mounted(path)
    return Space(shutil.disk_usage(path).free, _quota(str(path), place, kind))


def mounted(path: Path, mounts: Path = MOUNTS) -> tuple[str, str | None]:
    """Where the file system that holds `path` is mounted, and its type as the kernel names it (``lustre``, ``ext4``); None where it
    does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "/", None
    here, best = path.resolve(), -1
    found: tuple[str, str | None] = ("/", None)
    for line in lines:
        words = line.split(" ")
        if len(words) < 3:
            continue
        place = Path(words[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if here.is_relative_to(place) and len(place.parts) >= best:  # of two on one place the later one is seen
            best, found = len(place.parts), (str(place), words[2])
    return found


@lru_cache(maxsize=32)  # of a sweep's elements each asks
def _quota(path: str, place: str, kind: str | None) -> int | None:
    """Bytes that the user's quota leaves at a place."""
    user = None
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    if kind == "lustre":
        return None if user is None else left(_answer("lfs", "quota", "-q", "-u", user, path))
    return left(_answer("quota", "--no-wrap", "--raw-grace", "--user", f"--filesystem={place}"))


def _answer(*words: str) -> str:
    """What a program prints; nothing where it is not there, fails or does not answer."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout  # `quota` exits 1 where a quota is used up


def left(text: str) -> int | None:
    """Bytes that a table of ``quota`` or ``lfs quota -q`` leaves.

    Its lines are ``PLACE used soft hard …`` in kilobytes, 0 for no limit, ``*`` behind what is beyond one. The soft limit counts:
    beyond it writing ends after some days.
    """
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4 or not words[1].rstrip("*").isdigit():
            continue
        used, soft, hard = (int(word.rstrip("*")) if word.rstrip("*").isdigit() else 0 for word in words[1:4])
        limit = soft or hard
        return max(0, limit - used) * BLOCK if limit else None
    return None
