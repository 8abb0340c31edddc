"""``task=activations`` through the real command line: sites, shards, kills, gates, keys, disk estimate, bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from configs import key, plan
from conftest import QUICK, Cli
from prompt_sets import animals, bpe, save_model, write_jsonl

import circuits
from circuits.activations.capture import ON_DISK, Plan, capture
from circuits.activations.pieces import Pieces
from circuits.activations.rows import summary
from circuits.activations.samples import PromptSamples, Samples, StreamSamples
from circuits.activations.store import ActivationStore
from circuits.data.prompts import read
from circuits.errors import UserError
from circuits.models.load import LM, load_model
from circuits.models.sites import site_width
from circuits.store import registry
from circuits.tiny.source import EmbeddedSource
from circuits.words import size

COMMON = ["task=activations", QUICK, "tracking=off"]
DATA = [*COMMON, "activations.source=data"]
PROMPTS = [*COMMON, "behaviour=grammar_agreement", "behaviour.n_samples=40", "behaviour.n_test=10", "force=true"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as elements have: bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(cli: Cli) -> LM:
    (found,) = cli.artifacts("tiny")
    return load_model(str(found), dtype=torch.float32, device=torch.device("cpu"))


def by_site_and_layer(cli: Cli) -> dict[tuple[str, int], Path]:
    found = {path: json.loads((path / "meta.json").read_text()) for path in cli.artifacts("activations")}
    return {(facts["site"], facts["layer"]): path for path, facts in found.items()}


def expected(lm: LM, samples: Samples, key: tuple[str, int], plan: Plan, folder: Path) -> bytes:
    """The bytes of values.npy as the library writes them at one go."""
    partial = folder / f"{key[0]}-{key[1]}"
    capture(lm, samples, {key: partial}, plan)
    (partial / "out").mkdir()
    Pieces(partial, ON_DISK[plan.dtype], site_width(lm.dims, key[0])).write(partial / "out")
    return (partial / "out" / "values.npy").read_bytes()


# -- what is made ------------------------------------------------------------------------------------------------


def test_shards_of_a_sweep_make_what_one_process_makes_and_a_later_run_only_what_is_missing(
    warm: Cli, tmp_path_factory: pytest.TempPathFactory, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*PROMPTS, "activations.last_n=5", "activations.batch_size=8"]
    shards = ["activations.shard=range(0,2)", "activations.world_size=2", "cluster.workers=1"]
    done = warm(*words, "activations.site=mlp_act", "layer=1-2", *shards, "-m")
    assert done.code == 0, done.out + done.err
    assert "shard 1/2 done, waiting for the rest (24 of 50 samples)" in done.out
    (sweep,) = (warm.folder / "multirun").glob("*/*")
    states = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/status.json"))]
    assert [facts["state"] for facts in states] == ["done", "done"]
    assert [len(facts["artifacts"]) for facts in states] == [0, 2]
    made = by_site_and_layer(warm)
    assert sorted(made) == [("mlp_act", 1), ("mlp_act", 2)]
    (prompts,) = warm.artifacts("prompts")
    samples, lm = PromptSamples(read(prompts)), model(warm)
    for one, path in made.items():
        alone = expected(lm, samples, one, Plan(batch_size=8, last_n=5), tmp_path_factory.mktemp("alone"))
        assert (path / "values.npy").read_bytes() == alone
        assert not path.with_name(f"{path.name}.partial").exists()
        manifest = json.loads((path / "manifest.json").read_text())
        assert manifest["tainted"] and manifest["inputs"].keys() == {"tiny", "prompts"}

    before = {one: (path / "manifest.json").stat().st_mtime_ns for one, path in made.items()}
    more = warm(*words, "activations.site=[mlp_act,resid_post]", "layer=[1-3]")
    assert more.code == 0, more.out + more.err
    now = by_site_and_layer(warm)
    assert sorted(now) == [(site, layer) for site in ("mlp_act", "resid_post") for layer in (1, 2, 3)]
    assert {one: (now[one] / "manifest.json").stat().st_mtime_ns for one in before} == before
    assert "2 cached" in warm(*words, "activations.site=resid_post", "layer=2,3").out

    monkeypatch.chdir(warm.folder)
    given = {"model__embedded__steps": 10, "behaviour__n_samples": 40, "behaviour__n_test": 10}
    given |= {"activations__last_n": 5, "activations__batch_size": 8}
    store = circuits.open("activations", layer=3, activations__site="resid_post", **given)
    assert store.n_rows == 250 and store.width == 128
    rows = store.rows
    assert set(rows["split"]) == {"train", "test"} and rows["group"].notna().all()
    records = {p.id: p for p in samples.prompts}
    for (name, sample), own in rows.astype({"sample_id": str}).groupby(["sample_id", "sample"]):
        prompt = records[name]
        assert samples.prompts[sample] is prompt and own["token_id"].tolist() == list(prompt.ids[-5:])
        assert set(own["group"]) == {prompt.group} and set(own["split"]) == {prompt.split}
        assert all(set(own[f"factor.{factor}"]) == {value} for factor, value in prompt.factors.items())
    assert "group" in store.rows and np.isfinite(store.values).all()
    with pytest.raises(UserError, match="one of its variants, please: mlp_act resid_post"):
        circuits.open("activations", layer=3, activations__site="[mlp_act,resid_post]", **given)


@pytest.mark.soak
def test_a_killed_capture_goes_on_where_it_was_and_ends_the_same(
    warm: Cli, wait_until: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> None:
    words = [*DATA, "layer=[0,3]", "activations.n_sequences=3000", "activations.chunk=64", "activations.dtype=bf16"]
    running = warm.start(*words, "cluster.workers=0")
    journals = warm.outputs / "artifacts" / "activations"
    wait_until(lambda: len(list(journals.glob("*/*/journal.jsonl"))) == 2 and all(
        path.stat().st_size > 5000 for path in journals.glob("*/*/journal.jsonl")
    ), 120, "captured samples")  # fmt: skip
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert not warm.artifacts("activations")
    kept = [len(path.read_text().splitlines()) for path in journals.glob("*/*/journal.jsonl")]
    done = warm(*words)
    assert done.code == 0, done.out + done.err
    (run,) = [p for p in (warm.outputs / "runs").glob("*/activations-*") if (p / "report.html").exists()]
    again = [line for line in (run / "run.log").read_text().splitlines() if "captured" in line]
    assert again and f"captured {3000 - 64 * min(kept):,} samples" in again[0]
    lm = model(warm)
    samples = StreamSamples(EmbeddedSource(lm.tokenizer, 0, 64), 3000)
    for one, path in by_site_and_layer(warm).items():
        undisturbed = expected(lm, samples, one, Plan(skip_first=1, dtype="bf16"), tmp_path_factory.mktemp("alone"))
        assert (path / "values.npy").read_bytes() == undisturbed
    rows = ActivationStore(by_site_and_layer(warm)["resid_post", 3]).rows
    assert rows["sample"].nunique() == 3000 and rows["position"].min() == 1


def test_a_behaviour_that_was_not_measured_is_not_captured_without_force(warm: Cli) -> None:
    done = warm(*PROMPTS[:-1], "layer=1", "cluster.workers=0")
    assert done.code != 0 and "task=baseline" in done.err and not warm.artifacts("activations")


def log(cli: Cli) -> str:
    """What the only run said."""
    (found,) = cli.outputs.glob("runs/*/*/run.log")
    return found.read_text()


def test_more_last_tokens_than_any_prompt_has_are_refused_before_the_model_is_loaded(warm: Cli) -> None:
    done = warm(*PROMPTS, "layer=1", "activations.last_n=60")
    assert done.code == 1 and "activations.last_n=60: longer than every prompt (the longest has" in done.errors[0]
    assert "loading the model" not in log(warm) and not warm.artifacts("activations")


def test_a_prompt_longer_than_the_model_is_named_before_the_model_is_loaded(cli: Cli) -> None:
    save_model(cli.folder / "model", bpe())
    records = animals()
    records[7]["prompt"] = " ".join(["The"] * 70) + " cat"
    write_jsonl(cli.folder / "my.jsonl", records)
    words = ["task=activations", "behaviour=my.jsonl", "model=model", "behaviour.multi_token=keep", "layer=1"]
    done = cli(*words, "force=true", "tracking=off")
    assert done.code == 1, done.out + done.err
    assert "prompt line-8: 140 tokens are more than the 64 positions of" in done.errors[0]
    assert "loading the model" not in log(cli)


# -- keys --------------------------------------------------------------------------------------------------------


def of(*words: str) -> str:
    return key("task=activations", *words, kind="activations").hash


def test_data_and_behaviour_captures_do_not_touch_each_others_keys() -> None:
    data, prompts = ["activations.source=data"], ["behaviour=ioi"]
    assert of(*data) == of(*data, "behaviour=ioi", "behaviour.n_samples=7")
    assert of(*prompts) == of(*prompts, "data.context=32", "seed=0")
    assert of(*data) != of(*data, "data.context=32") and of(*prompts) != of(*prompts, "behaviour.n_samples=7")
    assert len({of(*data), of(*prompts), of("behaviour=facts")}) == 3


def test_equal_results_have_equal_keys_and_other_results_others() -> None:
    data = ["activations.source=data"]
    same = [[], ["activations.n_sequences=2000"], ["activations.skip_first=1"], ["activations.site=[resid_post]"],
            ["activations.world_size=4", "activations.shard=3"], ["activations.chunk=7"]]  # fmt: skip
    assert len({of(*data, *words) for words in same}) == 1
    other = [["activations.n_sequences=1"], ["activations.tokens=2000"], ["activations.skip_first=0"], ["precision=bf16"],
             ["activations.site=mlp_out"], ["activations.last_n=5"], ["activations.dtype=bf16"], ["seed=1"],
             ["activations.batch_size=8"], ["activations.nonfinite=drop"]]  # fmt: skip
    assert len({of(*data, *words) for words in [[], *other]}) == len(other) + 1


def test_a_list_of_sites_has_the_keys_of_each_alone() -> None:
    words = ["task=activations", "activations.source=data"]
    (both,) = plan(*words, "layer=[0,2]", "activations.site=[mlp_out,head_z]")
    alone = {
        (layer, site): key(*words, f"activations.site={site}", kind="activations", layers=(layer,)).hash
        for layer in (0, 2)
        for site in ("mlp_out", "head_z")
    }
    assert {one: k.hash for one, k in both.keys.items()} == alone


def test_shards_share_the_artifact_and_have_leases_of_their_own(tmp_path: Path) -> None:
    from circuits.store.store import Store

    words = ["task=activations", "activations.source=data", "layer=0", "activations.world_size=2"]
    one, other = plan(*words, "activations.shard=0,1")
    store, first, second = Store(tmp_path), one.keys[0], other.keys[0]
    assert first.hash == second.hash and store.partial(first) == store.partial(second)
    assert store.beside(first, "lease") != store.beside(second, "lease")
    assert store.lease(first).acquire() and store.holder(second) is None


# -- before anything starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["activations.site=mlp"], "activations.site=mlp: no such site; sites: resid_pre"),
        (["activations.site=[]"], "no site named"),
        (["activations.shard=4", "activations.world_size=4"], r"activations.shard=4: 0 to 3"),
        (["activations.last_n=0"], "activations.last_n=0: at least 1"),
        (["activations.last_n=64"], r"activations.last_n=64: longer than every sequence \(data.context=64"),
        (["activations.skip_first=64"], r"leaves nothing of data.context=64"),
        (["activations.tokens=5", "activations.n_sequences=5"], "one of the two"),
        (["activations.source=behaviour", "activations.tokens=5"], "activations.source=behaviour does not read it"),
        (["data.context=4096"], "more than the model's"),
        (["activations.world_size=2", "reuse=force"], "reuse=force: with activations.world_size=1 only"),
    ],
)
def test_what_cannot_be_captured_is_refused_before_the_start(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan("task=activations", "activations.source=data", *words)


def test_what_does_not_fit_the_disk_is_refused(cli: Cli) -> None:
    done = cli(*DATA, "layer=all", "activations.tokens=1_000_000_000_000")
    assert done.code == 2 and "TB are needed and" in done.err and not cli.artifacts("tiny")


def test_the_disk_estimate_is_what_is_written() -> None:
    (element,) = plan("task=activations", "activations.source=data", "layer=0", "activations.tokens=1000000")
    assert 1e6 * 128 * 4 <= element.bytes[0] <= 1.1e6 * 128 * 4
    (wide,) = plan("task=activations", "activations.source=data", "layer=0", "activations.tokens=1000000",
                   "activations.site=mlp_act", "activations.dtype=bf16")  # fmt: skip
    assert 1e6 * 512 * 2 <= wide.bytes[0] <= 1.1e6 * 512 * 2


@pytest.mark.parametrize(("name", "prompts"), [("canary_memory", 1), ("canary_timing", 10)])
def test_canaries_are_small_captures_at_layer_15(name: str, prompts: int) -> None:
    (element,) = plan("task=activations", f"experiment={name}", "layer=2")
    assert element.cfg.behaviour.n_samples == prompts and element.cfg.behaviour.n_test == 0 and element.cfg.force
    with pytest.raises(UserError, match="15 out of range"):
        plan("task=activations", f"experiment={name}")
    assert registry.kind("activations").memory_keys == ("activations.batch_size",)


def test_the_timing_canary_prints_and_keeps_peak_memory_and_rate(warm: Cli) -> None:
    done = warm("task=activations", "experiment=canary_timing", "layer=2", QUICK, "tracking=off")
    assert done.code == 0, done.out + done.err
    header, row = next(
        (above, below) for above, below in itertools.pairwise(done.out.splitlines()) if above.startswith("layer  rows")
    )
    assert {"size", "rows/s", "peak memory", "samples dropped"} <= set(re.split(r"\s{2,}", header.strip()))
    assert row.split()[:2] == ["2", "50"]
    (said,) = re.findall(
        r"captured 10 samples, 50 rows at 1 layers and sites in .* rows/s\); peak memory (.* .B)", log(warm)
    )
    (made,) = warm.artifacts("activations")
    metrics, facts = (json.loads((made / name).read_text()) for name in ("metrics.json", "meta.json"))
    assert 0.05 < metrics["peak_gigabytes"] < 64 and said == size(1e9 * metrics["peak_gigabytes"])
    assert metrics["rows_per_s"] == pytest.approx(50 / metrics["seconds"], rel=0.1)
    assert (metrics["rows"], metrics["samples"], metrics["width"], metrics["dtype"]) == (50, 10, 128, "bf16")
    assert facts["site"] == "mlp_out" and facts["last_n"] == 5 and metrics["norm_by_position"]["by"] == "from_end"


def test_the_summary_of_a_store_has_its_known_answers(tmp_path: Path) -> None:
    """Three samples of 1, 2 and 3 rows with norms 2; 1, 3; 4, 6, 8: mean 4, sums less mean × rows −2, −4, 6."""
    norms = np.array([2, 1, 3, 4, 6, 8], np.float32)
    np.save(tmp_path / "norms.npy", norms)
    (tmp_path / "values.npy").write_bytes(b"x" * 1000)
    index = pd.DataFrame({"sample": [0, 1, 1, 2, 2, 2], "position": [0, 0, 1, 0, 1, 2], "from_end": [0, 1, 0, 2, 1, 0]})
    index.to_parquet(tmp_path / "rows.parquet")
    facts = {"n_rows": 6, "n_samples": 3, "dropped": [], "last_n": None}
    facts |= {"site": "mlp_out", "layer": 0, "width": 4, "dtype": "fp32"}
    found = summary(tmp_path, facts)
    half = 1.96 * math.sqrt(3 / 2 * (2**2 + 4**2 + 6**2)) / 6
    assert found["norm"] == 4 and found["norm_ci"] == pytest.approx([4 - half, 4 + half])
    assert found["norm_by_position"] == {
        "by": "position",
        "positions": [0, 1, 2],
        "mean": pytest.approx([7 / 3, 9 / 2, 8]),
        "rows": [3, 2, 1],
    }
    assert (found["rows"], found["samples"], found["gigabytes"]) == (6, 3, 1e-6)
    ends = summary(tmp_path, {**facts, "last_n": 3})["norm_by_position"]
    assert ends["by"] == "from_end" and ends["mean"] == pytest.approx([13 / 3, 7 / 2, 4])
    one = tmp_path / "one"
    one.mkdir()
    np.save(one / "norms.npy", norms[:1])
    (one / "values.npy").write_bytes(b"x")
    index[:1].to_parquet(one / "rows.parquet")
    assert summary(one, {**facts, "n_rows": 1})["norm_ci"] is None, "one sample has no interval"
