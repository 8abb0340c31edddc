"""The largest batch that fits, found by trying: twice as many rows as long as a pass of the longest ones goes through.

On an accelerator a batch does not fit when its memory runs out. Main memory is not tried to its end: what a pass takes at its peak
is watched, and the next size is tried only while twice that is free.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psutil
import torch

from circuits.errors import UserError
from circuits.interventions.edits.base import Edit
from circuits.interventions.engine import Engine
from circuits.interventions.units.base import Unit

FIRST = 4
SHARE = 0.8  # of free main memory that a study may take
EVERY_S = 0.005


def largest_batch(engine: Engine, units: Sequence[Unit], edit: Edit, most: int) -> int:
    """Rows of a pass that fit, at most `most`; a power of two times 4, or `most` itself.

    Raises:
        UserError: not even one row fits.
    """
    order = sorted(range(len(engine.rows)), key=lambda i: -len(engine.rows[i].ids))
    size, found = min(FIRST, most), 0
    while True:
        try:
            took = _peak(engine, order[:size], units, edit)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        found = size
        if size >= most or (engine.lm.device.type == "cpu" and 2 * took > SHARE * psutil.virtual_memory().available):
            break
        size = min(2 * size, most)
    if found == 0 and size > 1:
        return largest_batch(engine, units, edit, size // 2)
    if found == 0:
        raise UserError("not even a batch of one row fits; use precision=bf16, a smaller model or low_memory=true")
    return found


def _peak(engine: Engine, members: Sequence[int], units: Sequence[Unit], edit: Edit) -> int:
    """Bytes of main memory that one batch took at its peak; 0 on an accelerator, which says by itself when it is full."""
    sampled = engine.lm.device.type == "cpu"
    process = psutil.Process()
    before, seen, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            seen[0] = max(seen[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    if sampled:
        watcher.start()
    try:
        with torch.inference_mode():
            batch = engine.prepare(members, units, edit, 1)
            engine.run(batch, units, [0], edit)
    finally:
        done.set()
    return seen[0]
