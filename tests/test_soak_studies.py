"""Whole studies under faults (``make soak``): kills at random moments over all kinds of task, a cluster without its daemons.

``SOAK_KILLS=20 SOAK_AWAY_S=60`` shorten them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Cli, sharing
from slurm.queueing import Queue
from slurm.sweeps import SLURM, SMALL, status, sweep_dir
from test_slurm_submission import KILLED
from test_slurm_submission import _python as python

from circuits.launch.slurm.submission import Submission

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("SOAK_KILLS", "100"))
AWAY_S = float(os.environ.get("SOAK_AWAY_S", "300"))
EVERY_KIND = """
about: every kind of task, small
overrides: [model=tiny, model.embedded.steps=10, tracking=off, task.resources.cpus=1, behaviour=grammar_agreement, force=true,
            behaviour.n_samples=24, behaviour.n_test=8, behaviour.allow_small=true, behaviour.min_logit_diff=-99, sae.steps=60,
            sae.checkpoint_every=10, sae.heldout_sequences=64, sae.block_rows=4096, interpret.n_sequences=64,
            interpret.max_features=64]
stages:
  prompts: {task: prompts}
  baseline: {task: baseline}
  activations: {task: activations, overrides: [layer=1-2]}
  stored: {task: activations, overrides: [layer=1-2, activations.source=data, activations.n_sequences=64]}
  saes: {task: sae, overrides: ["layer=1,2", "sae=topk,relu"]}
  features: {task: interpret, overrides: ["layer=1,2"]}
  graph: {task: attribution}
  circuit: {task: faithfulness}
  heads: {task: interventions, overrides: [intervention=heads]}
  geometry: {task: geometry, overrides: [layer=0, "geometry.heads=[1]"]}
  probes: {task: probing, overrides: [layer=1]}
  drawn: {task: attribution, overrides: [layer=1-2, attribution.level=features, attribution.graphs=2,
                                         attribution.max_features=20, attribution.min_explained=-9]}
  steering: {task: interventions, overrides: [intervention=steer, layer=1, intervention.generate=4]}
  across: {task: clt, overrides: [layer=1-2, sae=batchtopk, sae.site=mlp_in, sae.target_site=mlp_out, sae.expansion=2]}
  joined: {task: crosscoder, overrides: [layer=1-2, sae=batchtopk, sae.expansion=2]}
"""


def made(cli: Cli) -> dict[str, dict[str, str]]:
    """The hashes of what every artifact holds, but for files that hold times."""
    found = {}
    for path in (cli.outputs / "artifacts").glob("*/[!.]*/manifest.json"):
        manifest = json.loads(path.read_text())
        timed = {*manifest.get("measured", ()), "config.yaml"}
        found[f"{manifest['kind']}/{path.parent.name}"] = {
            name: facts["sha256"] for name, facts in manifest["files"].items() if name not in timed
        }
    return found


def test_soak_a_study_killed_at_random_moments_ends_as_one_that_was_not(quick_store: Path, tmp_path: Path) -> None:
    whole = sharing(quick_store, tmp_path / "whole") if (tmp_path / "whole").mkdir() is None else None
    assert whole is not None
    (whole.folder / "all.yaml").write_text(EVERY_KIND)
    began = time.monotonic()
    done = whole.plain("task=pipeline", "pipeline=all.yaml", timeout=1200)
    assert done.code == 0, done.err + done.out
    expected = made(whole)
    longest = max(12.0, (time.monotonic() - began) / 4)  # on a slow machine a launch needs longer to come anywhere
    draw, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        rounds += 1
        folder = tmp_path / f"round{rounds}"
        folder.mkdir()
        cli = sharing(quick_store, folder)
        (cli.folder / "all.yaml").write_text(EVERY_KIND)
        for _ in range(500):
            running = cli.start("task=pipeline", "pipeline=all.yaml")
            try:
                running.wait(draw.uniform(2.5, longest))
                break
            except subprocess.TimeoutExpired:
                victims = psutil.Process(running.pid).children(recursive=True)
                victim = draw.choice([running.pid, *(child.pid for child in victims)])
                for pid in {victim, running.pid}:  # a worker and its launcher, or the launcher alone
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                running.wait()
                kills += 1
        assert running.returncode == 0, running.stdout.read() if running.stdout else ""
        mine = made(cli)
        unlike = {name for name in expected | mine if expected.get(name) != mine.get(name)}
        assert not unlike, f"round {rounds}, {kills} kills: {sorted(unlike)}"
        left = list((cli.outputs / "artifacts").glob("*/*.partial"))
        assert not left, left
        cli.end()
    print(f"{kills} kills in {rounds} studies of {len(expected)} artifacts: all equal, nothing left behind")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, in memory: call it with a size to make it, or to change it."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        again = ["remount,"] if os.path.ismount(place) else [""]
        words = ["mount", "-t", "tmpfs", "-o", f"{again[0]}size={size}", "tmpfs", str(place)]
        subprocess.run(words, check=True, capture_output=True, text=True)
        return place

    yield sized
    subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("kilobytes", [16, 128, 512, 1024, 2048, 4096, 8192, 12288, 16384])
def test_soak_a_disk_that_is_full_at_any_moment_ends_a_study_in_plain_words_and_loses_nothing(
    kilobytes: int, disk: Callable[[str], Path], quick_store: Path, expected_of_every_kind: dict[str, dict[str, str]]
) -> None:
    """`kilobytes` are left when it begins; with room again the same command ends as if nothing had been."""
    cli = sharing(quick_store, disk("400m"))
    (cli.folder / "all.yaml").write_text(EVERY_KIND)
    used = sum(one.stat().st_blocks * 512 for one in cli.folder.rglob("*") if one.is_file())
    disk(f"{used // 1024 + kilobytes}k")
    done = cli.plain("task=pipeline", "pipeline=all.yaml", timeout=1200)
    told = done.out + done.err
    logs = "".join(log.read_text() for log in cli.folder.rglob("*.log"))
    assert done.code not in (0, None) and "Traceback" not in told + logs, told[-3000:]
    assert any(words in told + logs for words in ("no space left", "free some space", "and there is")), told[-3000:]
    disk("400m")
    again = cli.plain("task=pipeline", "pipeline=all.yaml", timeout=1200)
    assert again.code == 0, again.out[-3000:] + again.err[-3000:]
    mine = made(cli)
    assert {
        name for name in expected_of_every_kind | mine if expected_of_every_kind.get(name) != mine.get(name)
    } == set()
    assert not list((cli.outputs / "artifacts").glob("*/*.partial"))


@pytest.fixture(scope="module")
def expected_of_every_kind(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the study makes where nothing happens to it."""
    whole = sharing(quick_store, tmp_path_factory.mktemp("whole"))
    (whole.folder / "all.yaml").write_text(EVERY_KIND)
    done = whole.plain("task=pipeline", "pipeline=all.yaml", timeout=1200)
    assert done.code == 0, done.err + done.out
    return made(whole)


