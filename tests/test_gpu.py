"""What holds on an accelerator too (``pytest -m gpu``): no waiting, equal gradients, exact resume, whole batches of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.activations.reservoir import Reservoir
from circuits.activations.store import ActivationStore
from circuits.data.npy import GrowingNpy
from circuits.files import write_json
from circuits.sae.modules import architectures
from circuits.sae.spec import TrainSpec
from circuits.sae.training import DEAD_EVERY, Trainer

pytestmark = pytest.mark.gpu
OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 8},
    "batchtopk": {"k": 8},
    "matryoshka": {"k": 8, "groups": 4},
    "relu": {"l1": 0.1},
    "gated": {"l1": 0.1},
    "jumprelu": {"l0_coefficient": 0.01},
}


def trainer(name: str, device: str, **changes: Any) -> tuple[Trainer, torch.Tensor]:
    """A small SAE's trainer and a batch, the same on every device."""
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)).to(device)
    spec = TrainSpec(name, 64, 512, 1e-3, 256, 1000, **{"resample_every": 0, **OPTIONS[name], **changes})
    return Trainer(spec, torch.device(device), x.cpu()), x


@pytest.mark.parametrize("name", list(architectures()))
def test_no_step_makes_the_host_wait(name: str) -> None:
    made, x = trainer(name, "cuda")
    made.train_step(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(DEAD_EVERY - 2):
            made.train_step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", list(architectures()))
def test_gradients_are_those_of_the_processor(name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        made, x = trainer(name, device)
        with torch.no_grad():  # as in a step: gradients are written, not traced
            made.objective.gradients(made.weights, *made._rows(x), 0, None)
        found[device] = {n: p.grad.cpu() for n, p in made.weights.items() if p.grad is not None}
    for n, grad in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][n], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(architectures()))
def test_a_resumed_training_is_bit_identical(name: str) -> None:
    whole, x = trainer(name, "cuda", dead_after=1000)
    for _ in range(20):
        whole.train_step(x)
    tensors, meta = whole.state()
    again = Trainer.resume(whole.spec, tensors, meta, torch.device("cuda"))
    for _ in range(20):
        whole.train_step(x)
        again.train_step(x)
    assert all(torch.equal(p, again.weights[n]) for n, p in whole.weights.items())


def test_batches_of_a_store_are_whole_although_their_memory_is_filled_anew(tmp_path: Path) -> None:
    file = GrowingNpy(tmp_path / "values.npy", np.dtype(np.float32), (16,))
    file.append(np.random.default_rng(0).standard_normal((4096, 16), np.float32))
    file.finish()
    write_json(tmp_path / "meta.json", {"site": "x", "layer": 0, "width": 16, "dtype": "fp32", "n_rows": 4096})
    store = ActivationStore(tmp_path)
    here, there = (Reservoir(store, batch_size=64, ram_bytes=1 << 15, device=d).batches() for d in ("cpu", "cuda"))
    kept = [(next(here).rows[0].clone(), next(there).rows[0]) for _ in range(256)]
    assert all(torch.equal(a, b.cpu()) for a, b in kept)
