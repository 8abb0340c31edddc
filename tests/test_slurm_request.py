"""What an element asks of a cluster, told without one: resources, personal values, limits, and the script."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from configs import compose, copy_conf
from conftest import Cli
from prompt_sets import bpe, save_model

from circuits import slurm_commands
from circuits.errors import UserError
from circuits.launch.plan import Element
from circuits.launch.slurm import preflight
from circuits.launch.slurm.request import clock, minutes, missing_personal, placeholder, request_of
from circuits.launch.slurm.script import BODY, TELL
from circuits.slurm_commands import numbers
from circuits.store.layers import ranges as written

DRY = ["task=sae", "layer=0", "cluster.dry_run=true"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("90", 90), ("12:00:00", 720), ("01:30", 2), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:01", 2881), ("0:45", 1)],
)
def test_times_are_read_as_slurm_reads_them(text: str, count: int) -> None:
    assert minutes(text) == count


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "", "-5", "1.5", "12:00:00x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        minutes(text)


def test_times_and_element_numbers_are_written_as_people_and_sbatch_read_them() -> None:
    assert clock(2190) == "36:30:00"
    assert written([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and numbers("0-2,5,7-8%4") == [0, 1, 2, 5, 7, 8]


def test_equal_requests_share_an_array_and_others_get_their_own(cli: Cli) -> None:
    done = cli(*DRY, "cluster=slurm", "sae.lr=1e-3,1e-4", "task.resources.memory=4G,8G")
    assert done.code == 0, done.err
    arrays = done.out.split("#!/bin/bash")[1:]
    assert [("--array=0,2" in text, "--mem=4G" in text) for text in arrays] == [(True, True), (False, False)]
    assert "--array=1,3" in arrays[1] and "--mem=8G" in arrays[1], "original numbers"


def test_a_personal_value_gives_way_to_the_command_line_and_beats_the_environment(cli: Cli) -> None:
    words = [*DRY, "cluster=csd3"]
    env = {"CIRCUITS_CSD3_ACCOUNT": "FROM-ENV"}
    assert "--account=FROM-ENV" in cli(*words, **env).out
    assert "--account=MINE" in cli(*words, "user.csd3.account=MINE", **env).out
    assert "--account=SAID" in cli(*words, "user.csd3.account=MINE", "cluster.gpu.account=SAID", **env).out
    for_cpu = cli(*words, "user.csd3.account=GPU", "user.csd3.cpu_account=CPU", "task.resources.gpus=0")
    assert "--account=CPU" in for_cpu.out and "--partition=icelake" in for_cpu.out and "--gres" not in for_cpu.out
    ncc = cli(*DRY, "cluster=ncc")
    assert ncc.code == 2 and "ncc needs a partition: set user.ncc.partition" in ncc.err
    typed = cli(*DRY, "cluster=ncc", "user.ncc.partition=res-gpu-small", "user.ncc.gpu_type=turing")
    assert "--gres=gpu:turing:1" in typed.out and "--partition=res-gpu-small" in typed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.resources.time=48:00:00"], "task.resources.time=48:00:00: csd3 takes at most 36:00:00\n"),
        (
            ["task.resources.time=36:00:00", "user.csd3.account=P-sl3-gpu"],
            "task.resources.time=36:00:00: csd3 takes at most 12:00:00 under account P-sl3-gpu",
        ),
        (
            ["hydra.launcher.additional_parameters={comment: mine}"],
            "additional_parameters.comment: this launcher needs",
        ),
        (["hydra.launcher.additional_parameters.output=x"], "additional_parameters.output: this launcher needs that"),
        (["cluster.environment.A=b"], "cluster.environment has no A yet, and a mapping takes new names only in yaml"),
        (["task.resources.time=2"], "shorter than cluster.signal_s=120"),
        (["task.resources.memory=lots"], "task.resources.memory=lots: no size; write whole megabytes or gigabytes"),
        (
            ["cluster.sbatch=['--comment=mine']"],
            "cluster.sbatch=--comment=mine: this launcher needs that option itself",
        ),
        (["cluster.sbatch=['constraint=x']"], "cluster.sbatch=constraint=x: an option as sbatch takes it is expected"),
        (["cluster.workers=2"], "cluster.parallelism bounds an array"),
        (["user.csd4.account=x"], "user.csd4.account: no such key in user; did you mean user.csd3?"),
        (["model=org/nothing-here"], "org/nothing-here"),
    ],
)
def test_what_the_preset_refuses_is_one_line(cli: Cli, words: list[str], said: str) -> None:
    done = cli(*DRY, "cluster=csd3", "user.csd3.account=A", *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    assert not (cli.folder / "multirun").exists() and not (cli.outputs / "runs").exists()


@pytest.mark.parametrize(
    "option",
    [
        "--comment=mine",
        "--comment mine",
        "--comm=x",
        "-a0-9",
        "-a 0-9",
        "-oX",
        "--constraint=a --array=0-9",
        "--wait",
        "-H",
    ],
)
def test_options_that_the_record_rests_on_are_ours_however_they_are_spelled(option: str) -> None:
    assert preflight.ours(option)


@pytest.mark.parametrize(
    "option",
    [
        "--constraint=a b",
        "--nodes=1",
        "-A x",
        "-N1",
        "--nice -5",
        "--wait-all-nodes=1",
        "--export=ALL,comment=x",
        "-w node1",
    ],
)
def test_any_other_option_is_free(option: str) -> None:
    assert not preflight.ours(option)


def test_sl1_and_sl2_take_what_sl3_does_not(cli: Cli) -> None:
    words = [*DRY, "cluster=csd3", "task.resources.time=36:00:00"]
    assert "#SBATCH --time=2160" in cli(*words, "user.csd3.account=P-SL2-GPU").out


def test_the_stock_plugins_own_names_reach_the_script(cli: Cli) -> None:
    given = "hydra.launcher.additional_parameters"
    done = cli(*DRY, "cluster=slurm", f"{given}={{clusters: c1, exclusive: true}}", "hydra.launcher.setup=[echo]")
    assert done.code == 0, done.err
    assert "#SBATCH --clusters=c1\n" in done.out and "#SBATCH --exclusive\n" in done.out and "\necho\n" in done.out
    assert "#SBATCH --licenses=a:1\n" in cli(*DRY, "cluster=slurm", f"{given}.licenses='a:1'").out


def test_when_to_write_is_read_with_an_address_wherever_it_stands_and_a_preset_may_say_it_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("task=sae", "cluster=csd3", "cluster.mail_type=ALL")
    for address in ("cluster.mail", "user.csd3.mail"):
        assert request_of(compose(*words, f"{address}=me@cam.ac.uk"), {}).mail_type == "ALL"
    monkeypatch.setenv("CIRCUITS_CSD3_MAIL", "me@cam.ac.uk")
    assert request_of(compose(*words), {}).mail_type == "ALL"
    monkeypatch.delenv("CIRCUITS_CSD3_MAIL")
    with pytest.raises(UserError, match="mail_type=ALL: nobody is written to"):
        compose(*words)
    preset = copy_conf(tmp_path, monkeypatch) / "cluster" / "csd3.yaml"
    preset.write_text(f"{preset.read_text()}\nmail_type: ALL\n")
    cfg = compose(*words[:2])
    assert cfg.cluster.mail_type == "ALL" and request_of(cfg, {}).mail_type is None, (
        "a colleague's preset, nobody's address"
    )


def test_conf_user_local_yaml_says_what_is_yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copy_conf(tmp_path, monkeypatch) / "user" / "local.yaml"
    own.with_name("local.yaml.example").rename(own)
    words = ("task=sae", "cluster=csd3", "task.resources.gpus=0")
    assert compose(*words, base=tmp_path).user.csd3.account is None, "tests read nobody's"
    monkeypatch.delenv("CIRCUITS_USER")
    request = request_of(compose(*words, base=tmp_path), {})
    assert (request.account, request.mail) == ("MYPROJECT-SL3-CPU", "me@example.org")
    assert [line.split(" in conf")[0] for line in missing_personal(compose(*words, base=tmp_path), {})] == [
        "csd3: the account MYPROJECT-SL3-CPU is an example's; set yours, user.csd3.account",
        "csd3: the mail me@example.org is an example's; set yours, user.csd3.mail",
        "csd3: the scratch /rds/user/me/hpc-work is an example's; set yours, user.csd3.scratch",
    ]


@pytest.mark.parametrize(
    "value", ["MYPROJECT-SL3-GPU", "<account>", "<PROJECT>-SL3-GPU", "your-project-gpu", "CHANGEME"]
)
def test_a_value_to_be_filled_in_is_no_account(value: str, tmp_path: Path) -> None:
    cfg = compose("task=sae", "cluster=slurm", f"cluster.gpu.account='{value}'", base=tmp_path)
    assert missing_personal(cfg, {}) == [
        f"slurm: the account {value} is an example's; set yours, user.slurm.account in conf/user/local.yaml"
    ]
    assert not placeholder("MYPROJ-SL3-GPU") and not placeholder("GELLER-SL2-GPU")


def test_a_dataset_of_the_hub_has_to_be_in_the_cache_of_a_cluster_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose("task=sae", "cluster=csd3", "data=datasets", "data.path=someone/texts", base=tmp_path)
    element = Element(0, [], cfg)
    requests = {0: request_of(cfg, {})}
    monkeypatch.setattr("circuits.data.hub.cached_dataset", lambda name: None)
    (line,) = [line for line in preflight.local_findings([element], requests, {}) if "someone/texts" in line]
    assert line.endswith("first: python launch.py task=prefetch data=datasets data.path=someone/texts cluster=csd3")
    monkeypatch.setattr("circuits.data.hub.cached_dataset", lambda name: tmp_path)
    assert "someone/texts" not in str(preflight.local_findings([element], requests, {}))


def test_a_model_that_does_not_fit_a_gpu_is_refused_with_both_sizes(cli: Cli, tmp_path: Path) -> None:
    save_model(tmp_path / "model", bpe(600))
    words = [
        *DRY,
        "cluster=csd3",
        "user.csd3.account=A",
        f"model={tmp_path / 'model'}",
        "cluster.gpu.gpu_memory=1K",
        "data=text",
        "data.context=16",
    ]
    (tmp_path / "t.txt").write_text("a b c\n\n" * 9)
    done = cli(*words, f"data.path={tmp_path / 't.txt'}")
    assert done.code == 2 and "a GPU of csd3 has 1K; use precision=bf16 or a smaller model" in done.err, done.err


@pytest.mark.parametrize(("how", "code"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("true", 0)])
def test_the_script_ends_as_the_element_ended(tmp_path: Path, how: str, code: int) -> None:
    """The body under a plain bash, the element's command replaced by one that ends in a known way."""
    (tmp_path / "elements.txt").write_text(f"{tmp_path}\n")
    (tmp_path / "python").write_text(f"#!/bin/bash\n{how}\n")
    (tmp_path / "python").chmod(0o755)
    body = TELL + BODY.replace("{elements}", str(tmp_path / "elements.txt")).replace(
        "{python}", str(tmp_path / "python")
    )
    script = "asked=\ntrap 'asked=1' USR2\n" + body
    done = subprocess.run(
        ["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": "0", "PATH": "/usr/bin:/bin"}, check=False, timeout=60
    )
    assert done.returncode == code


