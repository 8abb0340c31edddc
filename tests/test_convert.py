"""Legacy configs as command lines: what a field means here, what of a file has no place, and where a file is broken."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli
from omegaconf import OmegaConf
from prompt_sets import write_jsonl

from circuits.command import asked
from circuits.errors import UserError
from circuits.interventions import settings
from circuits.interventions.settings import Settings
from circuits.schema import check
from circuits.store import places
from circuits.store.layers import parse_layers
from circuits.tasks._convert import commented
from circuits.tasks._convert.fields import Layer, Source, View
from circuits.tasks._convert.lines import Converted, converted
from circuits.tasks._convert.runs import Asked, preset

CONFIGS = ROOT / "tests" / "legacy" / "configs"
RUNS = sorted(path.name for path in CONFIGS.glob("*.json") if not path.name.startswith("battery_"))


def convert(name: str | Path, **asked: Any) -> Converted:
    """A fixture's lines."""
    found = converted(CONFIGS / name, Asked(**asked))
    assert found is not None
    return found


def words(found: Converted, line: int = 0) -> dict[str, str]:
    """The overrides of one of its lines."""
    typed = shlex.split(found.lines[line].removeprefix("# "))
    assert typed[:2] == ["python", "launch.py"]
    return dict(word.split("=", 1) for word in typed[2:])


def legacy(folder: Path, battery: dict[str, Any], **run: Any) -> Path:
    """A run of the lab with its battery inside."""
    path = folder / "run.json"
    path.write_text(json.dumps({"run_name": "x", "tag": "facts", "battery": battery, **run}))
    return path


# -- batteries ---------------------------------------------------------------------------------------------------


def test_conditions_are_a_sweep_over_behaviours() -> None:
    found = convert("h1_cross_condition.json")
    assert len(found.lines) == 1 and words(found) == {
        "task": "interventions", "intervention": "heads", "behaviour": "facts,cf,neg,logic", "intervention.split": "train",
        "model": "gpt2-medium", "precision": "fp16", "model.device": "cuda", "layer": "all", "intervention.edit": "zero",
        "intervention.positions": "all", "intervention.batch_size": "4", "name": "h1_cross_condition",
    }  # fmt: skip


def test_every_battery_of_the_lab_is_a_preset() -> None:
    triplet = convert("h5_triplet.json")
    assert [words(triplet, i)["intervention.groups"] for i in range(3)] == [
        "[[L0H2,L0H4,L0H7]]", "[[L0H2,L0H4],[L0H2,L0H7],[L0H4,L0H7]]", "[[L0H2,L0H15]]",
    ]  # fmt: skip
    assert {words(triplet, i)["intervention"] for i in range(3)} == {"head_groups"}
    forward, (facts, logic) = words(convert("h2_verified.json")), [words(convert("h6_windows.json"), i) for i in (0, 1)]
    assert [one["intervention"] for one in (forward, facts, logic)] == ["patch_layers"] * 3
    assert (forward["intervention.direction"], forward["intervention.positions"]) == ("denoising", "last")
    assert (facts["layer"], facts["intervention.direction"], facts["intervention.positions"]) == (
        "9-13",
        "noising",
        "last",
    )
    assert (logic["layer"], logic["intervention.positions"]) == ("0-2", "all")
    checkpoint = words(convert("h1_checkpoint.json"))
    assert (checkpoint["model"], checkpoint["model.revision"]) == ("pythia-160m", "step1000")
    control = words(convert("h1_control.json"))
    assert (control["intervention.edit"], control["intervention.scale"]) == ("scale", "0,0.5")
    assert (control["intervention.heads"], control["layer"]) == (
        "[2,4,7]",
        "0",
    ) and "intervention.controls" not in control
    assert [note.split(": ")[1] for note in convert("h1_control.json").notes] == [
        "random_control=true",
        "random_count=8",
    ]
    signature = words(convert("geometric_signature.json"))
    assert {key: value for key, value in signature.items() if key.startswith("geometry.")} == {
        "geometry.heads": "[2,4,7]", "geometry.samples": "64", "geometry.random_samples": "50",
        "geometry.methods": "[subspace,diagonal,per_token]",
    }  # fmt: skip
    assert signature["task"] == "geometry" and signature["layer"] == "0"


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        ({"type": "heads_zero", "layers": [0, 2]}, {"layer": "[0,2]", "intervention.edit": "zero"}),
        ({"type": "heads_zero", "scales": [0.5]}, {"intervention.edit": "scale", "intervention.scale": "0.5"}),
        ({"type": "heads_zero", "positions": [-1, -2]}, {"intervention.positions": "[-1,-2]"}),
        ({"type": "activation_patch", "granularity": "head_out"}, {"intervention.site": "head_z"}),
        ({"type": "activation_patch", "patch_direction": "both"}, {"intervention.direction": "noising,denoising"}),
        ({"type": "activation_patch", "positions": "subject_span"}, {"intervention.positions": "factor:subject"}),
        ({"type": "heads_subset_zero", "groups": [{"heads": [[0, 1], [3, 2]]}]},
         {"intervention.groups": "[[L0H1,L3H2]]", "layer": "[0,3]"}),
    ],
)  # fmt: skip
def test_a_field_of_a_battery_has_its_word(battery: dict[str, Any], expected: dict[str, str], tmp_path: Path) -> None:
    found = convert(legacy(tmp_path, battery))
    assert {key: words(found).get(key) for key in expected} == expected
    assert found.notes == [] or "subject" in found.notes[0]


