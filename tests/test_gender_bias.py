"""The picture study from one line to its page, on a model that is trained here in seconds; what is missing is made alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Cli, shared
from filelock import FileLock
from pieces import in_pieces
from scipy import sparse
from slurm.queueing import Queue

import circuits
from circuits.activations.pictures import PictureRows
from circuits.data import kept_tables
from circuits.data.journal import Journal
from circuits.data.keeper import Keeper
from circuits.data.pictures import table
from circuits.data.pictures.saved import read
from circuits.features import cross_lingual
from circuits.features.bias_saved import BiasStatistics
from circuits.interventions import bias_study
from circuits.interventions.bias_choice import Condition
from circuits.tasks.cross_lingual import _layer as layer_of

MODEL = [
    "model=tiny_vlm",
    "model.embedded.steps=220",
    "behaviour=gender_bias",
    "behaviour.n_samples=150",
    "behaviour.n_test=90",
]
SMALL = [
    *MODEL,
    *("sae.steps=200", "sae.heldout_sequences=16", "sae.block_rows=2048", "sae.baselines=false"),
    *(
        "intervention.controls=2",
        "intervention.samples=16",
        "intervention.generate=6",
        "intervention.caption_controls=1",
    ),
    *("baseline.tokens=6", "baseline.resamples=200", "cross_lingual.draws=20", "tracking=off"),
    *("bias_stats.permutations=100", "bias_stats.resamples=100", "bias_stats.shuffles=5"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A whole study, made once for all workers; whoever changes it takes :func:`mine`."""
    cli = shared(tmp_path_factory, "bias")
    with FileLock(cli.folder / ".lock"):
        if not (cli.folder / ".made").exists():
            done = cli("task=pipeline", "pipeline=gender_bias", "name=gb", *SMALL, timeout=900)
            assert done.code == 0, done.err + done.out
            (cli.folder / ".made").touch()
    yield cli
    cli.end()


@pytest.fixture
def mine(study: Cli, tmp_path: Path) -> Iterator[Cli]:
    """A copy of its store."""
    shutil.copytree(study.outputs, tmp_path / "outputs", symlinks=True)
    cli = Cli(tmp_path)
    yield cli
    cli.end()


def metrics(study: Cli, kind: str, has: str = "") -> dict[str, object]:
    (path,) = [path for path in study.artifacts(kind) if has in path.name]
    found: dict[str, object] = json.loads((path / "metrics.json").read_text())
    return found


def test_the_study_finds_what_was_planted(study: Cli) -> None:
    said = metrics(study, "baseline")
    assert said["agreement"] > 0.95 and said["context_to_gender"]["ci"][0] > 0.2  # type: ignore[operator,index]
    assert abs(said["controls"]["blank"]["context_to_gender"]["value"]) < 1e-6  # type: ignore[index]
    plain = [path for path in study.artifacts("bias_stats") if "seen_unseen" not in path.name]
    found = json.loads((plain[0] / "metrics.json").read_text())
    assert found["significant"] > 20 and found["primary"] == "twins" and found["shuffled_hits"] < 2
    table = pd.read_parquet(plain[0] / "statistics.parquet")
    for language in ("english", "arabic"):
        mine = table[(table["language"] == language) & table["significant"]]
        assert len(mine) and (mine["twin_q"] < 0.05).all()
    both = metrics(study, "cross_lingual")
    assert both["shared_share"] > 5 * both["shared_by_chance"] and both["transfer"] > 0.8  # type: ignore[operator]
    assert len(study.artifacts("activations")) == 4 * 2 and len(study.artifacts("sae")) == 4


def test_a_picture_that_one_language_dropped_is_compared_in_none(study: Cli) -> None:
    place = next(path for path in study.artifacts("bias_stats") if "unseen" not in path.name)
    statistics, pictures = BiasStatistics(place), read(study.artifacts("prompts")[0])
    assert statistics.absent(1, "arabic") == []
    context: Any = SimpleNamespace(
        cfg=SimpleNamespace(seed=0), run=SimpleNamespace(stop=SimpleNamespace(cutting=nullcontext))
    )
    s = cross_lingual.Settings(draws=20)
    whole = layer_of(context, statistics, pictures, 1, s)[1]
    seen = [i for i, p in enumerate(pictures) if p.factors["seen"] in ("male", "female")]
    statistics.meta["absent"] = {"L1/arabic": seen[:7], "L1/english": seen[5:9]}
    less = layer_of(context, statistics, pictures, 1, s)[1]
    assert whole["probes"][0]["n"] == len(seen) and less["probes"][0]["n"] == len(seen) - 9


