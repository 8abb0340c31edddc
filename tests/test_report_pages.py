"""The pages of baselines and activations, as the command line leaves them: what their tables and captions say."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import QUICK, Cli, Done
from prompt_sets import animals, bpe, save_model, write_jsonl
from safetensors.torch import load_file, save_file
from test_report import Page

from circuits.drawing.style import Looks
from circuits.files import write_json
from circuits.report import build
from circuits.report.charts import Point, by_layer
from circuits.report.types import ArtifactRef, Element, ReportInput
from circuits.state import State

ODD = "§"  # in no other prompt: the broken token


def page(cli: Cli, place: str = "multirun/*/*") -> Page:
    """The page of the folder's only sweep."""
    (found,) = cli.folder.glob(f"{place}/report.html")
    return Page(found)


def table(text: str, title: str, until: str) -> str:
    """What stands between two texts of a page."""
    return text[text.index(title) : text.index(until, text.index(title))]


def test_a_command_without_its_page_fails_a_test() -> None:
    with pytest.raises(AssertionError, match="the page could not be made"):
        Done(0, "note: no report (KeyError: 'n'); task=report of=a makes it again\n", "")


def test_a_value_outside_its_own_interval_is_drawn() -> None:
    points = [Point(0, "a", -0.2, (-7.0, 5.0), "first"), Point(1, "b", 22.4, (-7.5, 12.0), "second")]
    sheet, _ = by_layer("outside", Looks("ab"), points, "score", floor=-0.5)
    figure = sheet.finish(title="", caption="", alt="", data=pd.DataFrame())
    assert "first" in figure.inline and "second" in figure.inline


def test_gates_of_baselines_are_those_of_each_element(warm: Cli) -> None:
    words = [
        "behaviour=ioi,facts",
        "behaviour.success_threshold=0,0.99",
        "behaviour.n_samples=12",
        "behaviour.n_test=4",
    ]
    done = warm("task=baseline", QUICK, "cluster.workers=0", "tracking=off", *words)
    assert done.code == 3, done.out + done.err
    made = warm.artifacts("baseline")
    assert len(made) == 2, "thresholds are no part of the key"
    shown = page(warm)
    assert "below its gate: ioi-tiny (success_threshold=0.99), facts-tiny (success_threshold=0.99)." in shown.text
    assert "every gate is passed" not in shown.text
    rows = table(shown.text, "Baselines", "Calibration")
    assert len(re.findall(r"\] passed 0 ", rows)) == len(re.findall(r"\] below 0\.99 ", rows)) == 2
    assert "One row for each set of thresholds" in rows and re.search(r"\d+\.\d% \[\d+\.\d%, \d+\.\d%\]", rows)
    assert "n = 16 prompts each. Bars: 95% bootstrap intervals of the mean, the unit drawn is the prompt." in shown.text
    assert "logit difference target − foil" in shown.source and "By split" in shown.text
    assert "Right of zero the model prefers the target" in shown.text and "perfect calibration" in shown.text
    names = {path.name for path in made}
    assert all(name in shown.text for name in names)
    assert {"baseline-differences.csv", "baseline-calibration.csv"} <= set(shown.downloads)
    metrics = json.loads((made[0] / "metrics.json").read_text())
    assert {"normalised_diff_median", "normalised_diff_std", "logit_diff_median", "logit_diff_std"} <= set(metrics)

    metrics.pop("brier")
    write_json(made[0] / "metrics.json", metrics)
    again = warm("task=report", f"of={next(warm.folder.glob('multirun/*/*')).name}")
    assert again.code == 0, again.err
    assert f"baseline/{made[0].name}: metrics.json lacks brier" in page(warm).text and made[1].name in page(warm).text


def test_prompts_show_their_lint_and_some_of_themselves(warm: Cli) -> None:
    words = ["behaviour=ioi,facts", "behaviour.n_samples=12", "behaviour.n_test=4", "cluster.workers=0", "tracking=off"]
    done = warm("task=prompts", *words)
    assert done.code == 0, done.out + done.err
    shown = page(warm)
    assert "2 prompt sets of 32 prompts in all;" in shown.text
    rows = table(shown.text, "Prompt sets", "What failed")
    for path in warm.artifacts("prompts"):
        lint = json.loads((path / "lint.json").read_text())
        name = path.name.rsplit("-", 1)[0]
        assert f"{name} 12 4 " in rows and f"prompts/{path.name}" in rows
        assert all(line in shown.text for line in lint["findings"])
        first = json.loads((path / "prompts.jsonl").read_text().splitlines()[0])
        assert first["prompt"] in shown.text and first["corrupt"] in shown.text


