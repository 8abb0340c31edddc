"""Slurm, before the first line of ours runs: paths that look like patterns, modules and set-up lines that fail, failed launches."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli
from slurm.queueing import Queue
from slurm.sweeps import PROMPTS, SLURM, ours, sweep_dir

from circuits.launch.slurm import states
from circuits.launch.slurm.states import facts_of
from circuits.launch.sweep import load
from circuits.state import state_of


def ended(slurm: Queue, cli: Cli) -> dict[str, object]:
    """The status of a sweep's only element once its job has left the queue and accounting, which is told a moment later, knows."""
    slurm.wait(lambda: not ours(slurm, sweep_dir(cli)), what="the job to leave the queue")
    slurm.wait(lambda: not state_of(facts_of(load(sweep_dir(cli)))[0]).live, what="the element to have ended")
    return facts_of(load(sweep_dir(cli)))[0]


def test_a_folder_whose_name_looks_like_slurms_patterns_shell_and_all(slurm: Queue, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "50%j 'a' $(x) %%A")
    cli.folder.mkdir()
    done = cli(*PROMPTS, "behaviour=ioi", SLURM, "name='größe 100%j'", "cluster.wait=true")
    assert done.code == 0 and "done" in done.out, done.out + done.err
    (place,) = cli.folder.glob("outputs/runs/*/größe_100_j-*")
    assert [path.name for path in place.glob("slurm/*.out")] == [f"{facts_of(load(place))[0]['job']}.out"]


@pytest.mark.parametrize(
    ("sign", "called"), [("\t", "tab"), ("\n", "line end"), ("\\", "backslash"), ("\r", "control character")]
)
def test_a_folder_that_slurm_cannot_name_is_refused_before_the_submission(cli: Cli, sign: str, called: str) -> None:
    """A tab separates a pack's directories; under a backslash Slurm reads no pattern."""
    place = Cli(cli.folder / f"a{sign}b")
    place.folder.mkdir()
    for seeds, key in (("0", "outputs"), ("0,1", "multirun")):
        done = place(*PROMPTS, "behaviour=ioi", f"seed={seeds}", SLURM)
        (error,) = done.errors
        assert done.code == 2 and done.out == "" and f"Slurm takes no path with a {called} in it" in error, done
        assert f"choose another folder with {key}=DIR" in error and not list(place.folder.rglob("element.json"))


def test_modules_and_set_up_lines_that_fail_stop_the_element_and_are_named(slurm: Queue, cli: Cli) -> None:
    """This machine has no `module`; one that complains and returns 0, as old versions do, is defined by the set-up."""
    old = "module() { echo \"ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for '$2'\" >&2; }"
    profile = cli.folder / "profile.sh"
    profile.write_text("false  # as many a site's profile does\nFROM_PROFILE=1\n")
    fine = [f". '{profile}'", "[ -f nosuch ] && . nosuch", 'if false; then exit 1; fi; test "$FROM_PROFILE" = 1']
    for given, said in (
        (["cluster.modules=[nosuch/1.0]"], "exit code 127: module load nosuch/1.0"),
        ([f"cluster.setup=['{old}']".replace("'$2'", "$2"), "cluster.modules=[nosuch/1.0]"], "module load nosuch/1.0"),
        (["cluster.setup=['cd /nosuch']"], "exit code 1: cd /nosuch"),
        (["cluster.python=/nosuch/python"], "/nosuch/python"),
    ):
        done = cli(*PROMPTS, "behaviour=ioi", SLURM, *given)
        assert done.code == 0, done.err
        facts = ended(slurm, cli)
        assert said in str(facts["error"]), facts
        assert facts["exit_code"] and facts["state"] == ("killed" if "python" in said else "failed")
        assert cli.artifacts("prompts") == []
    written = ",".join("'" + word.replace("'", "\\'") + "'" for word in fine)
    done = cli(*PROMPTS, "behaviour=ioi", SLURM, f"cluster.setup=[{written}]")
    assert done.code == 0, done.err
    assert ended(slurm, cli)["state"] == "done", "what set -e lets pass is passed"


def test_a_job_that_was_never_launched_is_not_told_as_memory(slurm: Queue, cli: Cli) -> None:
    done = cli(*PROMPTS, "behaviour=ioi", SLURM, "seed=3", "cluster.sbatch=['--begin=now+2']")
    assert done.code == 0, done.err
    place = sweep_dir(cli) / "slurm"
    place.rename(place.with_name("gone"))  # its output cannot be opened: Slurm calls that a launch failure
    facts = ended(slurm, cli)
    assert facts["state"] == "killed" and "memory" not in str(facts["error"]), facts
    assert "before the run began (" in str(facts["error"]) and "scontrol show job" in str(facts["error"])


def test_a_signal_before_the_scripts_first_line_is_named_whatever_reason_slurm_gives(tmp_path: Path) -> None:
    """Slurm calls it a launch failure where bash had not begun to read; a true one has a number that is no signal's."""
    for code, said in (
        ("0:12", "killed by SIGUSR2 before the run began"),
        ("0:53", "(JobLaunchFailure); scontrol show job 7"),
    ):
        facts = {"state": "waiting", "job": "7_0"}
        states._last_word(facts, "FAILED", code, {"Reason": "JobLaunchFailure", "JobId": "7"}, tmp_path, tmp_path)
        assert said in str(facts["error"]) and facts["state"] == "killed", facts
