"""Where a result came from: code, environment, machine. Recorded beside every run and in every artifact's manifest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from functools import lru_cache
from typing import Any

from circuits.run.places import CODE

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "datasets", "tokenizers", "scipy", "pandas", "pyarrow",
            "hydra-core", "omegaconf", "submitit", "hydra-submitit-launcher", "wandb")  # fmt: skip


@lru_cache
def code() -> dict[str, Any]:
    """The commit of the checkout and whether it has uncommitted changes; None where there is no git."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": bool(changed) if changed is not None else None}


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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
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
        "modules": os.environ.get("LOADEDMODULES", "").split(":") if os.environ.get("LOADEDMODULES") else [],
        "gpu": _gpus(torch),
        "slurm": {k: v for k, v in os.environ.items() if k in _SLURM},
    }
    return facts


_SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION", "SLURM_JOB_ACCOUNT",
          "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME")  # fmt: skip


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
        return None
