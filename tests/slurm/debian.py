"""Slurm's programs: where they are, and Debian's packages for them when they are absent (as root, one installer at a time)."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

INSTALL_LOCK = Path("/tmp/slurm-install.lock")  # one per machine: two pytest workers must not run apt at once
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it before a package may start its service
SYSTEM = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
PLAIN = {"slurm-wlm": ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun"), "munge": ("munged", "munge")}
ACCOUNTING = {"slurmdbd": ("slurmdbd",), "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb")}
PLUGIN = "slurm-wlm-mysql-plugin"


class SlurmUnavailable(RuntimeError):
    """Slurm is neither here nor can it be installed; the message says why."""


def find(program: str) -> str | None:
    """The path of a program; daemons live in sbin, which a user's PATH may lack."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM}")


def program(name: str) -> str:
    """The path of a program that must be there."""
    found = find(name)
    if not found:
        raise SlurmUnavailable(f"the program {name} is not installed")
    return found


@cache
def version() -> tuple[int, int]:
    """The version of slurmctld: ``(22, 5)``."""
    text = subprocess.run([program("slurmctld"), "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    if not found:
        raise SlurmUnavailable(f"slurmctld -V says {text.strip()!r}: no version")
    return int(found[1]), int(found[2])


def missing(accounting: bool) -> list[str]:
    """The packages whose programs are absent."""
    wanted = PLAIN | (ACCOUNTING if accounting else {})
    packages = [package for package, names in wanted.items() if not all(find(name) for name in names)]
    plugins = [
        p for root in ("/usr/lib", "/usr/lib64") for p in Path(root).glob("**/slurm*/accounting_storage_mysql.so")
    ]
    return [*packages, *([PLUGIN] if accounting and not plugins else [])]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file; the kernel frees it with the process."""
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def no_services() -> Iterator[None]:
    """Packages may not start their own daemons meanwhile; an answer that was there before stays."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def apt(*words: str, seconds: float) -> str:
    """Run apt-get; empty when it went well, else the end of what it said."""
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *words]
    try:
        done = subprocess.run(
            command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL, timeout=seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)}: no end after {seconds:.0f} s"
    return "" if done.returncode == 0 else " | ".join(done.stdout.strip().splitlines()[-3:])


def install(accounting: bool = True) -> list[str]:
    """Install what is absent and return its packages; raise `SlurmUnavailable` with the reason if that cannot be."""
    if not missing(accounting):
        return []
    for need, found in (("root", os.geteuid() == 0), ("apt-get", find("apt-get") is not None)):
        if not found:
            raise SlurmUnavailable(f"{', '.join(missing(accounting))} not installed, and to install needs {need}")
    with locked(INSTALL_LOCK), no_services():
        packages = missing(accounting)  # another process may have installed them while this one waited
        words = ("install", "-y", "--no-install-recommends", *packages)
        said = apt(*words, seconds=900) if packages else ""
        if said:  # no package lists yet, or old ones
            said = apt("update", seconds=300)
            said = apt(*words, seconds=900) or ""
        if said or missing(accounting):
            raise SlurmUnavailable(f"apt-get install {' '.join(packages)} failed: {said or 'programs still absent'}")
    return packages
