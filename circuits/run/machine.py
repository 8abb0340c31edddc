"""What this machine has, asked without torch: cores that we may use, accelerators."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processor cores that this process may use: those it may run on, no more than a container's share of time is worth."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(found, int(_cpu_quota() or found)))


def _cpu_quota(root: Path = CGROUP) -> float | None:
    """Cores that the control group's quota comes to (``docker --cpus=2``); None where there is none."""
    try:
        words = (root / "cpu.max").read_text().split()  # version 2: "200000 100000", "max 100000"
    except OSError:
        try:
            words = [(root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return None
    return int(words[0]) / int(words[1]) if all(word.isdigit() and int(word) for word in words) else None


@lru_cache
def gpus() -> int:
    """CUDA devices of this machine that we may see (``CUDA_VISIBLE_DEVICES`` narrows them)."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len([name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")])
    return sum(1 for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def gpus_for(device: str) -> list[int]:
    """Of the CUDA devices that we may see, by number: those that a run with this ``model.device`` may be given."""
    match = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?", device)
    if match is None:
        return []
    return [i for i in range(gpus()) if match[1] is None or i == int(match[1])]


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one CUDA device: in all, and not in use by anybody."""

    total: int
    free: int


def gpu_memory() -> dict[int, GpuMemory]:
    """The memory of the CUDA devices that we may see, by number, as ``nvidia-smi`` tells it now; those that it does not know
    (a part of a card, no such program) are left out."""
    if not gpus():
        return {}
    words = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    cards = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
    known = [(card[0], card[1], GpuMemory(int(card[2]) << 20, int(card[3]) << 20)) for card in cards
             if len(card) == 4 and card[2].isdigit() and card[3].isdigit()]  # fmt: skip
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(i) for i in range(gpus())] if names is None else [name.strip() for name in names.split(",")]
    return {
        number: memory
        for number, name in enumerate(visible)
        for index, uuid, memory in known
        if name == index or (name.startswith("GPU-") and uuid.startswith(name))
    }


def device_error(device: str) -> str | None:
    """Why `device` cannot be had here, or None."""
    match = re.fullmatch(r"(auto|cpu|mps|cuda)(?::(\d+))?", device)
    if match is None:
        return f"model.device={device}: no such device; choices: auto cpu cuda cuda:N mps"
    family, index = match[1], int(match[2] or 0)
    if family == "cuda" and index >= gpus():
        return f"model.device={device}: this machine has {gpus()} CUDA devices; use auto or cpu, or set model.allow_fallback=true"
    if family == "mps" and (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return "model.device=mps: only on a Mac with Apple silicon; use auto or cpu, or set model.allow_fallback=true"
    return None
