"""A person's defaults: conf/user/local.yaml says what need not be typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from configs import compose, copy_conf
from prompt_sets import bpe, save_model
from test_overrides import fresh_choices, refused

from circuits.command import overrides
from circuits.launch import cli
from circuits.store import places

__all__ = ["fresh_choices"]  # a fixture that every test uses

MINE = """default:
  model: gemma-3-4b-it
  data: text
  data.path: {text}
  behaviour: cf
  cluster: csd3
csd3: {{account: P-SL3-GPU}}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ with a person's own values; where their text is."""
    text = tmp_path / "corpus.txt"
    text.write_text("one two three\n\nfour five\n")
    conf = copy_conf(tmp_path, monkeypatch)
    (conf / "user" / "me.yaml").write_text(MINE.format(text=text))
    monkeypatch.setenv("CIRCUITS_USER", "me")
    return text


def test_a_person_s_defaults_stand_as_if_typed_and_what_is_typed_wins(mine: Path) -> None:
    cfg = compose("task=sae", "layer=12")
    assert (cfg.model.id, cfg.data.path, cfg.cluster.name) == ("google/gemma-3-4b-it", str(mine), "csd3")
    assert cfg.user.csd3.account == "P-SL3-GPU" and cfg.behaviour.name == "cf"
    typed = compose("task=sae", "layer=1", "model=tiny", "data=embedded", "cluster=local")
    assert (typed.model.id, typed.data.path, typed.cluster.name) == ("tiny", None, "local")
    assert compose("task=sae", "data.path=/etc/hostname").data.path == "/etc/hostname"
    assert compose("task=status").model.id, "a default is no override of a task that does not read it"


def test_the_literal_command_of_the_cluster_works_with_a_person_s_defaults(mine: Path) -> None:
    words = overrides.normalise(["task=sae", "layer=range(10,25)", "-m", "cluster=csd3"])
    overrides.check(words)
    assert words.overrides[0] == "model=gemma-3-4b-it" and words.overrides[-1] == "cluster=csd3"
    assert "cluster=csd3" not in words.overrides[:-1]


def test_the_literal_command_asks_slurm_for_fifteen_elements(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one word more, which prints what sbatch would be given."""
    mine.write_text("\n\n".join(f"{i} one two three four five six seven eight nine ten" for i in range(5000)))
    model = save_model(tmp_path / "mine-26", bpe(), layers=26, positions=128)
    own = places.CONF / "user" / "me.yaml"
    own.write_text(own.read_text().replace("gemma-3-4b-it", str(model)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["task=sae", "layer=range(10,25)", "-m", "cluster=csd3", "cluster.dry_run=true"]) == 0
    asked = capsys.readouterr().out
    for line in ("--array=0-14", "--account=P-SL3-GPU", "--partition=ampere", "--gres=gpu:1", "--time="):
        assert f"#SBATCH {line}" in asked, asked
    assert not (tmp_path / "multirun").exists()


def test_a_default_gives_way_to_what_a_study_sets(mine: Path) -> None:
    study = places.CONF / "experiment" / "mine.yaml"
    study.write_text("# @package _global_\ndefaults: [override /model: tiny]\ndata: {path: /etc/hostname}\n")
    cfg = compose("task=sae", "experiment=mine", "layer=1")
    assert cfg.model.id == "tiny" and cfg.data.path == "/etc/hostname"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default: {sae.k: 3}", "conf/user/me.yaml: default: sae.k cannot have a default; keys of model data"),
        ("default: [model=gpt2]", "conf/user/me.yaml: default holds lines key: value"),
        ("default: {model: [a, b]}", "conf/user/me.yaml: default: model: one value is expected"),
        ("default: {model: a", "conf/user/me.yaml: not readable as yaml"),
    ],
)
def test_a_default_that_cannot_be_is_one_line(text: str, says: str, mine: Path) -> None:
    (places.CONF / "user" / "me.yaml").write_text(text)
    (message,) = refused("task=sae")
    assert message.startswith(says)


def test_the_resolved_config_says_where_each_value_came_from(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["task=sae", "sae=relu", "sae.lr=3e-4", "experiment=sae_canary", "--cfg", "job"]) == 0
    lines = [line.split(" # ") for line in capsys.readouterr().out.splitlines()]
    told = {line[0].strip(): line[1] for line in lines if len(line) == 2}
    assert told["sae:"] == "sae=relu: command line" and told["lr: 0.0003"] == "command line"
    assert told["min_r2: 0.7"] == "conf/experiment/sae_canary.yaml" and told["target_l0: 32.0"] == "conf/sae/relu.yaml"
    assert told["model:"] == "model=gemma-3-4b-it: conf/user/me.yaml" and told[f"path: {mine}"] == "conf/user/me.yaml"
    assert told["layer: all"] == "conf/config.yaml" and told["clip: 1.0"] == "built in"
