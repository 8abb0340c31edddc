"""``task=attribution`` and ``task=faithfulness`` on the command line: studies, sweeps, shards, foreign files, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Cli, sharing

from circuits.tasks.attribution import KIND as ATTRIBUTION
from circuits.tasks.faithfulness import KIND as FAITHFULNESS

SMALL = ("behaviour=ioi", "behaviour.n_samples=16", "behaviour.n_test=8", "tracking=off")
QUICK = (*SMALL, "attribution.verify=10", "attribution.verify_random=10", "attribution.verify_samples=4",
         "attribution.bootstraps=50", "attribution.method=eap")  # fmt: skip
JUDGED = ("faithfulness.random=1", "faithfulness.minimality=3", "faithfulness.fractions=[0.05,0.2,1]")


@pytest.fixture(scope="module")
def lab(trained: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A store with the trained embedded model, a baseline of IOI, and an SAE and a skip transcoder of one layer."""
    cli = sharing(trained.outputs / "artifacts", tmp_path_factory.mktemp("lab"))
    done = cli("task=baseline", *SMALL)
    assert done.code == 0, done.err
    yield cli
    cli.end()


def made(cli: Cli, task: str, *words: str) -> tuple[Path, dict]:  # type: ignore[type-arg]
    """The artifact that a line makes, and its metrics."""
    before = set(cli.artifacts(task))
    done = cli(f"task={task}", *words)
    assert done.code == 0, done.out + done.err
    (path,) = set(cli.artifacts(task)) - before
    return path, json.loads((path / "metrics.json").read_text())


def test_from_the_scores_to_a_judged_circuit_and_back_from_its_file(lab: Cli) -> None:
    path, metrics = made(lab, "attribution", *QUICK)
    edges = pd.read_parquet(path / "edges.parquet")
    assert metrics["n"] == 16 and len(edges) == metrics["edges"] == len(ATTRIBUTION.load(path).model.edges)
    assert edges["in_circuit"].sum() == metrics["circuit_edges"] == round(0.05 * len(edges))
    assert (edges["score"].abs().diff().dropna() <= 1e-9).all() and edges["exact"].notna().sum() == 20
    exact = pd.read_parquet(path / "exact.parquet")
    np.testing.assert_allclose(
        exact.groupby("edge")["exact"].mean().loc[edges["edge"][0]], edges["exact"][0], atol=1e-9
    )
    study = ATTRIBUTION.load(path)
    assert tuple(study.scores.shape) == (16, len(edges)) and "17 of" in repr(study)
    again = lab("task=attribution", *QUICK)
    assert again.code == 0 and "cached" in again.out

    judged, found = made(lab, "faithfulness", *QUICK, *JUDGED)
    curve = FAITHFULNESS.load(judged).curve
    f = curve[curve["circuit"] == "circuit"].set_index("share")["f"]
    assert (
        f[1.0] == pytest.approx(1, abs=1e-5) and found["n"] == 8 and found["chosen_edges"] == metrics["circuit_edges"]
    )
    assert 0 <= found["cmd"] < found["random_cmd"] and found["minimality"]["tested"] == 3
    assert found["independence"]["p"] > 0 and len(FAITHFULNESS.load(judged).minimality) == 6

    circuit = lab.folder / "circuit.json"
    circuit.write_text((path / "circuit.json").read_text())
    _, theirs = made(lab, "faithfulness", *SMALL, *JUDGED, f"faithfulness.circuit={circuit}")
    assert theirs["f"] == pytest.approx(found["f"], abs=1e-4)
    circuit.write_text(json.dumps({"edges": {"a9.h0->m1": {"score": 1.0}}}))
    bad = lab("task=faithfulness", *SMALL, *JUDGED, f"faithfulness.circuit={circuit}")
    assert bad.code != 0 and "a9.h0" in bad.err + bad.out


