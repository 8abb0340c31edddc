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


def largest_batch(engine: Engine, units: Sequence[Unit], edit: Edit, most: int, memory: float | None = None) -> int:
    """Rows of a pass that fit, at most `most`; a power of two times 4, or `most` itself.

    Args:
        engine: with the rows.
        units: of which one is tried.
        edit: that it is tried under.
        most: rows.
        memory: bytes that model and passes may take together; None: whatever is free.

    Raises:
        UserError: not even one row fits.
    """
    order = sorted(range(len(engine.rows)), key=lambda i: -len(engine.rows[i].ids))
    room = None if memory is None else SHARE * memory - weights(engine)
    size, found = min(FIRST, most), 0
    while True:
        try:
            took = _peak(engine, order[:size], units, edit)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if room is not None and took > room:
            break
        found = size
        free = SHARE * psutil.virtual_memory().available if engine.lm.device.type == "cpu" else float("inf")
        if size >= most or 2 * took > min(free, float("inf") if room is None else room):
            break
        size = min(2 * size, most)
    if found == 0 and size > 1:
        return largest_batch(engine, units, edit, size // 2, memory)
    if found == 0:
        within = "" if memory is None else f" within {memory / 1e9:g} GB (the model takes {weights(engine) / 1e9:.1f})"
        raise UserError(
            f"not even a batch of one row fits{within}; use precision=bf16, a smaller model or low_memory=true"
        )
    return found


def weights(engine: Engine) -> int:
    """Bytes of the model's parameters."""
    return sum(p.numel() * p.element_size() for p in engine.lm.model.parameters())


def _peak(engine: Engine, members: Sequence[int], units: Sequence[Unit], edit: Edit) -> int:
    """Bytes that one batch took at its peak, beyond what there was: on CUDA as it counts itself, else of main memory."""
    sampled, cuda = engine.lm.device.type == "cpu", engine.lm.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.lm.device)
        held = torch.cuda.memory_allocated(engine.lm.device)
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
    return int(torch.cuda.max_memory_allocated(engine.lm.device) - held) if cuda else seen[0]