def test_edits_are_measured_beside_controls_and_leave_seen_pictures_mostly_alone(study: Cli) -> None:
    for path in study.artifacts("interventions"):
        summary = pd.read_parquet(path / "summary.parquet")
        assert (summary["controls"] == 2).all() and summary["base_parity"].between(0, 0.5).all()
        assert (summary["p_controls"] >= 1 / 3 - 1e-9).all(), "among two controls no p is below a third"
        assert not summary["significant"].any(), "whatever the pictures say"
        assert (summary["caption_controls"] == 1).all() and summary["control_words_change"].notna().all()
        assert (summary["words_low"] <= summary["words_change"]).all()
    across = [path for path in study.artifacts("interventions") if (path / "cross_layer.json").exists()]
    found = json.loads((across[0] / "cross_layer.json").read_text())
    assert found["layers"] == [0, 1, 2, 3] and set(found["male_biased_ablation"]) == {"0", "1", "2", "3"}


def test_amplification_is_as_many_times_the_ablation_in_the_artifacts(study: Cli) -> None:
    tables = [pd.read_parquet(path / "summary.parquet") for path in study.artifacts("interventions")]
    scaled = (
        pd.concat(tables)
        .query("kind == 'scale'")
        .drop_duplicates(["layers", "which", "factor"])
        .set_index(["layers", "which", "factor"])
    )
    assert len(scaled)
    for (layers, which, factor), row in scaled.iterrows():
        ablated = scaled.loc[(layers, which, 0.0), "recon_male_mean"]
        assert row["recon_male_mean"] == pytest.approx(abs(factor - 1) * ablated, rel=1e-3)


def test_captions_under_edits_are_the_same_in_one_go_and_in_pieces(study: Cli, tmp_path: Path) -> None:
    (lm,), (pictures,) = ([circuits.open(path) for path in study.artifacts(kind)] for kind in ("tiny", "prompts"))
    found = study.artifacts("sae")[0]
    layer = json.loads((found / "manifest.json").read_text())["layers"][0]
    once = Condition((layer,), "both", "scale", 0.0, {layer: (0, 1, 2)})
    wanted = [once, dataclasses.replace(once, features={layer: (5, 6, 7)}, control=1)]

    def work(keeper: Keeper[str]) -> pd.DataFrame:
        asked = bias_study.Study(
            lm, PictureRows(pictures, lm), tuple(pictures.where("test")[:5]), {layer: circuits.open(found)},
            "resid_post", 1, 2, 0, steps=6, journal=Journal(keeper),
        )  # fmt: skip
        effects, texts = bias_study.run(asked, pictures.languages[:1], wanted)
        return pd.concat([effects, texts], axis=1)

    pd.testing.assert_frame_equal(in_pieces({"effects": tmp_path / "kept"}, work, (1, 4, 3)), work(Keeper()))


def test_a_table_is_made_once_and_read_as_it_was_written(tmp_path: Path) -> None:
    table = pd.DataFrame({"d": [0.1 + 0.2, np.nan], "language": ["english", "arabic"]}, index=[3, 7])
    matrix, made = sparse.random(5, 7, 0.3, format="csc", rng=0), []

    def make() -> kept_tables.Found:
        made.append(1)
        if len(made) == 1:
            raise KeyboardInterrupt
        return {"t": table}, {"n": 2, "d": 1 / 3, "none": None}, {"m": matrix}

    (tmp_path / "L1.new").mkdir()
    with pytest.raises(KeyboardInterrupt):
        kept_tables.once(tmp_path / "L1", make)
    for _ in range(2):
        again, facts, matrices = kept_tables.once(tmp_path / "L1", make)
        pd.testing.assert_frame_equal(again["t"], table)
        assert facts == {"n": 2, "d": 1 / 3, "none": None} and (matrices["m"] != matrix).nnz == 0
    assert len(made) == 2


