"""The Slurm that the launching tests run on is a real one: jobs tell the truth, it can be hurt and mended, it leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from loudly import left_out_loudly
from slurm import config, processes
from slurm.cluster import LONGEST, Cluster
from slurm.config import Options, Ports
from slurm.queueing import Queue, SlurmError

SCRIPT = ROOT / "tests" / "slurm" / "cluster.py"


def belonging(folder: Path) -> list[str]:
    """The processes that name a cluster's folder."""
    return [
        processes.arguments(pid)
        for pid in processes.everything()
        if str(folder) in processes.arguments(pid) or str(folder) in processes.environment(pid).get("SLURM_CONF", "")
    ]


def test_elements_of_an_array_end_with_their_own_truth_in_the_accounts(slurm: Queue, tmp_path: Path) -> None:
    script = "case $SLURM_ARRAY_TASK_ID in 0) srun true;; 1) exit 3;; *) kill -9 $$;; esac"
    job = slurm.submit(script, "--array=0-2", "--comment=truth", folder=tmp_path)
    ended = slurm.wait_ended(job)
    assert ended == {f"{job}_0": ("COMPLETED", "0:0"), f"{job}_1": ("FAILED", "3:0"), f"{job}_2": ("FAILED", "0:9")}
    assert [found.id for found in slurm.jobs(comment="truth")] == sorted(ended)


def test_a_requeued_element_runs_again_under_the_same_number(slurm: Queue, tmp_path: Path) -> None:
    script = 'echo $SLURM_RESTART_COUNT >> starts; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job = slurm.submit(script, "--requeue", folder=tmp_path)
    slurm.wait((tmp_path / "starts").exists, what="the first start")
    slurm.run("scontrol", "requeue", str(job))
    assert slurm.wait_ended(job) == {str(job): ("COMPLETED", "0:0")}
    assert (tmp_path / "starts").read_text() == "\n1\n" and slurm.details(job)["Restarts"] == "1"


def test_wrong_accounts_and_limits_are_refused_and_gpus_are_given(slurm: Queue, tmp_path: Path) -> None:
    for wrong in (["-A", "NOBODY"], ["-p", "ampere"], ["-p", "ampere", "-A", "MYPROJ-SL3-CPU"], ["-t", "48:00:00"]):
        with pytest.raises(SlurmError, match=r"Invalid account|time limit"):
            slurm.submit("true", *wrong, folder=tmp_path)
    words = ("-p", "ampere", "-A", "MYPROJ-SL3-GPU", "--gres=gpu:a100:2")
    job = slurm.submit("echo $CUDA_VISIBLE_DEVICES > given", *words, folder=tmp_path)
    assert slurm.wait_ended(job) == {str(job): ("COMPLETED", "0:0")}
    assert len((tmp_path / "given").read_text().split(",")) == 2


def test_clients_of_a_test_find_its_cluster(slurm: Queue) -> None:
    done = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"cpu*", "ampere", "gpu", "short", "scavenge"}


@pytest.mark.parametrize("own_slurm", [["MaxArraySize=5"]], indirect=True)
def test_a_private_cluster_is_hurt_and_mended(own_slurm: Queue, tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="Invalid job array"):
        own_slurm.submit("true", "--array=0-5", folder=tmp_path)
    job = own_slurm.submit("exec sleep 600", "--array=0-1", "--requeue", folder=tmp_path)
    own_slurm.wait(lambda: len(own_slurm.tasks(job)) >= 2, what="two sleeping elements")
    own_slurm.restart_controller()
    assert set(own_slurm.states(job).values()) == {"RUNNING"}, "jobs outlive the controller"
    own_slurm.kill_tasks(f"{job}_0")
    own_slurm.wait_state(f"{job}_0", "FAILED")

    daemons = own_slurm.cluster.pids
    assert set(daemons) == {"munged", "slurmctld", "slurmd-node1", "slurmd-node2"}
    processes.kill([*daemons.values(), *own_slurm.cluster.job_processes()])
    assert own_slurm.cluster.pids == {}
    own_slurm.restore()
    own_slurm.wait_state(f"{job}_1", "PENDING", "RUNNING")
    own_slurm.wait(lambda: own_slurm.details(f"{job}_1")["Restarts"] == "1", what="the lost element to be requeued")
    again = own_slurm.submit("true", folder=tmp_path)
    assert own_slurm.wait_ended(again) == {str(again): ("COMPLETED", "0:0")}

    own_slurm.submit("sleep 600 & sleep 600", folder=tmp_path)
    own_slurm.wait(own_slurm.cluster.job_processes, what="a job to leave behind")
    folder = own_slurm.cluster.folder
    subprocess.run([sys.executable, str(SCRIPT), "down", str(folder)], check=True)
    assert belonging(folder) == [] and not folder.exists()


def test_a_cluster_ends_with_its_owner_even_if_that_is_killed(slurm: Queue) -> None:
    folder = Path(f"/tmp/slurm-own{os.getpid()}")
    owner = subprocess.Popen(["sleep", "600"])
    cluster = Cluster(folder, Options(accounting=False, nodes=1, gpus=0))
    try:
        cluster.up().guarded_by(owner.pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert processes.until(lambda: not belonging(folder) and not folder.exists(), 120)
    finally:
        cluster.down()


def test_a_folder_too_long_for_sockets_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path("/tmp") / ("x" * LONGEST)
    done = subprocess.run([sys.executable, str(SCRIPT), "up", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not folder.exists()
    assert done.stderr == f"error: {folder} has {len(str(folder))} characters, at most {LONGEST}: choose /tmp/NAME\n"


def test_changes_replace_lines_of_the_same_key_and_add_others() -> None:
    ports = Ports(1, 2, (3, 4))
    changes = (
        "maxarraysize=5",
        "PartitionName=short Nodes=ALL MaxTime=1",
        "PartitionName=new Nodes=ALL",
        "Licenses=a:1",
    )
    before = config.slurm_conf(Path("/tmp/x"), Options(), ports).splitlines()
    after = config.slurm_conf(Path("/tmp/x"), Options(changes=changes), ports).splitlines()
    assert set(after) - set(before) == set(changes) and len(after) == len(before) + 2
    assert (
        after[-1] == changes[2]
        and after.index(changes[1])
        == before.index(next(line for line in before if line.startswith("PartitionName=short"))) + 1
    )


@pytest.mark.soak
def test_without_slurm_tests_are_skipped_loudly_or_fail_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from slurm import debian\ndebian.find = lambda name: None\n")
    (tmp_path / "test_one.py").write_text("def test_one(slurm): pass\ndef test_two(own_slurm): pass\n")
    left_out_loudly(
        tmp_path,
        "slurm.fixtures",
        "CIRCUITS_NEED_SLURM",
        "2 tests of launching on Slurm were NOT RUN: no Slurm here",
        "not installed",
    )
    assert shutil.which("sbatch"), "and the real one is still here"
