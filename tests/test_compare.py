"""Comparing sweeps: what differs is named, what moved is told with its ground, and unlike data are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, Cli, sharing
from prompt_sets import animals, bpe, save_model, write_jsonl

from circuits.compare.differences import Difference, Measure, One, Place, differences, samples, table, warnings
from circuits.compare.terms import differing
from circuits.report.types import ArtifactRef
from circuits.stats.paired import independent_interval, paired_interval

SHORT = [QUICK, "sae.steps=4", "sae.heldout_sequences=16", "sae.block_rows=1024", "sae.forward_batch=16", "sae.batch_size=64",
         "tracking=off"]  # fmt: skip
SCORE = Measure("score", "score", ".3f", "score_ci")


# -- intervals ---------------------------------------------------------------------------------------------------


def test_paired_interval_is_that_of_the_mean_difference_and_groups_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, 400)
    a, b = common + rng.normal(0, 0.1, 400), common + 0.5 + rng.normal(0, 0.1, 400)
    low, high = paired_interval(a, b, seed=0) or (math.nan, math.nan)
    expected = (b - a).std() / 20
    assert low < 0.5 < high and (high - low) / 2 == pytest.approx(1.96 * expected, rel=0.15)
    groups = [f"g{i // 40}" for i in range(400)]  # ten groups with a shift of their own each
    shift = np.repeat(rng.normal(0, 1, 10), 40)
    wide = paired_interval(a, b + shift, groups, seed=0) or (math.nan, math.nan)
    naive = paired_interval(a, b + shift, seed=0) or (math.nan, math.nan)
    assert wide[1] - wide[0] > 3 * (naive[1] - naive[0])
    assert paired_interval([1.0, 2.0], [2.0, 3.0], ["one", "one"], seed=0) is None


def test_square_and_add_is_newcombes_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17:873, example (a): 56/70 and 48/80, Wilson intervals; method 10: 0.0524 to 0.3339
    low, high = independent_interval(48 / 80, (0.4904, 0.7004), 56 / 70, (0.6918, 0.8773))
    assert (low, high) == (pytest.approx(0.0524, abs=2e-3), pytest.approx(0.3339, abs=2e-3))
    assert independent_interval(1.0, (0.9, 1.1), 1.0, (0.9, 1.1)) == (
        pytest.approx(-0.1 * math.sqrt(2)),
        pytest.approx(0.1 * math.sqrt(2)),
    )


# -- differences of saved artifacts --------------------------------------------------------------------------------


def one(
    folder: Path, sweep: str, metrics: dict, rows: pd.DataFrame | None = None, key: str | None = None, layer: int = 0
) -> One:
    """An artifact's directory with these metrics and per-sample values."""
    path = folder / sweep / str(layer)
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(metrics))
    if rows is not None:
        rows.to_parquet(path / "per_prompt.parquet")
    return One(sweep, Place(layer), ArtifactRef("baseline", key or sweep, path, layer, f"baseline/{sweep}"), metrics)


def difference(mine: One, its: One) -> Difference:
    """The difference in the score."""
    samples.cache_clear()
    (found,) = differences([mine], [its], [SCORE])
    return found


