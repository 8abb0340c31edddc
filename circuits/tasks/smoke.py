"""``task=smoke``: whether everything that a command line asks for is here, before a job finds out. Offline, a few seconds.

What is asked for is the config: ``model.device=cuda``, ``precision=bf16``, ``cluster=…``, ``tracking.mode=online``, ``model=…``,
``outputs=…``. Each line is ok, absent (asked for and not here: exit 1) or ``-`` (not here, not asked for).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.errors import CircuitsError, RunError, UserError
from circuits.run import machine
from circuits.run.provenance import packages
from circuits.schema import Backend, BaseConfig, Dtype, TrackingMode
from circuits.space import space
from circuits.words import size

if TYPE_CHECKING:
    import torch

    from circuits.console import Rows
    from circuits.tiny.selfcheck import Memory

READS = ("model", "precision", "cluster", "tracking", "user")
SCHEDULER = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
_SECONDS = 10  # a scheduler's controller that has not answered by then is out of reach


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    state: str  # ok, absent or -
    detail: str


def run(cfg: BaseConfig) -> int:
    """Look at everything, show it, and say what is absent.

    Raises:
        RunError: something that was asked for is absent.
    """
    from circuits.console import Rows, console
    from circuits.tiny.selfcheck import memory

    before = memory()
    device, line = _device(cfg)
    checks: list[tuple[str, Callable[[], Line]]] = [
        ("dtypes", lambda: _dtypes(cfg, device)),
        ("forward", lambda: _forward(cfg, device)),
        ("model", lambda: _model(cfg)),
        ("store", lambda: _store(cfg)),
        ("tracking", lambda: _tracking(cfg)),
        ("cluster", lambda: _cluster(cfg)),
    ]
    lines = [_versions(), line, *(_looked(what, look) for what, look in checks)]
    shown, table = console(), Rows([""] * 3, texts=(2,))
    for found in lines:
        table.add(found.what, found.state, found.detail)
    shown.table(table)
    shown.table(_memory_table(before, memory()))
    absent = [found.what for found in lines if found.state == "absent"]
    if absent:
        raise RunError(f"absent: {', '.join(absent)} ({len(absent)} of {len(lines)} checks; the lines above say why)")
    shown.tell("everything that was asked for is here")
    return 0


def _looked(what: str, look: Callable[[], Line]) -> Line:
    """A check's line; what it raises is what is wrong, and the other checks are still made."""
    try:
        return look()
    except CircuitsError as e:
        return Line(what, "absent", str(e))
    except Exception as e:  # whatever a broken installation raises is this check's finding
        return Line(what, "absent", f"{type(e).__name__}: {(str(e) or 'no message').splitlines()[0]}")


def _versions() -> Line:
    from circuits.tiny.selfcheck import libraries

    known = {
        **libraries(),
        **{name: v for name, v in packages().items() if name in ("transformers", "datasets", "wandb")},
    }
    listed = "  ".join(f"{name} {version}" for name, version in known.items())
    return Line("versions", "ok", f"Python {platform.python_version()}  {listed}")


def _device(cfg: BaseConfig) -> tuple[torch.device, Line]:
    """The device that runs would take, and what there is; the CPU stands in for an absent one in the other checks."""
    import torch

    from circuits.models.load import available_devices, pick_device

    asked = cfg.model.device
    try:
        torch.device("cpu" if asked == "auto" else asked)
    except RuntimeError as e:
        raise UserError(f"model.device={asked}: no such device; choices: auto cpu cuda cuda:N mps") from e
    there = f"{machine.cores()} cores, accelerators: {' '.join(available_devices()[:-1]) or 'none'}"
    try:
        device = pick_device(asked, cfg.model.allow_fallback)
    except CircuitsError as e:
        return torch.device("cpu"), Line("device", "absent", f"model.{e}")
    chosen = f"{device} (asked for: {asked})" if str(device) != asked else asked
    name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return device, Line("device", "ok", f"{chosen}{name}; {there}")


def _dtypes(cfg: BaseConfig, device: torch.device) -> Line:
    from circuits.models.load import DTYPES
    from circuits.models.sites import fp16_problem
    from circuits.tiny.selfcheck import dtype_problem

    asked = cfg.precision.dtype.value
    problems = {name: dtype_problem(name, device) for name in DTYPES}
    if asked == "fp16" and (problem := fp16_problem(cfg.model.family)):
        problems["fp16"] = problem
    works = [name for name, problem in problems.items() if problem is None]
    if problems[asked]:
        return Line(
            "dtypes", "absent", f"precision.dtype={asked} on {device}: {problems[asked]}; here: {' '.join(works)}"
        )
    return Line("dtypes", "ok", f"{asked} asked for; {device} computes in {' '.join(works)}")