def test_a_signal_during_start_up_reaches_the_element_once_it_listens(tmp_path: Path) -> None:
    """USR2 comes while "Python starts" (it is ignored then): it is passed on once the element hears it."""
    (tmp_path / "elements.txt").write_text(f"{tmp_path}\n")
    listening = "#!/usr/bin/env python3\nimport signal, time, sys\ntime.sleep(1.5)\n"
    listening += "signal.signal(signal.SIGUSR2, lambda *a: sys.exit(7))\n"
    (tmp_path / "python").write_text(listening + "time.sleep(60)\n")
    (tmp_path / "python").chmod(0o755)
    body = TELL + BODY.replace("{elements}", str(tmp_path / "elements.txt")).replace(
        "{python}", str(tmp_path / "python")
    )
    script = "asked=\ntrap 'asked=1' USR2\nkill -USR2 $$\n" + body  # as early as can be
    done = subprocess.run(
        ["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": "0", "PATH": "/usr/bin:/bin"}, check=False, timeout=60
    )
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("refusals", "words"),
    [(2, "Resource temporarily unavailable"), (9, "Resource temporarily unavailable"), (1, "Invalid qos")],
)
def test_a_full_controller_is_asked_again_and_a_no_is_a_no(
    refusals: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "sbatch"
    program.write_text(
        f"#!/bin/sh\necho x >> {asked}\n[ $(wc -l < {asked}) -gt {refusals} ] && echo '12;test' && exit 0\n"
        f"echo 'sbatch: error: Batch job submission failed: {words}' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_commands, "WAITS_S", (0.0, 0.1, 0.1))
    said: list[str] = []
    if refusals == 2:
        assert slurm_commands.submit("#!/bin/sh\n", said.append) == "12"
    else:
        with pytest.raises(slurm_commands.SlurmError, match=words):
            slurm_commands.submit("#!/bin/sh\n", said.append)
    tries = len(asked.read_text().split())
    assert tries == {2: 3, 9: 4, 1: 1}[refusals] and len(said) == tries - 1
    assert all(line.endswith(" s") and words in line for line in said)
