"""What an element was given beside what it took: in numbers, in a hint where a GPU waits, in the overrides to ask for next time.

What was taken comes from the run itself (``status.json`` and the samples in ``usage.jsonl``) and, on a cluster, from ``sacct``. The
peak is compared with what was *asked*: on whole nodes ``seff`` compares with all that the node has, and calls a good request bad.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.state import State, state_of

PHASES = 6  # that a summary names
GIB = 1 << 30
SHORT_S = 60.0  # elements that end sooner tell little of what threads are good for

#: Which share of its time a GPU is usually busy, by what it does.
INFERENCE, TRAINING, GRADIENTS = (0.60, 0.80), (0.40, 0.60), (0.85, 0.95)
BANDS: dict[str, tuple[tuple[float, float], str]] = {
    "sae": (TRAINING, "an SAE trains"),
    "attribution": (GRADIENTS, "scores are computed"),
    "faithfulness": (GRADIENTS, "circuits are judged"),
    **dict.fromkeys(("activations", "baseline", "interventions", "geometry", "interpret"), (INFERENCE, "the model reads")),
}  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]], threads: int, gpu: bool) -> dict[str, Any]:
    """What the samples of an element say together; nothing where there are none. `gpu`: whether it computed on one.

    Its ``main`` phase is the longest: how busy processor and GPU are is told of that one, too, as loading a model tells nothing.
    """
    if not rows:
        return {}
    phases: dict[str, float] = {}
    for row in rows:
        phases[row["phase"]] = phases.get(row["phase"], 0.0) + row["s"]
    main = max(phases, key=lambda name: phases[name])
    inside = [row for row in rows if row["phase"] == main]
    longest = sorted(phases, key=lambda name: -phases[name])[:PHASES]
    found: dict[str, Any] = {
        "seconds": round(sum(phases.values()), 1),
        "threads": threads,
        "cpu_mean": _mean(rows, "cpu"),
        "cpu_peak": max(row["cpu"] for row in rows),
        "rss_peak_bytes": max(row["rss"] for row in rows),
        "machine_memory_peak": max(row["memory"] for row in rows),
        "phases": {name: round(phases[name], 1) for name in longest},
        "main": main,
        "main_cpu": _mean(inside, "cpu"),
    }
    gpus = [row["gpus"] for row in rows if row.get("gpus")]
    if gpu and gpus:
        found["gpus"] = [_gpu(rows, inside, number) for number in range(max(map(len, gpus)))]
    return found


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return round(sum(row[name] * row["s"] for row in rows) / max(sum(row["s"] for row in rows), 1e-9), 3)


def _gpu(rows: Sequence[Mapping[str, Any]], inside: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """What is known of one GPU."""

    def of(some: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
        cards = [row["gpus"][number] for row in some if len(row.get("gpus") or ()) > number]
        return [card[name] for card in cards if card[name] is not None]

    def mean(values: Sequence[float], digits: int) -> float | None:
        return round(sum(values) / len(values), digits) if values else None

    return {
        "busy_mean": mean(of(rows, "busy"), 3),
        "main_busy": mean(of(inside, "busy"), 3),
        "memory_peak_bytes": max(of(rows, "memory"), default=None),
        "memory_bytes": max(of(rows, "of"), default=None),
        "celsius_peak": max(of(rows, "celsius"), default=None),
        "watts_mean": mean(of(rows, "watts"), 1),
    }


def told(found: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a summary, for W&B."""
    names = ("seconds", "cpu_mean", "cpu_peak", "rss_peak_bytes", "main_cpu")
    numbers = {name: float(found[name]) for name in names if name in found}
    for number, card in enumerate(found.get("gpus", [])):
        numbers |= {f"gpu{number}_{name}": float(value) for name, value in card.items() if value is not None}
    return numbers


def hint(task: str, found: Mapping[str, Any], raise_keys: Sequence[str]) -> str | None:
    """What to do about a GPU that waits for its work in the main phase, or None. `raise_keys`: what makes batches larger."""
    if task not in BANDS or not found.get("gpus"):
        return None
    busy = [card["main_busy"] for card in found["gpus"] if card.get("main_busy") is not None]
    (low, high), doing = BANDS[task]
    if not busy or max(busy) >= low:
        return None
    mend = f": raise {' or '.join(raise_keys)}" if raise_keys else ""
    return f"GPU {max(busy):.0%} busy while {doing}; {100 * low:.0f}–{100 * high:.0f}% is usual{mend}"


# -- asked and taken -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One element: what it was given, and what it took. None where nobody knows."""

    task: str
    state: State
    seconds: float | None
    """All its turns together."""
    memory: int | None
    """Peak of what it held, bytes."""
    cores: float | None
    """Busy in the mean."""
    asked_seconds: float | None
    asked_memory: int | None
    asked_cores: int | None
    gpu_busy: float | None = None
    gpu_memory: int | None = None
    gpu_memory_of: int | None = None
    celsius: float | None = None
    pack: int = 1
    slurm: str = ""
    """How Slurm says that its job ended."""

    @property
    def cpu_share(self) -> float | None:
        """Of the cores that it was given, the share that was busy in the mean."""
        return _ratio(self.cores, self.asked_cores)

    @property
    def memory_share(self) -> float | None:
        """Peak / asked."""
        return _ratio(self.memory, self.asked_memory)

    @property
    def time_share(self) -> float | None:
        """Used / limit."""
        return _ratio(self.seconds, self.asked_seconds)


def _ratio(used: float | None, given: float | None) -> float | None:
    return None if used is None or not given else used / given