def test_the_page_has_all_of_it_and_loads_nothing(study: Cli) -> None:
    (page,) = (study.folder / "multirun").glob("*/gb-*/report.html")
    text = page.read_text(encoding="utf-8")
    for title in (
        "Two directions of bias",
        "Controls of the stimulus",
        "Features that carry gender",
        "Two languages",
        "Edits of gender-biased",
    ):
        assert title in text, title
    assert 'dir="rtl"' in text and "data:image/png;base64," in text
    assert "http://" not in text.replace("http://www.w3.org", "") and 'src="http' not in text


def test_a_missing_language_is_made_alone(mine: Cli) -> None:
    lost = next(path for path in mine.artifacts("activations") if "L2" in path.name and "arabic" in path.name)
    before = {
        path.name: json.loads((path / "manifest.json").read_text())["created"] for path in mine.artifacts("activations")
    }
    shutil.rmtree(lost)
    done = mine("task=activations", "layer=all", *MODEL, "tracking=off")
    assert done.code == 0, done.err
    after = {
        path.name: json.loads((path / "manifest.json").read_text())["created"] for path in mine.artifacts("activations")
    }
    assert {name for name in after if after[name] != before[name]} == {lost.name} and set(after) == set(before)


def test_the_source_layout_is_read_by_torch_alone(study: Cli, tmp_path: Path) -> None:
    (sweep,) = (study.folder / "multirun").glob("*/gb-*")
    done = study("task=export", "export.format=source_layout", f"of={sweep.name}", f"export.path={tmp_path / 'out'}")
    assert done.code == 0, done.err
    (report,) = (tmp_path / "out/visualizations/FINAL_REPORT").glob("COMPLETE_ANALYSIS_REPORT_*.md")
    text = report.read_text()
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert figures and all((report.parent / name).exists() for name in figures), "it stands by itself"
    _read_back(tmp_path / "out/data/processed/samples.csv", study)
    place = tmp_path / "out" / "checkpoints"
    assert len(list((place / "full_layers_ncc" / "layer_checkpoints").glob("*.pt"))) == 8
    one = torch.load(place / "full_layers_ncc" / "layer_checkpoints" / "layer_2_arabic.pt", weights_only=True)
    assert (
        one["activations"].shape[0] == len(one["genders"]) == 240
        and one["activations"].shape[2] == one["hidden_size"] == 64
    )
    assert int(one["token_types"].sum()) == 240 * 4 and bool((one["activations"][~one["attention_mask"]] == 0).all())
    mine = next(path for path in study.artifacts("activations") if "L2" in path.name and "arabic" in path.name)
    store = circuits.open(f"activations/{mine.name}", outputs=str(study.outputs))
    assert torch.allclose(one["activations"][one["attention_mask"]], torch.from_numpy(store.float32(slice(None))))
    assert torch.load(place / "saes" / "layer_1" / "sae_final.pt", weights_only=True)["W_dec"].shape[1] == 64
    results = json.loads(
        (tmp_path / "out/visualizations/comprehensive_all_layers/comprehensive_analysis_results.json").read_text()
    )
    assert results["layers"]["1"]["male_biased_features"][0]["rank"] == 1
    whole = [one for one in study.artifacts("bias_stats") if "unseen" not in one.name]
    assert results["layers"] == json.loads((whole[0] / "results.json").read_text())["layers"], "of all pictures"


def _read_back(samples: Path, study: Cli) -> None:
    """What was exported is the same set of pictures to whoever reads it; a caption that stands twice has one vote there."""
    (path,) = study.artifacts("prompts")
    before = read(path)
    built = table.read(
        samples, samples.parent, ["english", "arabic"], n=None, n_test=None, seed=0, max_broken=0, allow_small=True
    )
    after = {p.id: p for p in built.pictures}
    assert len(after) == len(before)
    for one in before:
        again = after[one.id]
        assert (again.split, again.group) == (one.split, one.group)
        if all(len(set(said)) == len(said) for said in one.captions.values()):
            assert (again.label, again.labels) == (one.label, one.labels)
        assert {name: sorted(set(said)) for name, said in again.captions.items()} == {
            name: sorted(set(said)) for name, said in one.captions.items()
        }
        assert again.prompts == one.prompts and again.factors == one.factors


