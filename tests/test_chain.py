"""Several tasks in one plan: an element starts when exactly the elements that make its inputs have ended well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from configs import plan
from conftest import Cli, Done
from slurm.queueing import Queue
from slurm.sweeps import SLURM, SMALL, element, status, sweep_dir

from circuits.errors import UserError
from circuits.launch.chain import Chain
from circuits.launch.plan import After
from circuits.store.contents import Contents
from circuits.store.store import Store

STAGES = """
import json, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from circuits.command import overrides
from circuits.launch import launching, planning
from circuits.run import config
from circuits.store import places

stages = [[overrides.normalise(words).overrides for words in stage] for stage in json.loads(sys.argv[1])]
config.register()
with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
    try:
        names = [str(number) for number, stage in enumerate(stages) for _ in stage]
        lists = [words for stage in stages for words in stage]
        elements = planning.plan(lambda words: compose("config", overrides=list(words)), lists, Path.cwd(), names)
        sys.exit(launching.start(elements, Path.cwd(), {}))
    except launching.UserError as e:
        sys.exit("\\n".join(e.messages))
"""
READ = ["interpret.associate=false", "interpret.n_sequences=16", "interpret.max_features=8", "interpret.top_k=2"]
ASKED = [word for word in SMALL if word.startswith("task.resources.")]  # of a cluster
TRAIN = [*(word for word in SMALL if word not in ASKED), "sae.steps=8", "sae.batch_size=64", "seed=5"]


def launch(cli: Cli, stages: list[list[list[str]]]) -> Done:
    """The stages' elements as one plan."""
    return cli.python("-c", STAGES, json.dumps(stages))


def pair(*words: str, layers: tuple[int, ...] = (1, 2)) -> list[list[list[str]]]:
    """SAEs of two layers, and what their features stand for."""
    return [
        [["task=sae", f"layer={layer}", *TRAIN, *words] for layer in layers],
        [["task=interpret", f"layer={layer}", *TRAIN, *READ, *words] for layer in layers],
    ]


def test_an_input_that_nobody_makes_is_told_once_with_one_command(tmp_path: Path) -> None:
    elements = plan("task=interpret", "layer=0,1,3", "sae.k=16", "interpret.associate=false", base=tmp_path)
    store = Store(tmp_path / "outputs" / "artifacts")
    with pytest.raises(UserError) as e:
        Chain(store, Contents(), lambda holder: None, store.find).after(elements)
    (line,) = e.value.messages
    ids = [one.keys[layer].inputs["sae"].id for one, layer in zip(elements, (0, 1, 3), strict=True)]
    assert line.startswith(f"interpret needs {' '.join(ids)}, which do not exist; make them with: ")
    command = line.partition("make them with: ")[2]
    assert command == "python launch.py task=sae sae.k=16 'layer=[0-1,3]'"
    (element,) = plan("task=interpret", "layer=0", "behaviour=ioi", base=tmp_path)
    with pytest.raises(UserError, match=r"python launch\.py task=sae layer=0$"):  # which reads no behaviour
        Chain(store, Contents(), lambda holder: None, store.find).after([element])
    (element,) = plan("task=interpret", "layer=0", "behaviour=ioi", "multirun=m", "cluster.workers=2", base=tmp_path)
    with pytest.raises(
        UserError, match=r"python launch\.py task=sae layer=0 multirun=m cluster\.workers=2$"
    ):  # as asked
        Chain(store, Contents(), lambda holder: None, store.find).after([element])
    (made,) = plan("task=sae", "sae.k=16", "layer=[0-1,3]", base=tmp_path)
    assert [key.id for key in made.keys.values()] == ids, "one command makes them all"


def test_what_is_made_anew_is_waited_for_though_it_is_there(tmp_path: Path) -> None:
    words = ["layer=1", "reuse=force"]
    (sae,), (reader,) = (
        plan("task=sae", *words, base=tmp_path),
        plan("task=interpret", *words, "interpret.associate=false", base=tmp_path),
    )
    reader.index = 1
    store = Store(tmp_path / "outputs" / "artifacts")
    found = Chain(store, Contents(), lambda holder: None, lambda key: key).after([sae, reader])
    assert found == {1: After((0,))}


def test_elements_wait_here_for_what_makes_their_inputs_and_are_closed_when_it_fails(warm: Cli) -> None:
    stages = pair()
    stages[0][1].append("sae.min_r2=0.9999")  # a gate that says no: kept, and not what was asked for
    done = launch(warm, stages)
    assert done.code == 1 and "cancelled" in done.out, done.err + done.out
    sweep = sweep_dir(warm)
    found = {
        facts["index"]: status(sweep / facts["name"])
        for facts in json.loads((sweep / "sweep.json").read_text())["elements"]
    }
    assert [found[i]["state"] for i in range(4)] == ["done", "gate", "done", "cancelled"]
    assert "element 1, which makes an input of it, ended as gate" in found[3]["error"]
    assert found[2]["artifacts"][0]["inputs"][-1] == found[0]["artifacts"][0]["id"]
    assert "explained variance" in done.out and "one token" in done.out, "a table for each task"
    again = launch(warm, pair())
    assert again.code == 0 and "3 cached" in again.out, again.err + again.out


def test_on_slurm_an_element_starts_only_after_exactly_its_producers(slurm: Queue, warm: Cli) -> None:
    waiting = slurm.submit("sleep 600")
    done = launch(warm, pair(SLURM, *ASKED, f"cluster.sbatch=['--dependency=afterany:{waiting}']", "seed=6"))
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(warm)
    jobs = json.loads((sweep / "jobs.json").read_text())
    place = {index: f"{array['job']}_{index}" for array in jobs["arrays"] for index in array["elements"]}
    waits = {
        one.id: slurm.details(one.id)["Dependency"]
        for job in {j["job"] for j in jobs["arrays"]}
        for one in slurm.elements(job)
    }
    for mine, its in ((2, 0), (3, 1)):
        told = waits[place[mine]]
        assert f"afterok:{place[its]}" in told and place[1 - its] not in told, waits
    slurm.cancel(str(waiting))
    for job in {array["job"] for array in jobs["arrays"]}:
        assert {state for state, _ in slurm.wait_ended(job).values()} == {"COMPLETED"}
    found = [status(element(sweep, number)) for number in range(4)]
    assert [facts["state"] for facts in found] == ["done"] * 4
    assert all(found[mine]["began"] >= found[its]["ended"] for mine, its in ((2, 0), (3, 1)))
    assert found[2]["artifacts"][0]["inputs"][-1] == found[0]["artifacts"][0]["id"]
