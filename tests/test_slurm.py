"""The same line on a real Slurm: one array, detached, honest, resumable."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from configs import edit
from conftest import ROOT, Cli
from slurm.queueing import Queue
from slurm.sweeps import (
    LONG,
    PROMPTS,
    SLURM,
    SMALL,
    element,
    ours,
    state,
    status,
    submitted,
    sweep_dir,
    training,
    weights,
)


def test_the_cards_line_makes_one_array_whose_elements_log_into_their_own_directories(slurm: Queue, warm: Cli) -> None:
    done = warm("task=sae", "layer=range(1,4)", "-m", SLURM, "sae.steps=8", *SMALL)  # an override after the flag
    job = submitted(done)
    sweep = sweep_dir(warm)
    assert "3 elements → slurm" in done.out and "follow    python launch.py task=status of=sae-" in done.out
    assert f"cancel    scancel {job}" in done.out
    assert slurm.wait_ended(job) == {f"{job}_{i}": ("COMPLETED", "0:0") for i in range(3)}, (
        "one array, original numbers"
    )
    assert {j.number for j in slurm.jobs(f"circuits:{sweep.name}:")} and len(warm.artifacts("sae")) == 3
    for number, layer in enumerate((1, 2, 3)):
        place = element(sweep, number)
        assert place.name == f"{number:03d}-layer={layer}"
        assert "done" in (place / "run.log").read_text() and status(place)["job"] == f"{job}_{number}"
        facts = json.loads((place / "provenance.json").read_text())["environment"]
        assert facts["slurm"]["SLURM_ARRAY_TASK_ID"] == str(number) and facts["slurm"]["SLURM_ARRAY_JOB_ID"] == job
    assert (sweep / "report.html").exists(), "the last element makes the page"
    assert not list((warm.outputs / "artifacts").glob("*/*.claim")), "who has ended claims nothing"
    shown = warm("task=status", f"of={sweep.name}")
    assert shown.code == 0 and shown.out.count("  done  ") == 3, shown.out
    accounted = json.loads((element(sweep, 0) / "provenance.json").read_text())["accounting"]
    assert accounted["state"] == "COMPLETED" and accounted["elapsed"] and accounted["max_rss"]
    assert accounted["total_cpu"] and accounted["time_limit"] and int(accounted["alloc_cpus"]) >= 1
    again = warm("task=sae", "layer=range(1,4)", "-m", SLURM, "sae.steps=8", *SMALL)
    assert again.code == 0 and "3 cached" in again.out and "submitted" not in again.out
    assert re.search(r"report +multirun/", again.out)


@pytest.mark.soak
def test_a_bad_night(slurm: Queue, warm: Cli, tmp_path: Path) -> None:
    """One element raises, one is killed, one is queued again by hand; Slurm tells the truth of each; the rest is untouched."""
    words = [
        "task=sae",
        "layer=0",
        "sae.lr=1e-3,1e38,2e-3,3e-3",
        "sae.clip=1e30",
        "sae.warmup=0",
        "sae.log_every=1",
        "sae.steps=600",
        "pack=1",
    ]
    small = [*SMALL, "sae.checkpoint_every=50", SLURM]
    job = submitted(warm(*words, *small))
    sweep = sweep_dir(warm)
    for number in (2, 3):
        slurm.wait(lambda n=number: training(sweep, n) or state(sweep, n) == "done", what=f"element {number} to train")
    slurm.kill_tasks(f"{job}_2", "circuits.launch.element")
    if state(sweep, 3) == "running":
        slurm.run("scontrol", "requeue", f"{job}_3")
    ended = slurm.wait_ended(job)
    assert ended[f"{job}_0"] == ended[f"{job}_3"] == ("COMPLETED", "0:0")
    assert ended[f"{job}_1"] == ("FAILED", "1:0")
    assert ended[f"{job}_2"] == ("FAILED", "0:9")
    shown = warm("task=status", f"of={sweep.name}").out
    assert re.search(r"1  .*layer 0, step \d+.* log multirun/.*/001-sae.lr=1e.?38/run.log", shown), shown
    assert re.search(r"2  killed by SIGKILL, without a word \(Slurm says FAILED 0:9\).*log multirun", shown), shown
    assert f"task=recover of={sweep.name}" in shown
    failed = json.loads((sweep / "failed_items.json").read_text())
    assert [item["index"] for item in failed] == [1, 2] and "layer 0, step" in failed[0]["error"], failed
    assert failed[1]["log"] == str(element(sweep, 2) / "run.log")
    # the same command again finishes only what is missing
    again = warm(*words, *small)
    assert "2 to run · 2 cached" in again.out, again.out + again.err
    second = submitted(again)
    assert slurm.wait_ended(second) == {f"{second}_1": ("FAILED", "1:0"), f"{second}_2": ("COMPLETED", "0:0")}
    alone = Cli(tmp_path / "alone")
    (alone.outputs / "artifacts").mkdir(parents=True)
    (alone.outputs / "artifacts" / "tiny").symlink_to(warm.outputs / "artifacts" / "tiny")
    here = [w for w in SMALL if "memory" not in w]  # no scheduler reads it
    assert alone(*[w.replace("1e38,", "") for w in words], *here, "sae.checkpoint_every=50").code == 0
    assert weights(warm) == weights(alone), "bit-identical to an undisturbed run"


@pytest.mark.soak
def test_a_run_at_its_time_limit_saves_is_queued_again_and_goes_on(slurm: Queue, warm: Cli) -> None:
    # 3 minutes less 140 s: turns of 40 s, as many as a slow machine needs to come to training twice
    limits = ["task.resources.time=3", "cluster.signal_s=140", "cluster.max_num_timeout=20"]
    job = submitted(
        warm("task=sae", "layer=1", "sae.steps=1500000", "sae.checkpoint_every=100000", SLURM, *limits, *SMALL)
    )
    run = sweep_dir(warm)
    slurm.wait(lambda: status(run)["timeouts"] >= 1, what="the first time limit")
    on = re.compile(
        r"is queued again.*layer 1: resumed at step [1-9]", re.DOTALL
    )  # a turn may end before it comes to training
    slurm.wait(lambda: on.search((run / "run.log").read_text()), 400, "a turn that goes on where another was stopped")
    log = (run / "run.log").read_text()
    assert f"time limit reached; job {job}_0 is queued again and goes on from what was saved" in log
    slurm.cancel(job)
    slurm.wait(lambda: not ours(slurm, run), what="the cancelled job to go")
    assert slurm.wait_ended(job)[f"{job}_0"][0] == "CANCELLED", "what was cancelled stays cancelled"


def test_a_signal_during_start_up_loses_nothing_and_limits_are_counted(slurm: Queue, cli: Cli) -> None:
    words = [*PROMPTS, "behaviour=ioi,facts", SLURM]
    job = submitted(cli(*words, "cluster.max_num_timeout=0", "cluster.parallelism=1"))
    sweep = sweep_dir(cli)
    slurm.wait(lambda: slurm.states(job).get(f"{job}_0") == "RUNNING", what="the first element to start")
    slurm.run("scancel", "--batch", "--signal=USR2", f"{job}_0")
    ended = slurm.wait_ended(job)
    assert ended[f"{job}_1"] == ("COMPLETED", "0:0")
    if ended[f"{job}_0"][0] == "FAILED":  # it was caught before the run was over: no turn is left, and it says so
        shown = cli("task=status", f"of={sweep.name}").out
        before_all = "killed by SIGUSR2 before the run began"  # before the script's first line: only Slurm can tell
        assert "reached its time limit once" in shown or before_all in shown, shown
    again = cli("task=recover", f"of={sweep.name}")
    if ended[f"{job}_0"][0] == "FAILED":
        second = submitted(again)
        assert slurm.wait_ended(second) == {f"{second}_0": ("COMPLETED", "0:0")}, (
            "exactly the missing one, by its own number"
        )
    assert len(cli.artifacts("prompts")) == 2


@pytest.mark.soak
def test_a_preempted_run_saves_and_goes_on(slurm: Queue, warm: Cli) -> None:
    job = submitted(warm("task=sae", "layer=2", SLURM, "cluster.cpu.partition=scavenge", *LONG))
    run = sweep_dir(warm)
    slurm.wait(lambda: training(run, 0), what="training")
    node = slurm.details(f"{job}_0")["NodeList"]
    other = slurm.submit("sleep 1", "--partition=cpu", f"--nodelist={node}", "--exclusive", "--mem=0", "--time=2")
    slurm.wait(lambda: status(run)["restarts"] == 1 or state(run, 0) == "done", what="the preempted run to start again")
    assert re.search("preempted|queued again by Slurm", (run / "run.log").read_text())
    assert status(run)["timeouts"] == 0, "a preemption is no time limit"
    slurm.cancel(job, other)


@pytest.mark.soak
def test_a_cancelled_element_stays_cancelled_and_recover_brings_back_exactly_it(slurm: Queue, warm: Cli) -> None:
    job = submitted(warm("task=sae", "layer=0,3", "sae.lr=1e-3", SLURM, *LONG))
    sweep = sweep_dir(warm)
    slurm.wait(lambda: training(sweep, 1), what="training")
    hints = warm("task=status", f"of={sweep.name}").out
    assert re.search(rf"^cancel    scancel {job}      one: scancel {job}_[01]$", hints, re.MULTILINE), hints
    assert re.search(rf"^requeue   scontrol requeue {job}_[01]      \(it goes on", hints, re.MULTILINE), hints
    slurm.cancel(f"{job}_1")
    slurm.wait(lambda: slurm.states(job)[f"{job}_1"] == "CANCELLED", what="the element to be cancelled")
    shown = warm("task=status", f"of={sweep.name}")
    assert re.search(r"1 +001-layer=3 +(cancelled|interrupted)", shown.out), shown.out
    second = submitted(warm("task=recover", f"of={sweep.name}"))
    queued = slurm.states(second)
    assert set(queued) == {f"{second}_1"}, "the one that is missing, under its own number; the other is still running"
    slurm.wait(lambda: training(sweep, 1) or state(sweep, 1) == "done", what="its second turn")
    slurm.cancel(job, second)
    nothing = warm("task=recover", "of=nonesuch")
    assert nothing.code == 2 and "no such sweep" in nothing.err


def test_two_submitters_at_once_one_submits_the_other_adopts(slurm: Queue, cli: Cli) -> None:
    words = [*PROMPTS, "behaviour=ioi,facts", SLURM, "cluster.sbatch=['--begin=now+600']"]
    both = [cli.start(*words) for _ in range(2)]
    told = [process.communicate(timeout=200)[0] for process in both]
    first = next(text for text in told if "submitted" in text)
    second = next(text for text in told if text is not first)
    assert "submitted" not in second and re.search(r"2 already queued \(\d+_0, \d+_1\)", second), second
    job = re.search(r"scancel (\d+)", first)
    assert (
        job
        and len({j.split("_")[0] for j in (x.id for x in slurm.jobs("circuits:", live=True)) if j.startswith(job[1])})
        == 1
    )
    slurm.cancel(job[1])


def test_an_edited_file_stops_the_element_in_one_line(slurm: Queue, cli: Cli) -> None:
    file = cli.folder / "mine.jsonl"
    line = '{{"prompt": "the capital of {} is", "target": " {}", "foil": " {}"}}\n'
    names = ["france paris rome", "italy rome paris", "spain madrid berlin", "germany berlin madrid"]
    file.write_text("".join(line.format(*name.split()) for name in names))
    words = [*PROMPTS, f"behaviour={file}", "behaviour.allow_small=true", "note=mine"]
    waiting = slurm.submit("sleep 600")
    done = cli(*words, SLURM, f"cluster.sbatch=['--dependency=afterany:{waiting}']")
    job, sweep = submitted(done), sweep_dir(cli)
    file.write_text(file.read_text().replace("madrid", "lisbon"))
    slurm.cancel(waiting)
    slurm.wait_ended(job)
    facts = status(sweep)
    assert facts["state"] == "failed" and "key changed since this element was launched" in facts["error"]
    assert not cli.artifacts("prompts")
    refused = cli("task=recover", f"of={sweep.name}")
    assert refused.code == 2 and "has changed since it was submitted" in refused.err


@pytest.mark.soak
def test_edits_while_elements_wait_config_changes_nothing_and_code_is_named(slurm: Queue, warm: Cli) -> None:
    """A snapshot sees neither; another version of the kind stops an element."""
    copy = warm.folder / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("local.yaml", "*.pyc.*"))
    shutil.copy(ROOT / "launch.py", copy)
    waiting = slurm.submit("sleep 600")

    def launched(*words: str) -> tuple[str, Path]:
        held = f"cluster.sbatch=['--dependency=afterany:{waiting}']"
        return submitted(warm.python(str(copy / "launch.py"), *words, SLURM, held, **slurm.env)), sweep_dir(warm)

    job, run = launched("task=sae", "layer=1", "sae.steps=8", *SMALL)
    other, stopped = launched(*PROMPTS, "behaviour=facts")
    snapshot, untouched = launched(*PROMPTS, "behaviour=ioi", "cluster.snapshot=true")
    edit(copy / "conf" / "sae" / "topk.yaml", "k: 32", "k: 8")
    edit(
        copy / "circuits" / "sae" / "loop.py",
        "import annotations",
        "import annotations  # edited while the element waits",
    )
    edit(copy / "circuits" / "tasks" / "prompts.py", "version = 2", "version = 3")
    slurm.cancel(waiting)
    assert slurm.wait_ended(job) == {f"{job}_0": ("COMPLETED", "0:0")}
    (made,) = warm.artifacts("sae")
    assert json.loads((made / "metrics.json").read_text())["l0"] == 32, "the config is the one that was submitted"
    log = (run / "run.log").read_text()
    assert "warning: the code was edited since this element was launched" in log and "circuits/sae/loop.py" in log
    assert slurm.wait_ended(other) == {f"{other}_0": ("FAILED", "1:0")}
    assert "the code's version of the kind, was edited; launch it again" in status(stopped)["error"]
    assert slurm.wait_ended(snapshot) == {f"{snapshot}_0": ("COMPLETED", "0:0")}
    assert "warning" not in (untouched / "run.log").read_text()
    (prompts,) = warm.artifacts("prompts")
    assert (
        json.loads((prompts / "manifest.json").read_text())["key"]
        == json.loads((untouched / "element.json").read_text())["keys"]["all"]
    ), "made by the code that was submitted"


@pytest.mark.soak
def test_a_sweep_of_one_is_an_array_and_can_be_waited_for(slurm: Queue, warm: Cli) -> None:
    done = warm("task=sae", "layer=3", "sae.steps=8", SLURM, "cluster.wait=true", *SMALL)
    assert done.code == 0, done.err + done.out
    assert re.search(r"submitted \d+_\[0\]", done.out) and "sae/tiny-L3-topk-" in done.out
    (run,) = (warm.outputs / "runs").glob("*/*/status.json")
    assert json.loads(run.read_text())["job"].endswith("_0")
    failing = warm("task=sae", "layer=3", "sae.steps=8", "sae.min_r2=0.999", SLURM, "cluster.wait=true", *SMALL)
    assert failing.code == 3, "a gate says no, also to an answer from the store"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # found before the start, or by sbatch itself
        (["cluster.cpu.account=NOBODYS"], r"account NOBODYS: you cannot charge it on slurm; yours: .*myproj-sl3-cpu"),
        (["cluster.cpu.partition=amper"], r"partition amper: no such partition; did you mean ampere\? partitions: "),
        (["task.resources.time=2-00:00:00", "cluster.cpu.partition=short"], r"time=48:00:00: partition short takes at most 30:00"),
        (["task.resources.time=13:00:00"], r"time=13:00:00: partition cpu takes at most 12:00:00"),  # the default one
        (["task.resources.time=soon"], r"task.resources.time=soon: no time; write minutes"),
        (["task.resources.memory=900G"], r"sbatch: no node has what is asked for .*lower task.resources.memory"),
        (["cluster.sbatch=['--no-such-option']"], r"sbatch: .*unrecognized option '--no-such-option'"),
        (["cluster=csd3", "cluster.cpu.partition=cpu"], r"csd3 needs an account: set user.csd3.account in conf/user/local.yaml"),
        (["hydra.launcher.timeout=5"], r"hydra.launcher.timeout: no such key.*timeout_min"),
    ],
)  # fmt: skip
def test_what_slurm_would_refuse_is_one_line_and_nothing_is_queued(
    slurm: Queue, warm: Cli, words: list[str], said: str
) -> None:
    done = warm("task=sae", SLURM, "layer=0", *SMALL, *words)
    assert done.code == (1 if said.startswith("sbatch:") else 2) and re.search(said, done.err), done.err + done.out
    assert "Traceback" not in done.err and len(done.errors) == 1
    assert not [
        job
        for job in slurm.jobs("circuits:sae-", live=True)
        if str(warm.folder) in slurm.details(job.id).get("WorkDir", "")
    ]
    assert not list((warm.outputs / "artifacts").glob(".submissions/*.json"))


def test_a_dry_run_prints_the_script_and_submits_nothing(cli: Cli) -> None:
    words = [
        "task=sae",
        "layer=range(0,3)",
        "-m",
        "cluster=csd3",
        "cluster.dry_run=true",
        "cluster.sbatch=['--constraint=a b']",
    ]
    own = [
        "user.csd3.account=P-SL3-GPU",
        "user.csd3.scratch=/scratch/me",
        "user.csd3.mail=ab12@cam.ac.uk",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.array_parallelism=2",
    ]
    done = cli(*words, *own)
    assert done.code == 0, done.err
    for line in ("--array=0-2%2", "--account=P-SL3-GPU", "--partition=ampere", "--time=90", "--cpus-per-task=32", "--gres=gpu:1",
                 "--constraint=a b", "--requeue", "--hold", "--signal=B:USR2@120", "--mail-user=ab12@cam.ac.uk",
                 "--mail-type=END,FAIL"):  # fmt: skip
        assert f"#SBATCH {line}" in done.out, line
    assert "wckey" not in done.out
    assert "export HF_HOME=/scratch/me/huggingface" in done.out and "export HF_HUB_OFFLINE=1" in done.out
    assert "export WANDB_MODE=offline" in done.out, "whatever tracking.mode says: nothing there reaches a server"
    assert "module load rhel8/default-amp" in done.out and "-m circuits.launch.element" in done.out
    assert not (cli.folder / "multirun").exists()
    from_env = cli(*words, CIRCUITS_CSD3_ACCOUNT="FROM-ENV")
    assert "#SBATCH --account=FROM-ENV" in from_env.out


def test_it_works_from_inside_a_session_of_slurm_and_from_any_directory(slurm: Queue, cli: Cli) -> None:
    words = [*PROMPTS, "behaviour=ioi", SLURM, "cluster.snapshot=true"]
    done = subprocess.run(
        ["salloc", "--quiet", "--ntasks=1", "--mem=200M", "--time=5", "srun", "--ntasks=1", *cli.command(*words)],
        cwd=cli.folder, env=cli.environment(**slurm.env), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = re.search(r"submitted (\d+)_\[0\]", done.stdout)
    assert found, done.stdout + done.stderr
    assert slurm.wait_ended(found[1]) == {f"{found[1]}_0": ("COMPLETED", "0:0")}
    run = sweep_dir(cli)
    assert (run / "code" / "circuits" / "launch" / "element.py").exists(), "it ran from a copy of the code"


@pytest.mark.soak
def test_the_stock_launcher_of_hydra_works_and_tells_the_truth(slurm: Queue, cli: Cli) -> None:
    stock = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.timeout_min=5",
        "hydra.launcher.mem_gb=1",
        "hydra.launcher.cpus_per_task=1",
    ]
    done = cli("task=prompts", "behaviour=ioi,facts", "-m", "tracking=off", *stock, timeout=400)
    assert done.code == 0, done.err[-2000:] + done.out[-2000:]
    assert len(cli.artifacts("prompts")) == 2
    assert {path.parent.name for path in cli.folder.glob("**/*_submitted.pkl")} <= {
        path.name for path in (cli.folder / "multirun" / "submitit" / ".submitit").glob("*")
    }, "its pickles stay in its own folder"
    folder = cli.folder / "multirun" / "submitit" / ".submitit"
    assert folder.stat().st_mode & 0o077 == 0, "what is unpickled there, nobody else can put there"
    (cli.folder / "one.jsonl").write_text('{"prompt": "a b", "target": " c", "foil": " d"}\n')
    bad = cli("task=prompts", "behaviour=one.jsonl", "-m", "tracking=off", *stock, timeout=400)
    assert bad.code != 0, bad.out
    job = max(
        int(path.name.split("_")[0]) for path in (cli.folder / "multirun" / "submitit" / ".submitit").glob("[0-9]*")
    )
    assert {state for state, _ in slurm.wait_ended(job).values()} == {"FAILED"}, "a failed run is a failed job"


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_without_accounting_a_killed_element_is_told_and_waiting_ends(own_slurm: Queue, warm: Cli, number: int) -> None:
    waiting = warm.start("task=sae", "layer=0,1", SLURM, "cluster.wait=true", *LONG)
    own_slurm.wait(lambda: training(sweep_dir(warm), 0), what="training")
    sweep = sweep_dir(warm)
    (job,) = {name.split("_")[0] for name in ours(own_slurm, sweep)}
    own_slurm.kill_tasks(f"{job}_0", "circuits.launch.element", number)
    own_slurm.wait(lambda: training(sweep, 1) or state(sweep, 1) == "done", what="the other one, untouched")
    own_slurm.cancel(f"{job}_1")
    out, _ = waiting.communicate(timeout=200)
    assert waiting.returncode == 1 and "0  layer=0  killed by SIGKILL, without a word" in out, out
    assert re.search(r"1  layer=1  (stopped|cancelled)", out), out


@pytest.mark.soak
def test_a_restarted_controller_and_a_lost_node_cost_no_result(own_slurm: Queue, warm: Cli) -> None:
    job = submitted(warm("task=sae", "layer=0", SLURM, *[w.replace("6000", "1500") for w in LONG]))
    run = sweep_dir(warm)
    own_slurm.wait(lambda: training(run, 0), what="training")
    own_slurm.restart_controller()
    node = own_slurm.details(f"{job}_0")["NodeList"]
    own_slurm.kill_node(node)
    own_slurm.restore()
    own_slurm.wait(lambda: state(run, 0) == "done", what="the run to be done in its second turn")
    assert status(run)["restarts"] >= 1 and len(warm.artifacts("sae")) == 1
