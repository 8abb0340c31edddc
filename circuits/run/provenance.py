"""Where a result came from: code, environment, machine. Recorded beside every run and in every artifact's manifest."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuits.files import read_json, sha256_file
from circuits.store.places import CODE

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "datasets", "tokenizers", "scipy", "pandas", "pyarrow",
            "hydra-core", "omegaconf", "submitit", "hydra-submitit-launcher", "wandb")  # fmt: skip


#: What runs: a file of these that nobody has committed is a change like any other.
PLACES = ("circuits", "conf", "hydra_plugins", "launch.py")


@lru_cache
def code() -> dict[str, Any]:
    """The commit of the checkout, whether what runs differs from it (None where there is no git), and a hash of what runs.

    It differs by changes of tracked files, and by files among the code that are not tracked.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    added = _git("status", "--porcelain", "--untracked-files=all", "--", *PLACES) if commit else None
    dirty = None if changed is None or added is None else bool(changed or added)
    return {"commit": commit, "dirty": dirty, "hash": code_hash()}


def code_files() -> list[Path]:
    """The files that an element runs: ``circuits/**/*.py``."""
    return sorted((CODE / "circuits").rglob("*.py"))


def code_hash() -> str:
    """SHA-256 over the names and contents of :func:`code_files`, in hex: equal code, equal hash, committed or not."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(f"{path.relative_to(CODE).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def edited_since(record: Path) -> str | None:
    """How the code differs from what it was when the sweep of `record` (its ``sweep.json``) was launched, or None.

    An element may wait for hours, and runs the code that is there when it starts.
    """
    try:
        before = read_json(record)["code"].get("hash")
        launched = record.stat().st_mtime
    except (OSError, ValueError, KeyError):
        return None  # run by hand, or launched by older code: nothing to compare with
    if before is None or before == code()["hash"]:
        return None
    names = [path.relative_to(CODE).as_posix() for path in code_files() if path.stat().st_mtime > launched]
    which = ": " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else ""
    return f"the code was edited since this element was launched ({before[:10]} → {code()['hash'][:10]}){which}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(CODE), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache
def packages() -> dict[str, str]:
    """Versions of what results depend on."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """The machine and the libraries. Threads, device and versions are what bit-identity is promised for."""
    torch = sys.modules.get("torch")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "packages": packages(),
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "gpu": _gpus(torch),
        "deterministic": bool(torch and torch.are_deterministic_algorithms_enabled()),
        "slurm": {k: v for k, v in os.environ.items() if k in _SLURM},
    }
    return facts


_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_QOS", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION",
          "SLURM_JOB_ACCOUNT", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME")  # fmt: skip


@lru_cache
def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:  # noqa: PTH123
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus(torch: Any) -> list[dict[str, Any]]:
    """Name, memory and driver of each visible GPU (only when torch is loaded: asking costs its import)."""
    if torch is None or not torch.cuda.is_available():
        return []
    driver = _driver()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "driver": driver,
                "cuda": torch.version.cuda,
            }
        )
    return found


@lru_cache
def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        pass
    try:  # where nvidia-smi is not installed beside the driver
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n")[0]
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first)
    return found[0] if found else None
