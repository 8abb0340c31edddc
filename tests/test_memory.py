"""Memory is planned before anything is started: what does not fit is one line that says what would."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configs import plan
from conftest import ROOT, Cli

from circuits.host import free_memory
from circuits.launch import sweep as sweeps
from circuits.launch.local import pool_size
from circuits.launch.memory import Room, here, problems
from circuits.run import machine, status
from circuits.sae.memory import training


def test_the_figures_are_those_of_the_largest_tensors() -> None:
    """3584 → 14336 (a 7B model's stream, fourfold): 102.8 M parameters, as the source study has it."""
    need = training(3584, 14336, 256, architecture="topk", block_rows=16384, row_bytes=2)
    assert need.parameters == 2 * 3584 * 14336 + 14336 + 3584
    assert need.each == 16 * need.parameters + 16384 * 3584 * 2
    assert training(3584, 14336, 256, architecture="topk", best=True, parts=2).each == 24 * need.parameters
    both = training(8, 32, 4, architecture="relu", d_out=6, block_rows=100, row_bytes=4)
    assert both.parameters == (8 + 6) * 32 + 32 + 6 and both.each == 16 * both.parameters + 100 * 14 * 4
    stored = training(8, 32, 4, architecture="relu", ram=1e9)
    assert (stored.beside, stored.beside_each) == (24 * stored.parameters, 1_000_000_000)


def test_the_peak_is_of_the_device_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """``model.device=cuda:1``: the first device has seen nothing."""
    assert status.peak_gpu() is None or torch.cuda.is_available()
    for name, answer in (
        ("is_available", lambda: True),
        ("device_count", lambda: 2),
        ("max_memory_allocated", lambda i=None: {None: 0, 0: 0, 1: 7 << 30}[i]),
    ):
        monkeypatch.setattr(torch.cuda, name, answer)
    assert status.peak_gpu() == 7 << 30


@pytest.mark.parametrize("version", [1, 2])
def test_a_job_has_what_its_control_groups_leave_it(tmp_path: Path, version: int) -> None:
    """The step's own group has no limit, the job's has 3 GB, of which 1 GB are used and a half of that can be taken back."""
    limit, used, back, line = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "4:memory:/slurm/job_7/step_0"),
        2: ("memory.max", "memory.current", "inactive_file", "0::/slurm/job_7/step_0"),
    }[version]
    top = tmp_path / ("memory" if version == 1 else "")
    for place, most in (("slurm/job_7/step_0", 1 << 60 if version == 1 else "max"), ("slurm/job_7", 3_000_000_000)):
        (top / place).mkdir(parents=True, exist_ok=True)
        (top / place / limit).write_text(f"{most}\n")
        (top / place / used).write_text("1000000000\n")
        (top / place / "memory.stat").write_text(f"cache 5\n{back} 500000000\n")
    mine = tmp_path / "cgroup"
    mine.write_text(f"9:name=systemd:/\n{line}\n")
    assert free_memory(mine, tmp_path) == 2_500_000_000
    assert free_memory(tmp_path / "absent", tmp_path) > 2_500_000_000, "the machine's own, where nothing limits us"


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (Room(None, 100_000_000, main_called="100 MB are free"), "100 MB are free; 2 fit: take fewer layers"),
        (Room(100_000_000, 1 << 40, "a GPU has 100 MB", ""), "a GPU has 100 MB; 2 fit"),
        (Room(1 << 40, 1_000, "", "1 kB is free"), "1 kB is free; not even one fits; or lower sae.block_rows"),
        (Room(1 << 40, None), None),
        (Room(None, 1 << 40), None),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(room: Room, said: str | None) -> None:
    found = problems(plan("task=sae", "layer=0-1,2", "sae.k=16,32", "sae.baselines=false", "pack=4"), room)
    assert len(found) == (said is not None)
    if said is not None:
        assert "memory: 6 SAEs of 0.3 M parameters take at least" in found[0] and said in found[0], found


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cards as nvidia-smi shows them, of which we may see two, by their names; the second has less memory left."""
    cards = ["0, GPU-a0, 40000, 40000", "1, GPU-b1, 24000, 23000", "2, GPU-c2, 24000, 9000"]
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{card}'\n" for card in cards))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b1, 2")
    monkeypatch.setattr(machine, "gpus", machine.gpus.__wrapped__)


@pytest.mark.parametrize(
    ("device", "pool", "free", "said"),
    [
        ("auto", 1, 23000, "24.1 GB are free"),
        ("cuda", 2, 9000, "9.4 GB are free"),
        ("cuda", 4, 4500, "9.4 GB are free, for 2 workers"),
        ("cuda:1", 1, 9000, "9.4 GB are free"),
        ("cuda:0", 2, 11500, "24.1 GB are free, for 2 workers"),
    ],
)
def test_workers_have_what_is_free_of_the_gpus_that_they_go_to(
    device: str, pool: int, free: int, said: str, three_gpus: None
) -> None:
    (element,) = plan("task=sae", "layer=0", f"model.device={device}", "task.resources.gpus=1")
    room = here(element, pool)
    assert room.gpu == free << 20 and said in room.gpu_called


def test_a_device_that_is_named_gets_one_worker_and_the_processor_as_many_as_there_are_cores(three_gpus: None) -> None:
    sizes = {}
    for device in ("auto", "cuda", "cuda:1", "cpu"):
        elements = plan("task=sae", "layer=0,1,2,3", f"model.device={device}", "task.resources.gpus=1")
        sizes[device] = pool_size(elements[0].cfg, 4)
    assert sizes == {"auto": 2, "cuda": 2, "cuda:1": 1, "cpu": min(4, machine.cores())}


def test_a_sweep_that_does_not_fit_starts_nothing(cli: Cli) -> None:
    done = cli("task=sae", "layer=all", "sae.expansion=60000", "sae.baselines=false")
    assert done.code == 2 and len(done.errors) == 1, done.err
    assert "4 SAEs of 1973.8 M parameters take at least 205 GB" in done.err and "not even one fits" in done.err
    assert not (cli.folder / "multirun").exists()
    narrow = [
        "sae.expansion=2000",
        "sae.baselines=false",
        "cluster=csd3",
        "user.csd3.account=A",
        "cluster.gpu.gpu_memory=4G",
    ]
    dry = cli("task=sae", "layer=all", *narrow, "cluster.dry_run=true")
    assert dry.code == 2 and "a GPU of csd3 has 4G; 3 fit" in dry.err, dry.err


@pytest.mark.soak
@pytest.mark.parametrize(("told", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
def test_a_run_uses_the_memory_of_large_tensors_again(warm: Cli, told: dict[str, str], kept: bool) -> None:
    """Pages that the kernel has to find for a tensor of 64 MB that is made twenty times: those of one of them, or of all."""
    (element,) = plan("task=prompts", "behaviour=ioi", "tracking=off", base=warm.folder)
    directory = sweeps.create([element], warm.folder).directory(element)
    program = (
        "import resource, sys, torch\n"
        "from circuits.launch.element import main\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "assert main([sys.argv[1]]) == 0\n"
        "before = pages()\n"
        "for _ in range(20): torch.empty(16 << 20).fill_(1.0)\n"
        "print('pages', (pages() - before) * resource.getpagesize() >> 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        env={**warm.environment(), "PYTHONPATH": str(ROOT), **told},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    megabytes = int(done.stdout.rsplit("pages", 1)[1])
    if platform.libc_ver()[0] == "glibc":  # others are left as they are
        assert megabytes < 2 * 64 if kept else megabytes > 10 * 64