def test_shards_score_every_prompt_once_and_equal_one_run(lab: Cli) -> None:
    more = ("attribution.edges=9",)
    whole, _ = made(lab, "attribution", *QUICK, *more)
    done = lab(
        "task=attribution", *QUICK, "attribution.edges=8", "attribution.world_size=2", "attribution.shard=range(0,2)",
        "cluster.workers=1", "-m",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    (path,) = [p for p in lab.artifacts("attribution") if "edges: 8" in (p / "config.yaml").read_text()]
    a, b = (ATTRIBUTION.load(p) for p in (whole, path))
    assert a.samples == b.samples and float((a.scores - b.scores).abs().max()) < 1e-4


def test_a_sweep_over_methods_in_one_process_and_a_report_of_it(lab: Cli) -> None:
    words = [w for w in QUICK if "method" not in w]
    done = lab("-m", "task=attribution", *words, "attribution.method=gim,relp", "pack=2")
    assert done.code == 0, done.out + done.err
    assert ("gim" in done.out and "relp" in done.out and "2 of 2 done" in done.out + done.err) or "report" in done.out


def test_features_of_saes_and_of_skip_transcoders(lab: Cli) -> None:
    sae = ("sae.steps=60", "sae.k=16", "sae.expansion=2", "sae.heldout_sequences=16", "sae.block_rows=2048", *SMALL[3:])
    transcoder = ("sae.site=mlp_in", "sae.target_site=mlp_out", "sae.skip=true")
    features = ("attribution.level=features", "attribution.graphs=1", "attribution.max_features=30",
                "attribution.verify_samples=3", "attribution.min_explained=-10", "attribution.method=eap")  # fmt: skip
    for words in ((), transcoder):
        trained_ = lab("task=sae", "layer=[1,2]", *sae, *words)
        assert trained_.code == 0, trained_.out + trained_.err
        path, metrics = made(lab, "attribution", "layer=[1,2]", *SMALL, *sae[:5], *words, *features)
        nodes, links = pd.read_parquet(path / "nodes.parquet"), pd.read_parquet(path / "links.parquet")
        assert nodes["node"].is_unique and set(links["source"]) | set(links["target"]) <= set(nodes["node"])
        assert set(nodes["kind"]) >= {"embedding", "logit"} and np.isfinite(links["weight"]).all()
        assert metrics["transcoders"] == bool(words) and metrics["n"] == 16 and metrics["slope"] is not None
        assert 0 <= metrics["replacement"] <= 1 and len(metrics["checks"]) >= 12
    before = {path.name for path in lab.artifacts("attribution")}
    words = ("layer=[1,2]", *SMALL, *sae[:5], *features, "attribution.max_features=20", "attribution.graphs=3")
    whole, said = made(lab, "attribution", *words)
    assert whole.name not in before
    kept = whole.rename(lab.folder / "whole")
    shards = lab("-m", "task=attribution", *words, "attribution.world_size=3", "attribution.shard=range(0,3)")
    assert shards.code == 0, shards.out + shards.err
    assert whole.is_dir() and json.loads((whole / "metrics.json").read_text())["checks"] == said["checks"]
    for table in ("features", "nodes", "links"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(whole / f"{table}.parquet"), pd.read_parquet(kept / f"{table}.parquet")
        )
    low = lab("task=attribution", "layer=[1,2]", *SMALL, *sae[:5], *features[:4], "attribution.min_explained=0.9999")
    assert low.code != 0 and "explain too little of these prompts" in low.err + low.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("task=attribution", "attribution.method=eap_ig"), "attribution.method=eap_ig: there is none; did you mean eap"),
        (("task=attribution", "layer=[1]"), "a circuit has all layers of the model"),
        (("task=attribution", "attribution.edges=0"), "attribution.edges=0"),
        (("task=attribution", "attribution.graphs=3"), "attribution.graphs=3"),
        (("task=attribution", "attribution.level=features", "attribution.method=gim", "layer=[1]"), "choices are eap"),
        (("task=attribution", "attribution.method=eap", "attribution.steps=7"), "attribution.steps"),
        (("task=faithfulness", "faithfulness.fractions=[0,2]"), "faithfulness.fractions=0"),
        (("task=faithfulness", "attribution.split=all"), "train or test leaves others"),
        (("task=faithfulness", "faithfulness.circuit=/nowhere.json"), "no such file"),
        (("task=faithfulness", "faithfulness.rank=threshold"), "choices: top_n greedy influence"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_start(words: tuple[str, ...], says: str, lab: Cli) -> None:
    done = lab(*words, *SMALL)
    assert done.code == 2 and says in done.err, done.err
