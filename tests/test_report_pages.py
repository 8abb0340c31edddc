"""The pages of baselines and activations, as the command line leaves them: what their tables and captions say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import QUICK, Cli, Done
from prompt_sets import animals, bpe, save_model, write_jsonl
from safetensors.torch import load_file, save_file
from test_report import Page

from circuits.files import write_json
from circuits.report.charts import Point, by_layer
from circuits.report.style import Looks

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
            assert f"{layer} {site} 2 78 39 1 32 fp32" in rows and f"{layer} {site} null 266 39 1 32 fp32" in rows
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