def per_prompt(scores: np.ndarray, ids: list[int] | None = None) -> pd.DataFrame:
    """A table of per-prompt scores in two splits."""
    n = len(scores)
    split = ["train" if i < n // 2 else "test" for i in range(n)]
    return pd.DataFrame(
        {"sample": ids or list(range(n)), "split": split, "group": [i // 2 for i in range(n)], "score": scores}
    )


def test_samples_of_the_same_prompts_are_paired_whatever_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 5, 80)
    better = scores + 0.3 + rng.normal(0, 0.1, 80)
    rows, others = per_prompt(scores), per_prompt(better)
    wide = {"score_ci": [-3, 3]}
    mine = one(tmp_path, "A", {"score": scores[40:].mean(), **wide}, rows)  # the metric is of the test split
    its = one(tmp_path, "B", {"score": better[40:].mean(), **wide}, others.sample(frac=1, random_state=0))
    found = difference(mine, its)
    assert found.how == "paired" and found.n == 40 and found.verdict == "higher"
    assert (
        found.interval
        and found.interval[0] < found.value < found.interval[1]
        and found.interval[1] - found.interval[0] < 0.2
    )
    assert difference(its, mine).verdict == "lower"


def test_samples_that_are_not_the_same_or_not_what_the_metric_is_of_are_not_paired(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).normal(0, 1, 20)
    facts = {"score": scores.mean(), "score_ci": [scores.mean() - 0.4, scores.mean() + 0.4]}
    base = one(tmp_path, "A", facts, per_prompt(scores))
    others = one(tmp_path, "B", facts, per_prompt(scores, ids=list(range(100, 120))))
    assert difference(base, others).how == "from both intervals"
    something_else = one(tmp_path, "C", {**facts, "score": 7.0}, per_prompt(scores))
    assert difference(base, something_else).how == "from both intervals"


def test_what_has_no_interval_says_so_and_what_is_exact_too(tmp_path: Path) -> None:
    bare, more = one(tmp_path, "A", {"score": 1.0}), one(tmp_path, "B", {"score": 2.0})
    found = difference(bare, more)
    assert (found.verdict, found.interval, found.moved) == ("no interval", None, None)
    counts = [one(tmp_path, name, {"score": value}) for name, value in (("C", 1.0), ("D", 2.0), ("E", 1.0))]
    count = dataclasses.replace(SCORE, exact=True)
    (moved,), (equal,) = differences(counts[:1], counts[1:2], [count]), differences(counts[:1], counts[2:], [count])
    assert (moved.verdict, moved.how, equal.verdict) == ("higher, exact", "deterministic", "equal, exact")
    flat = [one(tmp_path, name, {"score": 32.0, "score_ci": [32.0, 32.0]}) for name in ("F", "G")]
    assert difference(*flat).how == "deterministic", "an interval without width is none"
    same = one(tmp_path, "H", {"score": 1.0}, key="A")
    assert difference(bare, same).verdict == "same artifact"


def test_a_prompt_of_the_same_id_and_another_text_is_another_prompt(tmp_path: Path) -> None:
    scores = np.random.default_rng(3).normal(0, 1, 20)
    rows = per_prompt(scores).assign(prompt=[f"text {i}" for i in range(20)])
    facts = {"score": scores.mean()}
    base = one(tmp_path, "A", facts, rows)
    assert difference(base, one(tmp_path, "B", facts, rows)).how == "paired"
    assert difference(base, one(tmp_path, "C", facts, rows.assign(prompt="another"))).how == "no interval"


def test_values_that_are_missing_or_not_finite_are_left_out(tmp_path: Path) -> None:
    good = one(tmp_path, "A", {"score": 1.0})
    for name, metrics in (("B", {}), ("C", {"score": None}), ("D", {"score": math.nan}), ("E", {"score": True})):
        assert differences([good], [one(tmp_path, name, metrics)], [SCORE]) == []


def keyed(folder: Path, sweep: str, config: dict) -> One:
    """An artifact whose key was made from `config`."""
    found = one(folder, sweep, {"score": 1.0})
    (found.ref.path / "manifest.json").write_text(json.dumps({"payload": json.dumps({"config": config}), "inputs": {}}))
    return found


def test_only_keys_that_decide_results_differ_files_by_content_and_shown_by_name(tmp_path: Path) -> None:
    content = {"a": "a" * 64, "b": "b" * 64}
    same = {
        "A": keyed(tmp_path / "1", "A", {"model": {"id": content["a"]}}),
        "B": keyed(tmp_path / "1", "B", {"model": {"id": content["a"]}}),
    }
    configs = {
        "A": [{"model": {"id": "gpt2", "layers": 12, "device": "cpu"}, "sae": {"from_": None}}],
        "B": [{"model": {"id": "/data/gpt2", "layers": None, "device": "cuda"}, "sae": {"from_": None}}],
    }
    assert differing({label: [found] for label, found in same.items()}, configs) == {}
    other = {
        "A": same["A"],
        "B": keyed(tmp_path / "2", "B", {"model": {"id": content["b"]}, "sae": {"k": 8, "from_": content["b"]}}),
    }
    found = differing({label: [mine] for label, mine in other.items()}, configs)
    assert found == {"model.id": ["gpt2", "/data/gpt2"], "sae.k": ["–", "8"], "sae.from": ["null", "null"]}


def test_unequal_terms_are_told_with_their_values(tmp_path: Path) -> None:
    wide = {"score_ci": [0.4, 0.6], "n_rows": 100}
    mine = one(tmp_path, "A", {"score": 0.5, "l0": 16.0, **wide})
    near = one(tmp_path, "B", {"score": 0.9, "score_ci": [0.8, 1.0], "l0": 15.8, "n_rows": 100})
    far = one(tmp_path, "C", {"score": 0.9, "score_ci": [0.8, 1.0], "l0": 11.7, "n_rows": 90})
    assert difference(mine, near).verdict == "higher" and not warnings([difference(mine, near)])
    assert difference(mine, far).verdict == "higher (at another L0, on other rows)"
    said = ["Not like for like: L0: 16.0 in A and 11.7 in C (layer 0); held-out rows: 100 in A and 90 in C (layer 0)."]
    assert warnings([difference(mine, far)]) == said


@pytest.mark.parametrize("said_by", ["how many", "the prompts' keys"])
def test_other_prompts_are_told_in_the_headline(said_by: str, tmp_path: Path) -> None:
    facts = {"score": 0.5, "score_ci": [0.4, 0.6]}
    many = {"n_prompts": 40} if said_by == "how many" else {}
    mine, its = one(tmp_path, "A", facts), one(tmp_path, "B", {**facts, "score": 0.9, "score_ci": [0.8, 1.0]})
    mine, its = (dataclasses.replace(o, metrics={**o.metrics, **many}) for o in (mine, its))
    assert difference(mine, its).verdict == "higher"
    if many:
        its = dataclasses.replace(its, metrics={**its.metrics, "n_prompts": 30})
    for each, key in ((mine, "a" * 12), (its, "b" * 12 if not many else "a" * 12)):
        (each.ref.path / "manifest.json").write_text(json.dumps({"inputs": {"prompts": {"key": key}}}))
    found = difference(mine, its)
    assert found.verdict == "higher (on other prompts)"
    told = "prompts: 40 in A and 30 in B" if many else "prompts"
    (warning,) = warnings([found])
    assert warning.startswith("Not like for like: ") and told in warning and "(layer 0)" in warning


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder with sweeps to compare."""
    cli = sharing(quick_store, tmp_path_factory.mktemp("compared"))
    for words in (
        ["layer=0,1", "sae.k=8,16", "name=A"],
        ["layer=[0,1]", "sae.k=8", "sae.lr=3e-4", "name=B"],
        ["layer=0", "sae.k=64", "name=C"],
        ["layer=0", "sae.k=8", "data.context=32", "name=D"],
    ):
        done = cli("task=sae", "cluster.workers=0", *words, *SHORT)
        assert done.code == 0, done.err + done.out
    return cli


def test_two_sweeps_are_matched_by_layer_and_swept_values(ran: Cli) -> None:
    done = ran("task=compare", "compare.of=[A,B]")
    assert done.code == 0, done.err
    assert re.search(r"sae\.lr:  A null +B 0\.0003", done.out), done.out
    assert "Only in A, not in B: layer 0, sae.k=16; layer 1, sae.k=16." in done.err
    (folder,) = (ran.outputs / "compare").glob("A-*,B-*")
    rows = pd.read_csv(folder / "compare.csv")
    assert len(rows) == 2 * 4 and set(rows["layer"]) == {0, 1} and set(rows["sae.k"]) == {8}
    explained = rows[rows["metric"] == "explained_variance"]
    assert (explained["interval"] == "from both intervals").all()
    assert np.allclose(explained["difference"], explained["other_value"] - explained["base_value"], atol=1e-5)
    assert (explained["difference_ci_low"] < explained["difference"]).all()
    assert set(rows[rows["metric"] == "l0"]["verdict"]) == {"equal, exact"}, "L0 of a TopK SAE has nothing random in it"
    page = (folder / "report.html").read_text()
    for text in (
        "What differs in the config",
        "sae.lr",
        "Difference in explained variance from A",
        "not corrected for their number",
    ):
        assert text in page
    assert "http://" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".svg", ".png", ".csv"}


def test_unlike_data_are_refused_by_key_unless_forced(ran: Cli) -> None:
    done = ran("task=compare", "compare.of=[A,D]")
    assert done.code == 2
    (line,) = done.errors
    assert "A and D are of unlike data or models: data.context (64 and 32)" in line and "compare.force=true" in line
    done = ran("task=compare", "compare.of=[A,D]", "compare.force=true", "compare.out=forced")
    assert done.code == 0 and "warning: Compared by force" in done.out
    page = (ran.folder / "forced" / "report.html").read_text()
    assert "Compared by force" in page and "compare.force=true" in page


def test_another_sparsity_is_in_the_headline_and_beside_every_verdict(ran: Cli) -> None:
    done = ran("task=compare", "compare.of=[B,C]", "compare.out=sparse")
    assert done.code == 0, done.err
    head, first, *rest = done.out.splitlines()
    assert head.startswith("compare") and first == "warning: Not like for like: L0: 8.0 in B and 64.0 in C (layer 0)."
    assert [line.split(":")[0].strip() for line in rest if ":" in line and "  " in line][:2] == ["sae.k", "sae.lr"]
    assert "device" not in done.out and "model." not in done.out, "what enters no key is no difference"
    rows = pd.read_csv(ran.folder / "sparse" / "compare.csv").set_index("metric")["verdict"]
    assert rows["l0"] == "higher, exact"
    assert all("(at another L0)" in rows[name] or rows[name] == "no interval" for name in rows.index if name != "l0"), (
        rows
    )
    assert re.search(
        r'class="answer">Not like for like: L0: 8.0 in B and 64.0 in C',
        (ran.folder / "sparse" / "report.html").read_text(),
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare.of=[A]"], "compare.of: two or more sweeps or runs"),
        ([], "compare.of: two or more"),
        (["compare.of=A"], "compare.of=A: a list is expected; write compare.of=[A]"),
        (["compare.of=[A,nowhere]"], "compare.of=nowhere: no such sweep"),
        (["compare.of=[A,A]"], "the same sweep twice"),
        (["compare.of=[A,C]"], "nothing of A matches, by layer and swept values"),
        (["compare.of=[A,B]", "sae.k=3"], "sae.k: task=compare does not read it"),
    ],
)
def test_what_cannot_be_compared_is_one_line(ran: Cli, words: list[str], says: str) -> None:
    done = ran("task=compare", *words)
    assert done.code == 2 and len(done.errors) == 1 and says in done.errors[0], done.err


def test_an_artifact_that_is_gone_is_named(ran: Cli, tmp_path: Path) -> None:
    copy = Cli(tmp_path / "copy")
    shutil.copytree(ran.folder, copy.folder, symlinks=True)
    sweep = next((copy.folder / "outputs" / "runs").glob("*/B-*"))
    status = json.loads((sweep / "status.json").read_text())
    gone = copy.outputs / "artifacts" / status["artifacts"][1]["id"]
    shutil.rmtree(gone)
    status["artifacts"] = [{**a, "path": str(copy.outputs / "artifacts" / a["id"])} for a in status["artifacts"]]
    (sweep / "status.json").write_text(json.dumps(status))
    done = copy("task=compare", "compare.of=[A,B]")
    assert done.code == 0 and f"{status['artifacts'][1]['id']}: metrics.json is missing" in done.err


def test_a_table_of_differences_keeps_what_each_rests_on(tmp_path: Path) -> None:
    mine = one(tmp_path, "A", {"score": 1.0, "score_ci": [0.9, 1.1]})
    its = one(tmp_path, "B", {"score": 2.0, "score_ci": [1.8, 2.2]})
    (row,) = table(differences([mine], [its], [SCORE])).to_dict("records")
    assert (row["base"], row["other"], row["metric"], row["verdict"]) == ("A", "B", "score", "higher")
    assert row["base_ci_low"] == 0.9 and row["other_ci_high"] == 2.2 and row["interval"] == "from both intervals"


# -- baselines and activations --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder with two small random models of one tokenizer, and a file of prompts in its words."""
    cli = Cli(tmp_path_factory.mktemp("baselines"))
    save_model(cli.folder / "one", bpe(400))
    save_model(cli.folder / "two", bpe(400), seed=6)
    write_jsonl(cli.folder / "my.jsonl", animals())
    baseline(cli, "M1", "model=one", "behaviour.min_logit_diff=0.01")
    return cli


def baseline(cli: Cli, name: str, *words: str) -> str:
    """A baseline of a few prompts; what was shown."""
    common = ["behaviour=my.jsonl", "behaviour.multi_token=keep", "behaviour.success_threshold=0", "model.device=cpu"]
    given = {word.split("=")[0] for word in words}
    kept = [word for word in common if word.split("=")[0] not in given]
    done = cli("task=baseline", "cluster.workers=0", "tracking=off", f"name={name}", *kept, *words)
    assert done.code == 0, done.out + done.err
    return done.out


def compared(cli: Cli, *names: str, force: bool = False) -> tuple[pd.DataFrame, str]:
    """The rows of a comparison, and the notes."""
    of, out = ",".join(names), "-".join(names)
    done = cli("task=compare", f"compare.of=[{of}]", f"compare.out={out}", *(["compare.force=true"] if force else []))
    assert done.code == 0, done.out + done.err
    return pd.read_csv(cli.folder / out / "compare.csv"), done.out + done.err


def test_baselines_of_the_same_prompts_are_paired_in_every_metric_that_is_a_mean_of_prompts(models: Cli) -> None:
    baseline(models, "M2", "model=two", "behaviour.min_logit_diff=0.01")
    refused = models("task=compare", "compare.of=[M1,M2]")
    assert refused.code == 2 and "model.id (" in refused.errors[0]
    rows, said = compared(models, "M1", "M2", force=True)
    how = dict(zip(rows["metric"], rows["interval"], strict=True))
    means = ("logit_diff", "pair_acc", "success_rate", "top1")
    assert how == {**dict.fromkeys(means, "paired"), "ece": "no interval", "n": "deterministic"}
    one, two = (
        pd.read_parquet(path / "per_prompt.parquet").set_index("sample") for path in models.artifacts("baseline")
    )
    found = rows.set_index("metric").loc["logit_diff"]
    assert abs(found["difference"]) == pytest.approx(abs((two["diff"] - one["diff"]).mean()), abs=1e-5)
    assert found["n_paired"] == 40 and found["difference_ci_low"] < found["difference"] < found["difference_ci_high"]
    succeeded = rows.set_index("metric").loc["success_rate"]
    rates = sorted(float((table["normalised_diff"] > 0.01).mean()) for table in (one, two))
    assert sorted([succeeded["base_value"], succeeded["other_value"]]) == pytest.approx(rates)
    assert "logit difference" in said and "success" in said


def test_unlike_baselines_are_refused_by_the_keys_that_made_their_prompts_and_by_what_was_measured(models: Cli) -> None:
    shown = baseline(models, "W", "model=one", "baseline.metric=full_target")
    assert "log-prob. difference" in shown and "logit difference" not in shown
    baseline(models, "N", "model=one", "behaviour.n_samples=20", "behaviour.n_test=10", "seed=1")
    for name, keys in (("N", ["behaviour.n_samples", "behaviour.n_test (null and 10)", "seed (0 and 1)"]),
                       ("W", ["baseline.metric (first_token and full_target)"])):  # fmt: skip
        done = models("task=compare", f"compare.of=[M1,{name}]")
        assert done.code == 2 and len(done.errors) == 1 and "input " not in done.errors[0], done.err
        assert all(key in done.errors[0] for key in keys), done.errors
    _, said = compared(models, "M1", "W", force=True)
    assert "logit difference / log-prob. difference" in said


def test_sweeps_are_alike_where_they_match(models: Cli) -> None:
    write_jsonl(models.folder / "other.jsonl", animals(30))
    baseline(models, "two", "model=one", "behaviour=file", "behaviour.path=my.jsonl,other.jsonl")
    rows, said = compared(models, "two", "M1")
    assert {Path(path).name for path in rows["behaviour.path"]} == {"my.jsonl"}
    assert re.search(r"Only in two, not in M1: behaviour\.path=\S*other\.jsonl", said)


def test_every_site_of_a_layer_is_compared(models: Cli) -> None:
    common = ["task=activations", "model=one", "model.device=cpu", "behaviour=my.jsonl", "behaviour.multi_token=keep", "layer=0-1",
              "force=true", "cluster.workers=0", "tracking=off"]  # fmt: skip
    for words in (["name=sites", "activations.site=[mlp_out,resid_post]"],
                  ["name=last", "activations.site=mlp_out,resid_post", "activations.last_n=2"],
                  ["name=mlp", "activations.site=mlp_out", "activations.last_n=1"]):  # fmt: skip
        done = models(*common, *words)
        assert done.code == 0, done.out + done.err
    rows, _ = compared(models, "sites", "last")
    assert {tuple(pair) for pair in rows[["layer", "activations.site"]].to_numpy()} == {
        (layer, site) for layer in (0, 1) for site in ("mlp_out", "resid_post")
    }
    assert set(rows[rows["metric"].isin(["rows", "dropped"])]["verdict"]) == {"lower, exact", "equal, exact"}
    rows, said = compared(models, "sites", "mlp")
    assert set(rows["activations.site"]) == {"mlp_out"} and "activations.site=resid_post" in said