def broken(folder: Path) -> Path:
    """A small random model for which one token is not a number."""
    tokenizer = bpe(400)
    model = save_model(folder, tokenizer)
    weights = load_file(model / "model.safetensors")
    weights["transformer.wte.weight"][tokenizer.encode(ODD)[-1]] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_activations_of_two_sites_with_a_dropped_sample(cli: Cli) -> None:
    broken(cli.folder / "one")
    records = animals()
    records[3] |= {"id": "odd", "prompt": f"The {ODD} dog"}
    write_jsonl(cli.folder / "my.jsonl", records)
    words = [
        "model=one",
        "model.device=cpu",
        "behaviour=my.jsonl",
        "behaviour.multi_token=keep",
        "force=true",
        "layer=0-1",
    ]
    what = ["activations.site=[mlp_out,resid_post]", "activations.last_n=null,2", "activations.nonfinite=drop"]
    done = cli("task=activations", "cluster.workers=0", "tracking=off", *words, *what)
    assert done.code == 0, done.out + done.err
    shown = page(cli)
    assert "8 stores · layers 0–1 · at mlp_out, resid_post." in shown.text
    assert "from 39 samples" in shown.text and "Up to 1 sample left out as non-finite." in shown.text
    rows = table(shown.text, "Stores", "Norm by position")
    assert "activations.last_n rows samples dropped" in rows
    for site in ("mlp_out", "resid_post"):
        for layer in (0, 1):
            assert f"{layer} {site} 2 78 39 1 32 fp32" in rows and f"{layer} {site} null 263 39 1 32 fp32" in rows
    assert "Samples left out" in shown.text and re.search(r"mlp_out odd 0–1 .*resid_post odd 0–1", shown.text)
    assert "Bars: 95% intervals with whole samples as the unit" in shown.text
    for series in ("mlp_out, activations.last_n=null", "resid_post, activations.last_n=2"):
        assert series in shown.source
    assert "counted from the last token (0)" in shown.text and "(the first 64 that occur)" in shown.text
    positions = {"activations-positions.csv": "null", "activations-positions-from-end.csv": "2"}
    assert {"activations-norm.csv", *positions} <= set(shown.downloads)
    for name, value in positions.items():
        series = set(re.findall(r"activations\.last_n=\w+", shown.downloads[name]))
        assert series == {f"activations.last_n={value}"}, "zero is another place in each: never in one panel"
    assert shown.downloads["activations-norm.csv"].count("\n") == 1 + 8


def interpreted(folder: Path, meta: dict[str, Any], **metrics: Any) -> ArtifactRef:
    """An interpretation of one feature, whose tokens hold what would break a line."""
    folder.mkdir(parents=True)
    numbers = {"layer": 2, "site": "resid_post", "n_features": 1, "n_alive": 1, "n_rows": 9, "n_sequences": 3, "n_train": 30,
               "top_k": 1, "single_token": 1.0, "tested": 0, "significant": 0, "significant_features": 0, "significant_share": None,
               "shuffled_share": None, "shuffled_any": None, "replicated": None, "fdr": 0.05, "shuffles": 0}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(numbers | metrics))
    (folder / "meta.json").write_text(json.dumps({"edges": [1.0, 2.0], "no_token_effects": None, **meta}))
    (folder / "manifest.json").write_text("{}")
    words = {"promoted": [["\n\n"]], "promoted_effect": [[1.0]], "suppressed": [["\t"]], "suppressed_effect": [[-1.0]]}
    pd.DataFrame(
        {
            "feature": [7],
            "density": [0.1],
            "sequence_share": [0.5],
            "mean": [1.0],
            "maximum": [2.0],
            "suggestion": [""],
            "histogram": [[3]],
        }
        | words
    ).to_parquet(folder / "features.parquet")
    example = {"tokens": [["a\u202e", "\n", " b"]], "activations": [[0.0, 2.0, 0.0]], "peak": [1], "first": [0]}
    place = {"feature": [7], "activation": [2.0], "sample": [4], "position": [1]}
    pd.DataFrame(place | example).to_parquet(folder / "examples.parquet")
    columns = ("feature", "factor", "level", "n", "difference", "auc", "q", "significant", "difference_test")
    pd.DataFrame({name: [] for name in columns}).to_parquet(folder / "associations.parquet")
    return ArtifactRef("interpret", folder.name, folder, 2, f"interpret/{folder.name}")


@pytest.mark.parametrize(
    ("meta", "metrics", "says"),
    [
        ({"pool": None}, {}, "Not tested on a behaviour's factors: none asked for (interpret.associate=false)."),
        ({"pool": "max", "left_out": {"group": "fewer than two levels with 20 training prompts"}}, {},
         "Not tested on a behaviour's factors: group: fewer than two levels with 20 training prompts."),
        ({"pool": "max", "left_out": {}}, {}, "Not tested on a behaviour's factors: the prompts have no factor."),
        ({"pool": "max", "left_out": {"target": "divides the prompts as number does"}},
         {"tested": 10, "significant_share": 0.0, "shuffled_share": 0.0},
         "Not tested at layer 2: target: divides the prompts as number does."),
    ],
)  # fmt: skip
def test_an_interpretation_says_why_no_factor_was_tested(tmp_path: Path, meta: Any, metrics: Any, says: str) -> None:
    ref = interpreted(tmp_path / "store" / "interpret" / "one", meta, **metrics)
    element = Element(0, "000", [], {}, State.done, artifacts=[ref])
    page = build(ReportInput("t", "q", "s", "c", "a", [element], "2026"), tmp_path / "out").read_text()
    assert says in html.unescape(page)


def test_ends_of_lines_in_model_text_are_signs(tmp_path: Path) -> None:
    ref = interpreted(tmp_path / "store" / "interpret" / "one", {"pool": None})
    element = Element(0, "000", [], {}, State.done, artifacts=[ref])
    page = build(ReportInput("t", "q", "s", "c", "a", [element], "2026"), tmp_path / "out").read_text()
    assert ">⏎</span> b" in page and ">⏎⏎</code>" in page and ">⇥</code>" in page and "a\\u202e" in page