def use_of(config: Mapping[str, Any], facts: Mapping[str, Any], provenance: Mapping[str, Any]) -> Use:
    """Of an element, from its resolved config, its status and its provenance, as they were saved.

    Accounting counts what the job took from its first to its last moment, all processes of it; where there is some it is believed.
    """
    asked = (config.get("task") or {}).get("resources") or {}
    found: Mapping[str, Any] = facts.get("usage") or {}
    job: Mapping[str, Any] = provenance.get("accounting") or {}
    pack = int(config.get("pack") or 1)
    alone = job if pack == 1 else {}  # a pack's job is that of all its elements
    elapsed, spent = seconds_of(alone.get("elapsed")), seconds_of(alone.get("total_cpu"))
    cards = found.get("gpus") or []
    cores = spent / elapsed if spent is not None and elapsed else found.get("main_cpu")
    state = state_of(facts)
    made = state is not State.cached  # what answered from the store took nothing
    peaks = [bytes_of(alone.get("max_rss")), facts.get("peak_rss_bytes") if made else None]
    seconds = elapsed or max(float(facts.get("wall_s") or 0), float(found.get("seconds") or 0))
    allotted = str(alone.get("alloc_cpus") or "")
    return Use(
        task=str((config.get("task") or {}).get("name") or facts.get("task") or ""),
        state=state,
        seconds=seconds or None if made else None,
        memory=max((peak for peak in peaks if peak), default=None),
        cores=cores if made else None,
        asked_seconds=seconds_of(alone.get("time_limit")) or limit_of(asked.get("time")),
        asked_memory=bytes_of(asked.get("memory")),
        asked_cores=int(allotted) if allotted.isdigit() else asked.get("cpus") or found.get("threads"),
        gpu_busy=max((c["main_busy"] for c in cards if c.get("main_busy") is not None), default=None),
        gpu_memory=facts.get("peak_gpu_bytes"),
        gpu_memory_of=max((c["memory_bytes"] for c in cards if c.get("memory_bytes")), default=None),
        celsius=max((c["celsius_peak"] for c in cards if c.get("celsius_peak") is not None), default=None),
        pack=pack,
        slurm=str(facts.get("slurm") or job.get("state") or ""),
    )


def next_time(uses: Sequence[Use]) -> str:
    """The overrides to ask for next time, so that all these elements would have fitted: peak memory and a fifth, the longest time
    and a half. Empty where nothing is known, or all was asked for as it should be.

    Threads are proposed only where most of them idled through runs of minutes: results depend on their number bit by bit.
    """
    ended = [use for use in uses if use.state.measured and use.state is not State.cached]
    words = []
    if memory := _memory(ended, uses):
        words.append(f"task.resources.memory={memory}")
    if time := _time(ended, uses):
        words.append(f"task.resources.time={time}")
    busy = [use.cores for use in ended if use.cores is not None and (use.seconds or 0) >= SHORT_S]
    given = max((use.asked_cores or 0 for use in ended), default=0)
    if busy and given >= 4 and max(busy) < given / 2:
        words.append(f"task.resources.cpus={max(1, math.ceil(1.2 * max(busy)))}")
    return " ".join(words)


def _memory(ended: Sequence[Use], every: Sequence[Use]) -> str | None:
    lacked = [use.asked_memory for use in every if use.slurm == "OUT_OF_MEMORY" and use.asked_memory]
    peaks = [use.memory for use in ended if use.memory]
    if not lacked and not peaks:
        return None
    needed = max(2.0 * max(lacked, default=0), 1.2 * max(peaks, default=0) + GIB / 4)
    gigabytes = math.ceil(needed / GIB)
    if gigabytes > 32:
        gigabytes = 4 * math.ceil(gigabytes / 4)
    asked = max((use.asked_memory or 0 for use in every), default=0)
    return None if asked == gigabytes * GIB else f"{gigabytes}G"


def _time(ended: Sequence[Use], every: Sequence[Use]) -> str | None:
    lacked = [use.asked_seconds for use in every if use.slurm == "TIMEOUT" and use.asked_seconds]
    taken = [use.seconds * use.pack for use in ended if use.seconds]
    if not lacked and not taken:
        return None
    needed = max(600.0, 2.0 * max(lacked, default=0), 1.5 * max(taken, default=0))
    step = 600 if needed <= 2 * 3600 else 1800 if needed <= 12 * 3600 else 3600
    total = step * math.ceil(needed / step)
    asked = max((use.asked_seconds or 0 for use in every), default=0)
    return None if asked == total else f"{total // 3600:02d}:{total % 3600 // 60:02d}:00"


# -- Slurm's numbers -------------------------------------------------------------------------------------------------


def bytes_of(text: object) -> int | None:
    """``4G``, ``512M``, ``3916K``, ``2000Mc`` (of old ``sacct``) in bytes; None of what is none. A plain number is in megabytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)B?[nc]?", str(text or "").strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        return None
    return int(float(match[1]) * 1024 ** ("KMGTP".index(match[2].upper() or "M") + 1))


def seconds_of(text: object) -> float | None:
    """``1-02:03:04``, ``02:03:04``, ``03:04.567`` of ``sacct`` in seconds; None of what is none (``UNLIMITED``)."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", str(text or "").strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def limit_of(text: object) -> float | None:
    """``task.resources.time`` in seconds: as :func:`seconds_of`, a plain number being minutes and ``1-12`` days and hours."""
    word = str(text or "").strip()
    if word.isdigit():
        return 60.0 * int(word) or None
    if match := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", word):
        return 86400.0 * int(match[1]) + 3600 * int(match[2]) + 60 * int(match[3] or 0)
    return seconds_of(word)