@pytest.mark.parametrize(
    ("battery", "says"),
    [
        ({"type": "sae_toggle"}, "a battery of type sae_toggle is none that is known here"),
        ({"type": "heads_pair_zero", "layers": [0]}, "without pairs or groups"),
        ({"type": "activation_patch", "granularity": "layer_resit"}, "did you mean layer_resid?"),
        ({"type": "heads_zero", "positions": "first"}, "positions first are none"),
        ({"type": "geometric_signature"}, "without heads"),
    ],
)
def test_a_battery_that_cannot_be_run_gives_no_line_and_says_why(
    battery: dict[str, Any], says: str, tmp_path: Path
) -> None:
    found = convert(legacy(tmp_path, battery))
    assert not found.lines and any("no line: " in note and says in note for note in found.notes)


# -- models and what the command says instead ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt2-small", "gpt2"), ("gpt2", "gpt2"), ("GPT2-Large", "gpt2-large"), ("mistral-7b", "mistral-7b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"), ("Mistral-7B-v0.1", "mistral-7b"), ("pythia-160m", "pythia-160m"),
        ("pythia-410m", "EleutherAI/pythia-410m"), ("openlm-research/open_llama_7b", "openlm-research/open_llama_7b"),
    ],
)  # fmt: skip
def test_a_model_is_its_preset_or_its_name_on_the_hub(name: str, model: str) -> None:
    assert preset(name) == model


def test_device_number_format_and_batch_can_be_said_instead() -> None:
    given = {"device": "cpu", "dtype": "fp32", "batch": 16}
    found = words(convert("h1_cross_condition.json", **given))
    assert (found["model.device"], found["precision"], found["intervention.batch_size"]) == ("cpu", "fp32", "16")
    assert not any("batch_size" in note for note in convert("h1_cross_condition.json", **given).notes)
    small = words(convert("h2_verified.json", low_memory=True))
    assert (small["intervention.low_memory"], small["intervention.batch_size"], small["precision"]) == (
        "true",
        "8",
        "fp32",
    )
    low = words(convert("h1_low_memory.json"))
    assert (low["intervention.low_memory"], low["intervention.batch_size"]) == ("true", "auto"), "no number in the file"
    plain = words(convert("h1_low_memory.json", low_memory=False))
    assert not {"intervention.low_memory", "intervention.batch_size"} & set(plain)
    assert words(convert("geometric_signature.json", low_memory=True))["geometry.batch_size"] == "2"


def test_a_slice_that_is_measured_again_is_one_here() -> None:
    found = words(convert("h2_verified.json"))
    assert (found["intervention.verify"], found["intervention.verify_samples"]) == ("cpu", "10")


# -- nothing is lost -----------------------------------------------------------------------------------------------


def test_what_was_not_carried_over_is_told_by_file_and_field() -> None:
    notes = convert("h2_verified.json").notes
    file, battery = CONFIGS / "h2_verified.json", CONFIGS / "battery_h2_c2x.json"
    for start in (
        f"{file}: seed=0: nothing random is in the measurement",
        f'{file}: model.family="gpt2": read from',
        f'{file}: dataset.id="negation_lab_v1": prompts of behaviour=neg are drawn anew',
        f'{file}: dataset.split="val": what is drawn has no third part',
        f'{file}: metrics=["logit_diff", "perplexity"]: perplexity: not measured here',
        f"{file}: profiling.powermetrics=false: ",
        f'{file}: tracker="mlflow": no such field is known here',
        f'{battery.relative_to(Path.cwd()) if battery.is_relative_to(Path.cwd()) else battery}: positions="last_token"',
    ):
        assert sum(note.startswith(start) for note in notes) == 1, (start, notes)


