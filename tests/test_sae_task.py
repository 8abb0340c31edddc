"""``task=sae`` through the real command line on the embedded model: sweeps, sets, caching, keys, quality, formats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK, Cli, sharing
from safetensors.torch import load_file

STEPS = 20
SHORT = [QUICK, f"sae.steps={STEPS}", "sae.heldout_sequences=16", "sae.block_rows=2048", "tracking=off"]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """An SAE's tensors."""
    return load_file(directory / "sae_weights.safetensors")


def same(a: Path, b: Path) -> bool:
    """Whether two SAEs are equal bit by bit."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def by_layer(cli: Cli) -> dict[int, Path]:
    """The SAEs in the store, by layer."""
    return {json.loads((path / "metrics.json").read_text())["layer"]: path for path in cli.artifacts("sae")}


def test_a_sweep_makes_one_sae_per_element_and_is_cached_the_second_time(warm: Cli) -> None:
    first = warm("task=sae", "layer=range(0,4)", "-m", *SHORT)
    assert first.code == 0, first.out + first.err
    assert sorted(by_layer(warm)) == [0, 1, 2, 3]
    (sweep,) = (warm.folder / "multirun").glob("*/*")
    elements = sorted(path.name for path in sweep.iterdir() if path.is_dir() and path.name != "figures")
    assert elements == ["000-layer=0", "001-layer=1", "002-layer=2", "003-layer=3"]
    for element in elements:
        names = {path.name for path in (sweep / element).iterdir()}
        assert names >= {"config.yaml", "element.json", "status.json", "provenance.json", "metrics.jsonl", "run.log"}
        assert json.loads((sweep / element / "status.json").read_text())["state"] == "done"
    assert (sweep / "report.html").exists()
    before = {path: (path / "manifest.json").stat().st_mtime_ns for path in warm.artifacts("sae")}
    again = warm("task=sae", "layer=range(0,4)", *SHORT)
    assert again.code == 0
    assert "4 cached" in again.out and "to run" not in again.out
    assert {path: (path / "manifest.json").stat().st_mtime_ns for path in warm.artifacts("sae")} == before
    assert len(warm.artifacts("tiny")) == 1


RESUMED = """
import gc, sys
import circuits.sae.training as training
from circuits.launch.cli import main
given, cut = training.hand_over, [True]
def hand_over(trained):
    if cut:
        cut.clear()
        raise MemoryError  # when the training has ended and saved
    found = given(trained)
    print("trainers", sum(isinstance(one, training.Trainer) for one in gc.get_objects()))
    return found
training.hand_over = hand_over
print("codes", main(sys.argv[1:]), main(sys.argv[1:]))
"""


def test_a_training_that_is_resumed_keeps_no_trainer_while_it_is_measured(warm: Cli) -> None:
    """Each holds 16 bytes a parameter: two SAEs of a 3B model's MLP would not fit beside them."""
    words = ["task=sae", "layer=[0,1]", *SHORT, "cluster.workers=0"]
    done = warm.python("-c", RESUMED, *words)
    assert "codes 1 0" in done.out and f"resumed at step {STEPS}" in done.out, done.out + done.err
    assert "trainers 0" in done.out


