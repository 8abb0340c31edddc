"""Secrets are written nowhere, and a page holds what decides results, not whose machine it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from circuits.run import private
from circuits.run.config import load, root, save
from circuits.schema import BaseConfig

TOKEN, KEY, OWN = "hf_abcdefghijklmnopqrstuvwx", "it-is-no-known-form-42", "declared-by-me-only"


def holding(folder: Path, text: str) -> list[Path]:
    """The files below `folder` in which `text` stands."""
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_one_rule_says_what_is_a_secret() -> None:
    hidden = {
        "cluster.environment.HF_TOKEN=abc data.max_tokens=50": "cluster.environment.HF_TOKEN=*** data.max_tokens=50",
        "export WANDB_API_KEY='0123'": "export WANDB_API_KEY='***'",
        '{"db_password": "x y", "n": 1}': '{"db_password": "***", "n": 1}',
        "https://me:pw@host/x": "https://me:***@host/x",
        "Authorization: Bearer abcdefghijklmnopqrstuv": "Authorization: Bearer ***",
        f"the key {TOKEN} is refused": "the key *** is refused",
    }
    assert {text: private.hide(text) for text in hidden} == hidden
    for plain in (
        "token_id=3 single_token: 0.5",
        "key=sae/tiny-L0 key: circuits",
        "export HF_TOKEN=$MINE",
        "sae.k=64 tokens=900",
    ):
        assert private.hide(plain) == plain
    assert private.hidden({"HF_TOKEN": "a", "HF_HOME": "/x", "key": "k"}) == {
        "HF_TOKEN": "***",
        "HF_HOME": "/x",
        "key": "k",
    }
    assert (
        private.public("cluster.mail=me@x.org user.csd3.account=A sae.k=8")
        == "cluster.mail=*** user.csd3.account=*** sae.k=8"
    )
    assert private.word("cluster.environment.DB_PASSWORD=a b") == "cluster.environment.DB_PASSWORD=***"


@pytest.mark.parametrize("tracking", ["off", "wandb"])
def test_no_file_of_a_run_holds_a_secret(cli: Cli, tracking: str) -> None:
    note = f"note=with {TOKEN}, MY_API_KEY={KEY} and {OWN}"
    words = [
        "cluster.secrets=[MINE]",
        note,
        f"tracking={tracking}",
        *(["tracking.mode=offline"] if tracking == "wandb" else []),
    ]
    done = cli("task=prompts", "behaviour=induction", *words, WANDB_API_KEY="w" * 40, MINE=OWN)
    assert done.code == 0, done.err
    assert not [found for secret in (TOKEN, KEY, OWN, "w" * 40) for found in holding(cli.folder, secret)]
    (run,) = (cli.outputs / "runs").glob("*/*")
    assert any(holding(file.parent, "induction") for file in run.rglob("*.wandb")) == (tracking == "wandb")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "MY_API_KEY=***" in page and "hostname" not in page
    assert "behaviour.n_samples" in page, "what decides results"


def test_a_config_on_disk_holds_no_secret_and_no_interpolation(tmp_path: Path) -> None:
    cfg: Any = root()()
    cfg.task.name, cfg.task._target_, cfg.behaviour.name, cfg.model.id = (
        "prompts",
        "circuits.tasks.prompts.run",
        "ioi",
        "a ${x} b",
    )
    cfg.cluster.environment = {"HF_TOKEN": TOKEN, "HF_HOME": "/x"}
    save(cfg, tmp_path / "config.yaml")
    assert not holding(tmp_path, TOKEN)
    read = load(tmp_path / "config.yaml")
    assert read.cluster.environment == {"HF_TOKEN": private.HIDDEN, "HF_HOME": "/x"} and read.model.id == "a ${x} b"


def test_a_job_gets_its_secrets_from_the_shell_and_its_script_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.errors import UserError
    from circuits.launch.slurm.preflight import secret_findings
    from circuits.launch.slurm.request import cluster_environment, secret_environment

    cfg = BaseConfig()
    cfg.cluster.environment = {"HF_TOKEN": TOKEN, "HF_HOME": "/x"}
    assert cluster_environment(cfg)["HF_HOME"] == "/x" and "HF_TOKEN" not in cluster_environment(cfg)
    assert secret_environment(cfg) == {"HF_TOKEN": TOKEN} and not secret_findings(cfg, {})
    cfg.cluster.environment["HF_TOKEN"] = private.HIDDEN  # as it stands on disk: recover
    monkeypatch.setenv("HF_TOKEN", KEY)
    assert secret_environment(cfg) == {"HF_TOKEN": KEY}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="export HF_TOKEN=…"):
        secret_environment(cfg)
    cfg.cluster.environment = {}
    cfg.cluster.setup = [f"export HF_TOKEN={TOKEN}"]
    (finding,) = secret_findings(cfg, {})
    assert "cluster.setup: export HF_TOKEN=***" in finding and TOKEN not in finding