@pytest.mark.parametrize("own_slurm", [{"accounting": True}], indirect=True)
def test_soak_a_study_outlives_its_cluster_s_daemons(own_slurm: Queue, warm: Cli) -> None:
    (warm.folder / "all.yaml").write_text(EVERY_KIND.replace("task.resources.cpus=1, ", ""))
    words = [word for word in SMALL if word.startswith("task.resources.")]
    done = warm("task=pipeline", "pipeline=all.yaml", SLURM, *words)
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(warm)
    own_slurm.wait(lambda: len(warm.artifacts("sae")) >= 1, what="the first SAE")
    pids = own_slurm.cluster.pids
    for name in ("slurmdbd", "slurmctld"):  # one after the other, both away for the time
        os.kill(pids[name], signal.SIGKILL)
        time.sleep(AWAY_S / 2)
    own_slurm.restore()
    closing = int(json.loads((sweep / "jobs.json").read_text())["closing"])
    ended = own_slurm.wait_ended(closing)
    assert ended[str(closing)] == ("COMPLETED", "0:0")
    found = [status(sweep / item["dir"]) for item in json.loads((sweep / "sweep.json").read_text())["elements"]]
    assert {facts["state"] for facts in found} <= {"done", "cached"}
    makers = [
        json.loads(path.read_text())["by"] for path in (warm.outputs / "artifacts").glob("sae/[!.]*/manifest.json")
    ]
    assert len(makers) == len(set(makers)) == 4, "each was made once"


TWO = """
stages:
  first: {task: prompts, overrides: ["behaviour=ioi,facts"]}
  second: {task: prompts, overrides: [behaviour=induction], after: [first]}
"""


def test_soak_a_client_killed_between_any_two_steps_of_submitting_a_study(own_slurm: Queue, cli: Cli) -> None:
    (cli.folder / "two.yaml").write_text(TWO)
    words = ["task=pipeline", "pipeline=two.yaml", SLURM, "tracking=off", "task.resources.memory=500M"]
    for number, step in enumerate(Submission.STEPS):
        one = [*words, f"seed={number}"]
        killed = python(KILLED.format(step=step, words=one), cli)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = cli(*one)
        assert again.code == 0, again.err + again.out
        whole = step in ("record", "claim", "release")
        assert ("is now complete" if whole else "was cancelled") in again.err, (step, again.err)
    own_slurm.wait(
        lambda: not own_slurm.jobs("circuits:", live=True), what="the queue to empty: no orphan, no page is owed"
    )
    assert len(cli.artifacts("prompts")) == 3 * len(Submission.STEPS)
    made = [json.loads(path.read_text()) for path in (cli.folder / "multirun").glob("*/*/*/status.json")]
    assert len([facts for facts in made if facts["state"] == "done"]) == 3 * len(Submission.STEPS), "each was made once"
    pages = list((cli.folder / "multirun").glob("*/*/report.html"))
    assert len(pages) >= len(Submission.STEPS), "every study that stands has its page"


def test_soak_the_same_study_submitted_twice_at_once_is_made_once(slurm: Queue, warm: Cli) -> None:
    (warm.folder / "all.yaml").write_text(EVERY_KIND.replace("task.resources.cpus=1, ", ""))
    asked = [word for word in SMALL if word.startswith("task.resources.")]
    words = ["task=pipeline", "pipeline=all.yaml", "pipeline.until=features", SLURM, *asked]
    both = [warm.start(*words, **slurm.env) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    sweeps = sorted((warm.folder / "multirun").glob("*/*"))
    records = [json.loads((sweep / "jobs.json").read_text()) for sweep in sweeps if (sweep / "jobs.json").exists()]
    elements = [element for record in records for array in record["arrays"] for element in array["elements"]]
    assert len(sweeps) == 2 and len(elements) == len(set(elements)) == 10, "no element is in the queue twice"
    for record in records:
        if "closing" in record:
            slurm.wait_ended(int(record["closing"]))
    manifests = [json.loads(path.read_text()) for path in (warm.outputs / "artifacts").glob("*/[!.]*/manifest.json")]
    makers = {manifest["by"].split("/")[0] for manifest in manifests if manifest["kind"] != "tiny"}
    assert len(makers) == 1, makers
    for sweep in sweeps:
        shown = warm("task=status", f"of={sweep.name}")
        assert "failed" not in shown.out and "killed" not in shown.out, shown.out
