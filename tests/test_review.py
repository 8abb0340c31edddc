"""Regressions that a review found: studies that set root keys, equal results under equal keys, claims of failed elements …"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from configs import compose, copy_conf, key, plan
from conftest import QUICK, Cli

from circuits.errors import UserError

SHORT = [QUICK, "sae.steps=20", "sae.heldout_sequences=16", "sae.block_rows=2048", "tracking=off"]


def test_an_experiment_sets_root_keys_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = copy_conf(tmp_path, monkeypatch)
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\nlayer: [1, 2]\nseed: 7\nsae:\n  k: 64\n")
    cfg = compose("experiment=mine")
    assert (cfg.layer, cfg.seed, cfg.sae.k) == ([1, 2], 7, 64)
    cfg = compose("experiment=mine", "seed=3")
    assert (cfg.layer, cfg.seed) == ([1, 2], 3)


def test_a_cap_beyond_the_schedule_changes_no_key() -> None:
    assert key("sae.max_steps=1000").hash == key().hash == key("sae.max_steps=5000").hash
    assert key("sae.max_steps=999").hash != key().hash
    assert key("experiment=sae_canary").hash == key().hash, "the canary is the default training with a gate"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["layer=0,1", "sae.nonfinite=drop"], None),
        (["layer=[0,1]", "sae.nonfinite=drop"], "sae.nonfinite=drop: one layer a run"),
        (["data.context=4096"], "data.context=4096: more than the model's 128 positions"),
        (["sae.skip_first=64"], "sae.skip_first=64: leaves nothing of data.context=64 tokens"),
        (["outputs=a,b"], "outputs: one sweep is over one value of it"),
        (["reuse=cached,force"], "reuse: one sweep is over one value of it"),
        (["cluster.grace_s=-1"], "cluster.grace_s=-1: 0 seconds or more"),
    ],
)
def test_limits_that_are_known_before_the_start(words: list[str], says: str | None, tmp_path: Path) -> None:
    if says is None:
        assert len(plan(*words, base=tmp_path)) == 2
        return
    with pytest.raises(UserError) as caught:
        plan(*words, base=tmp_path)
    assert says in str(caught.value)


def test_a_foreign_sae_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign"
    foreign.mkdir()

    def error() -> str:
        with pytest.raises(UserError) as caught:
            plan("layer=0", f"sae.from={foreign}", base=tmp_path)
        return str(caught.value)

    assert "cfg.json and sae_weights.safetensors missing" in error()
    (foreign / "cfg.json").write_text("{}")
    save_file({"W_enc": torch.zeros(2, 4)}, foreign / "sae_weights.safetensors")
    assert "cfg.json: d_in must be a whole number above 0, it is None" in error()
    (foreign / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 64, "d_sae": 256}))
    assert "its d_in=64 is not the site's width 128" in error()
    config = {"architecture": "standard", "d_in": 128, "d_sae": 256}
    (foreign / "cfg.json").write_text(json.dumps({**config, "architecture": "temporal"}))
    assert "architecture temporal is not supported: its features depend on the tokens before" in error()
    (foreign / "cfg.json").write_text(json.dumps(config))
    assert "lacks the tensor W_dec b_dec b_enc; a standard SAE has W_dec W_enc b_dec b_enc" in error()
    tensors = {"W_enc": (128, 256), "b_enc": (256,), "W_dec": (256, 128), "b_dec": (128,)}
    whole = {name: torch.zeros(shape) for name, shape in tensors.items()}
    save_file({**whole, "threshold": torch.zeros(256)}, foreign / "sae_weights.safetensors")
    assert "sae_weights.safetensors has the unknown tensor threshold; a standard SAE has" in error()
    save_file({**whole, "b_enc": torch.zeros(255)}, foreign / "sae_weights.safetensors")
    assert "tensor b_enc has shape [255], cfg.json asks for [256]" in error()
    (foreign / "cfg.json").write_text(json.dumps({**config, "architecture": "topk", "k": 257}))
    assert "cfg.json: k = 257 is more than d_sae = 256" in error()


def test_elements_with_equal_keys_end_also_when_the_first_fails(warm: Cli) -> None:
    done = warm("layer=0,[0]", "sae.lr=1e38", "sae.clip=1e30", "sae.warmup=0", "sae.log_every=1", *SHORT, timeout=120)
    assert done.code == 1 and "2 of 2 failed" in done.out, done.out + done.err


@pytest.mark.soak
def test_a_sweep_under_nohup_survives_the_terminal(warm: Cli, wait_until: Callable[..., None]) -> None:
    import subprocess

    running = subprocess.Popen(
        ["nohup", *warm.command("layer=0", *SHORT)],
        cwd=warm.folder,
        env=warm.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    wait_until(
        lambda: list((warm.outputs / "runs").glob("*/*/run.log")) or running.poll() is not None, 60, "the worker"
    )
    running.send_signal(signal.SIGHUP)
    assert running.wait(timeout=120) == 0
    assert len(warm.artifacts("sae")) == 1


def test_cached_elements_log_their_summary_into_the_new_sweep_s_group(warm: Cli) -> None:
    assert warm("layer=0,1", *SHORT).code == 0
    done = warm("layer=0,1", "name=again", *SHORT[:-1])
    assert done.code == 0 and "2 cached" in done.out
    (sweep,) = (warm.folder / "multirun").glob("*/again-*")
    assert len(list(sweep.glob("*/wandb/offline-run-*"))) == 2
    rows = [json.loads(line) for line in (sweep / "000-layer=0" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 0 and rows[0]["layer"] == 0 and "explained_variance" in rows[0]