def test_an_sae_that_reads_pictures_badly_is_refused(mine: Cli) -> None:
    words = [word for word in SMALL if word.startswith(("model", "behaviour", "sae", "tracking", "bias_stats"))]
    done = mine("task=bias_stats", "data=pictures", "layer=all", "sae.k=4", "sae.expansion=4", *words, "reuse=force",
                 "bias_stats.min_explained_variance=0.999")  # fmt: skip
    assert done.code == 3 and "less than bias_stats.min_explained_variance=0.999; train it on pictures" in done.err, (
        done.err
    )


def test_the_page_is_there_as_markdown_and_nothing_of_a_caption_is_markup(study: Cli) -> None:
    (page,) = (study.folder / "multirun").glob("*/gb-*/report.md")
    text = page.read_text(encoding="utf-8")
    assert "14 of 14 elements measured" in text and "## Features that carry gender" in text and "(figures/" in text
    for artifact in study.artifacts("bias_stats"):
        assert artifact.name in text
    assert "<image" not in text, "signs of tokens are escaped"


@pytest.mark.soak
def test_soak_the_study_runs_on_slurm(slurm: Queue, cli: Cli) -> None:
    asked = ["cluster=slurm", "task.resources.gpus=0", "task.resources.cpus=1", "task.resources.memory=2G"]
    done = cli("task=pipeline", "pipeline=gender_bias", "name=gb", *SMALL, *asked)
    assert done.code == 0, done.err + done.out
    (sweep,) = (cli.folder / "multirun").glob("*/gb-*")
    closing = int(json.loads((sweep / "jobs.json").read_text())["closing"])
    assert slurm.wait_ended(closing, 1500)[str(closing)] == ("COMPLETED", "0:0")
    shown = cli("task=status", f"of={sweep.name}")
    assert shown.code == 0 and "failed" not in shown.out, shown.out
    assert len(cli.artifacts("activations")) == 8 and len(cli.artifacts("interventions")) == 3
    assert "Edits of gender-biased" in (sweep / "report.html").read_text(encoding="utf-8")


@pytest.mark.soak
def test_a_comparison_of_languages_that_is_cut_goes_on_with_the_layers_it_has(
    mine: Cli, study: Cli, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    records = [json.loads(path.read_text()) for path in study.folder.glob("multirun/*/gb-*/*/element.json")]
    (words,) = [one["overrides"] for one in records if one["task"] == "cross_lingual"]
    words = [word for word in words if not word.startswith(("cross_lingual.draws", "name"))] + [
        "cross_lingual.draws=1500"
    ]
    place = mine.outputs / "artifacts" / "cross_lingual"
    there = {path.name for path in mine.artifacts("cross_lingual")}
    assert (done := mine(*words)).code == 0, done.err
    (made,) = [path for path in mine.artifacts("cross_lingual") if path.name not in there]
    made.rename(tmp_path / "whole")
    running = mine.start(*words)
    wait_until(lambda: any(place.glob("*.partial/L[0-9]")), what="the first layer")
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    kept = {path.name: path.stat().st_ino for path in place.glob("*.partial/L[0-9]")}
    assert 1 <= len(kept) < 4, "cut in the middle"
    again = mine.start(*words)
    wait_until(lambda: len(list(place.glob("*.partial/L[0-9]"))) > len(kept), what="another layer")
    assert kept.items() <= {path.name: path.stat().st_ino for path in place.glob("*.partial/L[0-9]")}.items()
    assert again.wait(120) == 0
    assert (made / "features.parquet").read_bytes() == (tmp_path / "whole" / "features.parquet").read_bytes()
    assert (made / "metrics.json").read_bytes() == (tmp_path / "whole" / "metrics.json").read_bytes()
