"""What the tests of launching on Slurm share: small sweeps, their directories, and who does what to them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from conftest import QUICK, Cli, Done

from slurm.queueing import Queue

#: A small SAE on the quick embedded model, asking Slurm for little.
SMALL = [
    QUICK,
    "sae.heldout_sequences=16",
    "sae.block_rows=2048",
    "tracking=off",
    "task.resources.gpus=0",
    "task.resources.memory=500M",
]
#: The same, working until it is stopped: about a minute of steps, a checkpoint every few.
LONG = [*SMALL, "sae.steps=6000", "sae.checkpoint_every=50"]
#: Elements that need no torch and end in a second, where only the way to the node and back is tested.
PROMPTS = ["task=prompts", "tracking=off", "task.resources.memory=500M"]
SLURM = "cluster=slurm"


def submitted(done: Done) -> str:
    """The array's job number from what the submission printed."""
    assert done.code == 0, done.err + done.out
    found = re.search(r"^submitted (\d+)_\[", done.out, re.MULTILINE)
    assert found, done.out
    return found[1]


def sweep_dir(cli: Cli) -> Path:
    """The newest sweep's (or single run's) directory."""
    end = time.monotonic() + 120
    while True:  # a launcher that was only started makes it soon
        places = [*(cli.folder / "multirun").glob("*/*/sweep.json"), *(cli.outputs / "runs").glob("*/*/sweep.json")]
        if places or time.monotonic() > end:
            return max(places, key=lambda path: path.stat().st_mtime_ns).parent
        time.sleep(0.1)


def element(sweep: Path, number: int) -> Path:
    """An element's directory."""
    return next(iter(sweep.glob(f"{number:03d}-*")), sweep)


def status(directory: Path) -> dict[str, Any]:
    """A run's status file."""
    return json.loads((directory / "status.json").read_text())


def state(sweep: Path, number: int) -> str:
    """An element's state by its own file."""
    return str(status(element(sweep, number))["state"])


def steps_taken(facts: dict[str, Any]) -> int:
    """The steps that a run is past, by its status, while it trains; 0 before and after."""
    progress = facts["progress"] or {}
    trains = facts["state"] == "running" and progress.get("phase") == "training"
    return int(progress["done"]) if trains else 0


def training(sweep: Path, number: int) -> bool:
    """Whether an element has trained for some steps and left a checkpoint interval behind it."""
    return steps_taken(status(element(sweep, number))) >= 60


def weights(cli: Cli) -> dict[str, bytes]:
    """The trained weights in a store, by artifact."""
    return {path.name: (path / "sae_weights.safetensors").read_bytes() for path in cli.artifacts("sae")}


def ours(queue: Queue, sweep: Path, live: bool = True) -> list[str]:
    """The array elements of a sweep that stand in the queue (or, not only `live`, ever stood)."""
    return [job.id for job in queue.jobs(f"circuits:{sweep.name}:", live=live)]
