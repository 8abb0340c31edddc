"""How busy the GPUs are that we may see: one ``nvidia-smi`` that tells it every second, as long as somebody reads. No torch.

Starting the program anew for each sample would cost more than all other sampling. It ends with us: with nobody at the other end of
its pipe its next line kills it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Any

from circuits.run import machine

FIELDS = "index,uuid,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
WORDS = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "--loop-ms=1000"]
Gpu = dict[str, Any]


class GpuWatch:
    """Of each GPU that we may see: the share of time that it was busy, bytes held and in all, its temperature, its power."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._left = b""
        self._last: dict[int, Gpu] = {}
        if machine.gpus():
            with contextlib.suppress(OSError):  # no such program: there is nothing to tell
                self._process = subprocess.Popen(
                    WORDS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                assert self._process.stdout is not None
                os.set_blocking(self._process.stdout.fileno(), False)

    def latest(self) -> list[Gpu]:
        """Each GPU since the last call, in the order of their numbers; as before where nothing new was said."""
        told: dict[int, list[Gpu]] = {}
        for line in self._lines():
            if (found := parsed(line)) is not None:
                told.setdefault(found[0], []).append(found[1])
        for number, several in told.items():
            busy = [one["busy"] for one in several if one["busy"] is not None]
            self._last[number] = {**several[-1], "busy": round(sum(busy) / len(busy), 3) if busy else None}
        return [self._last[number] for number in sorted(self._last)]

    def _lines(self) -> list[str]:
        if self._process is None or self._process.stdout is None:
            return []
        with contextlib.suppress(OSError):
            while block := os.read(self._process.stdout.fileno(), 1 << 16):
                self._left += block
        *lines, self._left = self._left.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def parsed(line: str) -> tuple[int, Gpu] | None:
    """One line of the program: the number under which we see that GPU, and what is known of it; None of one that is not ours."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(FIELDS.split(",")) or (number := _number(cells[0], cells[1])) is None:
        return None
    busy, held, total, celsius, watts = (_value(cell) for cell in cells[2:])
    return number, {
        "busy": None if busy is None else round(busy / 100, 3),
        "memory": None if held is None else int(held) << 20,
        "of": None if total is None else int(total) << 20,
        "celsius": celsius,
        "watts": watts,
    }


def _value(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]": a part of a card
        return None


def _number(index: str, uuid: str) -> int | None:
    """The number among the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves us."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return int(index) if index.isdigit() else None
    for number, name in enumerate(name.strip() for name in names.split(",")):
        if name == index or (name.startswith("GPU-") and uuid.startswith(name)):
            return number
    return None