def test_a_set_of_layers_in_one_run_equals_single_runs_bit_by_bit(
    warm: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = sharing(warm.outputs / "artifacts", tmp_path_factory.mktemp("alone"))
    architectures = "sae=topk,jumprelu"  # all of them: test_sae_loop.py
    assert warm("task=sae", "layer=[1,2]", architectures, *SHORT).code == 0
    assert alone("task=sae", "layer=2", architectures, *SHORT).code == 0
    assert len(alone.artifacts("sae")) == 2
    for path in alone.artifacts("sae"):
        together = warm.outputs / "artifacts" / "sae" / path.name  # the same key, hence the same name
        assert same(path, together)
        assert (path / "metrics.json").read_text() == (together / "metrics.json").read_text()


def test_a_set_makes_only_what_is_missing(warm: Cli) -> None:
    assert warm("task=sae", "layer=2", *SHORT).code == 0
    before = (by_layer(warm)[2] / "manifest.json").stat().st_mtime_ns
    done = warm("task=sae", "layer=[1-3]", *SHORT)
    assert done.code == 0
    assert sorted(by_layer(warm)) == [1, 2, 3]
    assert (by_layer(warm)[2] / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_default_settings_explain_the_embedded_model_at_every_layer(able: Cli, architecture: str) -> None:
    done = able("task=sae", "layer=all", f"sae={architecture}", "sae.steps=1000", "tracking=off", timeout=600)
    assert done.code == 0, done.out + done.err
    for layer, path in by_layer(able).items():
        metrics = json.loads((path / "metrics.json").read_text())
        assert metrics["explained_variance"] > 0.7, (layer, metrics["explained_variance"])
        assert metrics["explained_variance_ci"][0] > metrics["control"]["explained_variance"]
        assert metrics["dead_fraction"] < 0.5
        assert metrics["ce_score"] > 0.7
        norms = weights(path)["W_dec"].norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
        history = pd.read_parquet(path / "history.parquet")
        assert history["step"].iloc[-1] == 1000 and {"loss", "explained_variance", "l0", "dead_fraction", "lr"} <= set(
            history
        )


def test_the_artifact_is_a_saelens_directory_with_equal_reconstructions(warm: Cli) -> None:
    from sae_lens import SAE as SAELens  # noqa: N811 (theirs, beside ours)

    from circuits.sae import formats

    architectures = "sae=topk,relu,batchtopk,gated"  # one of each format
    assert warm("task=sae", "layer=1", architectures, *SHORT).code == 0
    assert len(warm.artifacts("sae")) == 4
    for path in warm.artifacts("sae"):
        theirs, ours = SAELens.load_from_disk(str(path)), formats.load(path)
        x = torch.randn(64, ours.cfg.d_in, generator=torch.Generator().manual_seed(0)) * 3
        with torch.no_grad():
            assert torch.allclose(theirs(x), ours(x), atol=1e-5)
        assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


def test_a_foreign_sae_is_measured_and_kept_by_its_content(warm: Cli, tmp_path: Path) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    foreign = tmp_path / "foreign sae"
    StandardSAE(StandardSAEConfig(d_in=128, d_sae=256)).save_model(str(foreign))
    measured = [word for word in SHORT if not word.startswith("sae.steps")]  # it is not trained
    done = warm("task=sae", "layer=1", f"sae.from={foreign}", *measured)
    assert done.code == 0, done.err
    (path,) = warm.artifacts("sae")
    assert json.loads((path / "metrics.json").read_text())["d_sae"] == 256
    elsewhere = tmp_path / "copy"
    foreign.rename(elsewhere)
    assert "cached" in warm("task=sae", "layer=1", f"sae.from={elsewhere}", *measured).out + warm("task=status").out
    assert len(warm.artifacts("sae")) == 1


def test_the_gate_exits_3_each_time_and_keeps_the_measurement(warm: Cli) -> None:
    for _ in range(2):
        done = warm("task=sae", "layer=1", "sae.max_steps=2", "sae.min_r2=0.99", *SHORT)
        assert done.code == 3
        assert "sae.min_r2=0.99" in done.err
    assert len(warm.artifacts("sae")) == 1
    assert json.loads((warm.artifacts("sae")[0] / "metrics.json").read_text())["steps"] == 2


@pytest.mark.soak
def test_two_processes_do_the_work_once(cli: Cli) -> None:
    words = ["task=sae", "layer=0,1", *SHORT]
    first, second = cli.start(*words), cli.start(*words)
    outputs = [first.communicate(timeout=300)[0], second.communicate(timeout=300)[0]]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(cli.artifacts("tiny")) == 1 and len(cli.artifacts("sae")) == 2
    logs = [p.read_text() for p in (cli.folder / "multirun").glob("*/*/*/run.log")]
    assert sum(log.count("training the embedded model tiny/") for log in logs) == 1
    trained = sum(log.count("explained variance") for log in logs)
    assert trained == 2, logs


def test_reuse_readonly_and_force(warm: Cli) -> None:
    missing = warm("task=sae", "layer=1", "reuse=readonly", *SHORT)
    assert missing.code == 2 and "does not exist" in missing.err
    assert warm("task=sae", "layer=1", *SHORT).code == 0
    (path,) = warm.artifacts("sae")
    before, made = weights(path), (path / "manifest.json").read_text()
    assert warm("task=sae", "layer=1", "reuse=readonly", *SHORT).code == 0
    assert (path / "manifest.json").read_text() == made
    assert warm("task=sae", "layer=1", "reuse=force", *SHORT).code == 0
    assert (path / "manifest.json").read_text() != made
    after = weights(path)
    assert all(torch.equal(before[name], after[name]) for name in before), (
        "made anew under equal conditions, it is the same"
    )


def test_text_data_on_a_model_directory_in_bf16(warm: Cli, tmp_path: Path) -> None:
    (model,) = warm.artifacts("tiny")
    lines = [{"text": f"the cat is near the dogs . {'suppose ' * (i % 7)}"} for i in range(400)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps(line) for line in lines))
    words = [
        "task=sae",
        "layer=2",
        f"model={model}",
        "data=text",
        f"data.path={corpus}",
        "precision=bf16",
        "data.context=16",
    ]
    done = warm(*words, *SHORT[1:])
    assert done.code == 1 and len(done.errors) == 1 and not warm.artifacts("sae"), done.out + done.err
    assert "rows are fewer than 100 × the site's width 128 (12,800); give more text (data.path), or" in done.errors[0]
    words.append("sae.allow_small=true")
    done = warm(*words, *SHORT[1:])
    assert done.code == 0, done.out + done.err
    assert len(warm.artifacts("tokens")) == 1
    logs = "".join(path.read_text() for path in (warm.outputs / "runs").glob("*/*/run.log"))
    assert re.search(
        r"corpus\.jsonl: 400 documents, [\d,]+ tokens \(all of it\); [\d,]+ training and \d+ held-out", logs
    )
    corpus.write_bytes(corpus.read_bytes().replace(b"\n", b"\r\n"))
    assert warm(*words, *SHORT[1:]).code == 0
    assert len(warm.artifacts("sae")) == 1, "a CRLF copy is the same corpus"


def test_notebooks_open_an_artifact_by_its_config(warm: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import circuits
    from circuits.errors import UserError

    assert warm("task=sae", "layer=1", "sae.k=16", *SHORT).code == 0
    monkeypatch.chdir(warm.folder)
    given = {"model__embedded__steps": 10, "sae__steps": STEPS, "sae__heldout_sequences": 16, "sae__block_rows": 2048}
    sae = circuits.open("sae", layer=1, sae__k=16, **given)
    assert sae.cfg.k == 16
    with pytest.raises(UserError, match=r"python launch.py task=sae layer=1 sae.k=17"):
        circuits.open("sae", layer=1, sae__k=17, **given)


def test_tracking_writes_jsonl_always_and_wandb_per_layer_offline(warm: Cli) -> None:
    done = warm("task=sae", "layer=[0,1]", "name=tracked", *SHORT[:-1], "tracking=wandb")
    assert done.code == 0, done.err
    (run,) = (warm.outputs / "runs").glob("*/tracked-*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["layer"] for row in rows} == {0, 1} and rows[-1]["step"] == STEPS
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert warm("task=sae", "layer=0", *SHORT).code == 0
    assert not list((warm.outputs / "runs").glob("*/sae-*/wandb")), "tracking=off"


def test_an_exported_sae_is_named_by_its_config_and_loads_in_saelens(warm: Cli) -> None:
    from sae_lens import SAE as SAELens  # noqa: N811 (theirs, beside ours)

    from circuits.sae import formats, sparsify

    assert warm("task=sae", "layer=[0,1]", "sae.k=16", *SHORT).code == 0
    done = warm("task=export", "layer=1", "sae.k=16", "export.path=out/one", *SHORT[:-1])
    assert done.code == 0 and "sae/tiny-L1-topk-" in done.out, done.err
    artifact = by_layer(warm)[1]
    theirs, ours = SAELens.load_from_disk(str(warm.folder / "out/one")), formats.load(artifact)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.allclose(theirs(x), ours(x), atol=1e-5)
    names = {path.name for path in (warm.folder / "out/one").iterdir()}
    assert names == {"README.md", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"}
    card, metrics = (warm.folder / "out/one/README.md").read_text(), json.loads((artifact / "metrics.json").read_text())
    assert (
        f"{metrics['explained_variance']:.4f}" in card and "blocks.1.hook_resid_post" in card and artifact.name in card
    )
    done = warm("task=export", "layer=[0,1]", "sae.k=16", "export.format=sparsify", "export.path=out/both", *SHORT[:-1])
    assert done.code == 0, done.err
    assert torch.equal(sparsify.load(warm.folder / "out/both/layers.1")(x), ours(x))
    for words, message in (
        (["export.path=out/one"], "not empty; choose another directory"),
        ([], "export: where to? export.path=DIR"),
        (["export.path=a", "export.format=saelen"], "did you mean saelens?"),
        (["export.path=a", "sae.k=17"], "does not exist in"),
    ):
        refused = warm(
            "task=export", "layer=1", *(["sae.k=16"] if "sae.k=17" not in words else []), *words, *SHORT[:-1]
        )
        assert refused.code == 2 and message in refused.err and len(refused.errors) == 1, refused.err


def test_a_transcoder_is_trained_measured_spliced_and_read_back(warm: Cli) -> None:
    from circuits.sae import formats

    words = ["sae.site=mlp_in", "sae.target_site=mlp_out"]
    done = warm("task=sae", "layer=[1,2]", "sae=topk,jumprelu", *words, *SHORT)
    assert done.code == 0, done.out + done.err
    assert len(warm.artifacts("sae")) == 4
    for path in warm.artifacts("sae"):
        metrics = json.loads((path / "metrics.json").read_text())
        assert "-transcoder-" in path.name and metrics["target_site"] == "mlp_out"
        assert metrics["explained_variance"] > metrics["control"]["explained_variance"]
        assert metrics["ce_zero"] != metrics["ce_spliced"]
        sae = formats.load(path)
        assert sae.cfg.d_out == 128
    untrained = [QUICK, "sae.heldout_sequences=16", "tracking=off"]
    taken = warm("task=sae", "layer=1", f"sae.from={path}", *words, *untrained)
    assert taken.code == 0, taken.err
    refused = warm("task=sae", "layer=1", f"sae.from={path}", *untrained)
    assert refused.code == 2 and "a transcoder; name the site that it reconstructs with sae.target_site=" in refused.err


def test_early_stopping_accumulation_and_units_through_the_command_line(warm: Cli) -> None:
    words = ["sae.patience=1", "sae.min_delta=0.9", "sae.validate_every=5", "sae.accumulate=2", "sae.normalize=rms"]
    done = warm("task=sae", "layer=1", *words, *SHORT)
    assert done.code == 0, done.out + done.err
    metrics = json.loads((warm.artifacts("sae")[0] / "metrics.json").read_text())
    assert (metrics["steps"], metrics["steps_trained"]) == (5, 10), (
        "nothing improves by nine tenths of the variance twice"
    )
    log = next((warm.outputs / "runs").glob("*/*/run.log")).read_text()
    assert "stopped at step 10; the weights of step 5 are kept" in log