@pytest.mark.parametrize("name", RUNS)
def test_every_field_of_a_file_is_carried_over_or_told(name: str, tmp_path: Path) -> None:
    """A field of a name that nobody knows is told wherever it is put."""

    def planted(value: Any, path: str = "") -> list[tuple[str, Any]]:
        """The config with an unknown field in one of its objects, once for each object."""
        if isinstance(value, dict):
            inner = [(p, {**value, key: v}) for key, one in value.items() for p, v in planted(one, f"{path}{key}.")]
            return [(f"{path}zzz=1", {**value, "zzz": 1}), *inner]
        if isinstance(value, list):
            places = [(i, planted(one, f"{path[:-1]}[{i}].")) for i, one in enumerate(value)]
            return [(p, [*value[:i], v, *value[i + 1 :]]) for i, found in places for p, v in found]
        return []

    shutil.copytree(CONFIGS, tmp_path / "configs")
    file, tries = tmp_path / "configs" / name, planted(commented.load(CONFIGS / name))
    assert tries
    for path, changed in tries:
        file.write_text(json.dumps(changed))
        notes = convert(file).notes
        assert any(note.startswith(f"{file}: {path}: ") for note in notes), (path, notes)


def test_a_list_of_an_upper_layer_covers_the_one_below() -> None:
    source = Source(Path("a.json"), {"below": {"pairs": [{"h": 1}, {"h": 2}]}, "above": {"pairs": [{"h": 3}]}})
    view = View(Layer(source, ("below",)), Layer(source, ("above",)))
    assert [item.get("h") for item in view.items("pairs")] == [3] and list(source.told({})) == []


# -- comments ------------------------------------------------------------------------------------------------------


def test_json_may_have_comments_and_a_comma_after_the_last_item(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = '{\n // one "\n "a": "http://x /* no */", /* two\n lines */ "b": [1, 2, ], // end\n "c": "1,]",\n}'
    path.write_text("\ufeff" + text)
    assert commented.load(path) == {"a": "http://x /* no */", "b": [1, 2], "c": "1,]"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{\n  "a": 1,\n  "b" 2\n}', "line 3, column 7: not JSON (Expecting ':' delimiter)"),
        ('{ // here\n  "a": [1, 2}\n', "line 2, column 13: not JSON"),
        ('{"a": 1 /* open', "line 1, column 9: not JSON (a comment /* without its end)"),
        ('{"a": 1, "a": 2}', "'a' stands twice in one object"),
        ("", "line 1, column 1: not JSON"),
        ("[1]", "no config of the lab"),
    ],
)
def test_broken_json_is_one_line_with_its_place(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        converted(path, Asked())
    (message,) = refused.value.messages
    assert message.startswith(str(path)) and says in message


# -- corpora of the lab --------------------------------------------------------------------------------------------


def lab(folder: Path, **split: Any) -> Path:
    """A folder as the lab's, with a corpus, its split file and a run of it."""
    records = [{"clean": f"C {i} is", "corrupt": f"D {i} is", "target": " a", "foil": " b"} for i in range(10)]
    for name in ("corpora", "splits", "configs"):
        (folder / "lab" / ("data" if name != "configs" else "") / name).mkdir(parents=True)
    write_jsonl(folder / "lab/data/corpora/negation_lab_v1.jsonl", records)
    sides = {"train": list(range(6)), "val": [6, 7], "test": [8, 9], **split}
    (folder / "lab/data/splits/negation_lab_v1.split.json").write_text(json.dumps({"seed": 123, **sides}))
    for name in ("h2_verified.json", "battery_h2_c2x.json"):
        shutil.copy(CONFIGS / name, folder / "lab/configs" / name)
    return folder / "lab/configs/h2_verified.json"


def test_the_labs_own_corpus_is_taken_with_its_split_where_it_is(tmp_path: Path) -> None:
    found = convert(lab(tmp_path))
    corpus = tmp_path / "lab/data/corpora/negation_lab_v1.jsonl"
    assert words(found)["behaviour"] == str(corpus) and words(found)["behaviour.validation"] == "only"
    assert words(found)["behaviour.splits"] == str(tmp_path / "lab/data/splits/negation_lab_v1.split.json")
    assert words(found)["intervention.split"] == "test" and not any("dataset." in note for note in found.notes)
    elsewhere = convert("h2_verified.json", data=tmp_path / "lab/data")
    assert words(elsewhere)["behaviour"] == str(corpus)


def test_rows_with_equal_answers_are_left_out_and_told(tmp_path: Path) -> None:
    config = lab(tmp_path)
    corpus = tmp_path / "lab/data/corpora/negation_lab_v1.jsonl"
    with corpus.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"clean": "E is", "corrupt": "F is", "target": " a", "foil": " a"}) + "\n")
    found = convert(config)
    assert words(found)["behaviour.unusable"] == "drop"
    assert any("target and foil are equal in line 11: left out" in note for note in found.notes)