def _forward(cfg: BaseConfig, device: torch.device) -> Line:
    """A pass with capture; in float32 where the asked format is none of the device's (that is another line)."""
    from circuits.models.load import DTYPES
    from circuits.tiny.selfcheck import check_pass, dtype_problem

    asked = cfg.precision.dtype.value
    found = check_pass(device, DTYPES["fp32" if dtype_problem(asked, device) else asked])
    detail = (
        f"random model on {device}: {found.sites} sites captured in {found.layers} layers, logits unchanged, "
        f"{found.seconds:.2f} s; {found.train} training and {found.heldout} held-out sentences; "
        f"cross-entropy {found.cross_entropy:.2f} (uniform {found.uniform:.2f}), logit difference {found.logit_difference:+.2f}"
    )
    return Line("forward", "ok", detail)


def _model(cfg: BaseConfig) -> Line:
    from circuits.models.identify import cached_weights, directory_of, inspect_model
    from circuits.models.sites import fp16_problem

    model = cfg.model
    if model.embedded is not None:
        return Line("model", "ok", f"{model.id}: trained here at first use")
    where = cached_weights(model.id, model.revision)
    if where is None and directory_of(model.id) is None:
        pinned = f" model.revision={model.revision}" if model.revision else ""
        mend = f"run: python launch.py task=prefetch model={model.id}{pinned}"
        return Line("model", "absent", f"{model.id} is not in the Hugging Face cache; where there is network {mend}")
    facts = inspect_model(model.id, model.revision)
    if cfg.precision.dtype is Dtype.fp16 and (problem := fp16_problem(facts.model_type)):
        return Line("model", "absent", f"{model.id} in fp16: {problem}")
    at = f" at {facts.revision[:12]}" if facts.revision else ""
    return Line("model", "ok", f"{model.id}{at}: {facts.model_type}, {facts.dims.layers} layers of {facts.dims.width}")


def _store(cfg: BaseConfig) -> Line:
    """Write, flush and rename a file where artifacts will be; what was not there before is not left behind."""
    outputs = Path(cfg.outputs)
    place = next(folder for folder in (outputs, *outputs.parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".smoke-", dir=place) as name:
            old, new = Path(name) / "old", Path(name) / "new"
            with old.open("wb") as file:
                file.write(b"x" * 65536)
                file.flush()
                os.fsync(file.fileno())
            old.rename(new)
            if new.read_bytes() != b"x" * 65536:
                return Line("store", "absent", f"{place}: what was written is not what is read")
    except OSError as e:
        return Line("store", "absent", f"outputs={outputs}: {e.strerror}; choose another place with outputs=DIR")
    return Line("store", "ok", f"{outputs}: {space(place)}")


def _tracking(cfg: BaseConfig) -> Line:
    from circuits.run import wandb_server

    mode = cfg.tracking.mode
    if mode is TrackingMode.disabled:
        return Line("tracking", "-", "off; metrics.jsonl beside each run")
    if importlib.util.find_spec("wandb") is None:
        return Line("tracking", "absent", "wandb is not installed; install it, or write tracking=off")
    if mode is TrackingMode.offline:
        return Line("tracking", "ok", "W&B offline, beside each run; wandb sync uploads it")
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    key = os.environ.get("WANDB_API_KEY") or wandb_server.stored_key(address)
    if not key:
        return Line("tracking", "absent", "tracking.mode=online needs a key: run wandb login, or set WANDB_API_KEY")
    if why := wandb_server.asked(address, key):
        return Line("tracking", "absent", f"tracking.mode=online: {why}; leave it offline here")
    return Line("tracking", "ok", f"W&B online: {address} answers and takes the key")


def _cluster(cfg: BaseConfig) -> Line:
    from circuits.launch.local import pool_size

    if cfg.cluster.backend is Backend.local:
        workers = pool_size(cfg, machine.cores()) or "no separate"
        return Line(
            "cluster", "ok", f"local: {workers} worker processes; {machine.cores()} cores, {machine.gpus()} GPUs"
        )
    return scheduler(cfg.cluster.name)


def scheduler(name: str) -> Line:
    """Whether Slurm's commands are here and its controller answers."""
    lacking = [command for command in SCHEDULER if shutil.which(command) is None]
    if lacking:
        mend = "run on a login node of the cluster, or load its Slurm module"
        return Line("cluster", "absent", f"cluster={name}: no command {' '.join(lacking)} here; {mend}")
    try:
        asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Line("cluster", "absent", f"cluster={name}: its controller has not answered in {_SECONDS} s")
    said = " ".join((asked.stdout or asked.stderr).split())
    if asked.returncode or " is UP" not in said:
        return Line("cluster", "absent", f"cluster={name}: {said or 'scontrol ping failed'}")
    return Line("cluster", "ok", f"{name}: {said}")


def _memory_table(before: list[Memory], after: list[Memory]) -> Rows:
    """Memory of each device before and after the checks."""
    from circuits.console import Rows

    table = Rows(("memory", "", "total", "free before", "free after"), texts=(1,))
    for first, last in zip(before, after, strict=True):
        table.add(first.device, first.name, *(size(count) for count in (first.total, first.free, last.free)))
    return table