def test_a_split_file_that_does_not_fit_its_corpus_is_left_out_and_told(tmp_path: Path) -> None:
    found = convert(lab(tmp_path, data_hash="0" * 64))
    assert "behaviour.splits" not in words(found)
    assert any("the split file is left out" in note and "0" * 64 in note for note in found.notes)


# -- the command ---------------------------------------------------------------------------------------------------


def test_lines_go_to_the_terminal_and_into_a_script(cli: Cli) -> None:
    shutil.copytree(CONFIGS, cli.folder / "legacy")
    done = cli("task=convert", "convert.src=legacy/*.json", "convert.out=run.sh", "convert.dry_run=true")
    assert done.code == 0 and not (cli.folder / "run.sh").exists(), done.err
    shown = [line for line in done.out.splitlines() if "launch.py" in line]
    assert len(shown) == 11 and "note: legacy/h1_cross_condition.json: shared.seeds=[0, 1, 2]: " in done.err
    assert "battery" not in done.err.replace("battery_h", "") or "which no run here names" not in done.err
    done = cli("task=convert", "convert.src=[legacy/h1_control.json,legacy/h5_triplet.json]", "convert.out=run.sh")
    script = cli.folder / "run.sh"
    assert done.code == 0 and script.stat().st_mode & stat.S_IXUSR and "written to run.sh" in done.err
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and text.count("python launch.py") == 4
    assert "#   not carried over: legacy/battery_h5_triplet.json: groups[0].label" in text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "convert.src: which configs"),
        (["convert.src=nowhere/*.json"], "convert.src=nowhere/*.json: no such file"),
        (["convert.src=bad.json"], "bad.json, line 1, column 2: not JSON"),
        (["convert.src=alone.json"], "convert.src: nothing in it could be converted"),
        (["convert.src=bad.json", "convert.dtype=fp8"], "convert.dtype=fp8: no such choice"),
        (["convert.src=alone.json", "convert.batch=0"], "convert.batch=0: 1 or more"),
        (["convert.src=alone.json", "sae.k=3"], "sae.k: task=convert does not read it"),
    ],
)
def test_what_cannot_be_converted_is_told_at_once(cli: Cli, given: list[str], says: str) -> None:
    (cli.folder / "bad.json").write_text("{]")
    (cli.folder / "alone.json").write_text('{"type": "heads_zero"}')
    done = cli("task=convert", *given)
    assert done.code == 2 and says in done.err, done.err


def lines() -> list[str]:
    """Every line that the fixtures become, and whose task this program has."""
    return [line for name in RUNS for line in convert(name).lines if not line.startswith("#")]


def test_no_line_is_a_comment_where_its_task_is_here() -> None:
    for name in RUNS:
        for i, line in enumerate(convert(name).lines):
            assert line.startswith("#") is (words(convert(name), i)["task"] not in places.choices("task"))


@pytest.mark.parametrize("line", lines())
def test_a_line_composes_and_breaks_no_rule(line: str, cli: Cli) -> None:
    """Each value of a sweep, with ``--cfg job``."""
    typed = shlex.split(line)[2:]
    swept = next((word for word in typed if re.fullmatch(r"[\w.]+=[\w.]+(,[\w.]+)+", word)), None)
    key, _, values = (swept or "").partition("=")
    for value in values.split(","):
        chosen = [word if word != swept else f"{key}={value}" for word in typed]
        shown = OmegaConf.create(cli(*chosen, "--cfg", "job").out)
        cfg = asked.compose(chosen)
        assert shown.task.name == cfg.task.name and shown.model.id == cfg.model.id
        assert check(cfg) == [] and _settings_problems(cfg) == []


def _settings_problems(cfg: Any) -> list[str]:
    """What the study itself would refuse."""
    if cfg.task.name != "interventions":
        return []
    given = Settings(**{f.name: getattr(cfg.intervention, f.name) for f in dataclasses.fields(Settings)})
    return settings.check(given, parse_layers(cfg.layer, cfg.model.layers, {}), cfg.model.layers)
