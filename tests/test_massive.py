"""Massive activations: found where they dominate, out of training and of every measure there, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from configs import key
from prompt_sets import bpe
from test_sae_training import CPU, rows
from torch import Tensor

from circuits.errors import UserError
from circuits.sae import formats, massive
from circuits.sae.metrics import Evaluator
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

SPEC = TrainSpec(
    architecture="topk", d_in=16, d_sae=64, k=4, lr=3e-3, batch_size=64, steps=150, warmup=10, decay=0.2, dead_after=6400, layer=3,
    massive=10.0, baselines=True,
)  # fmt: skip


def with_massive(index: int, n: int = 64, every: int = 50, times: float = 150.0) -> Tensor:
    """Rows of which one in fifty is a constant of enormous norm."""
    x = rows(index, n)
    x[7::every] = times * torch.linspace(-7.0, 7.0, 16)
    return x


def trained(spec: TrainSpec, make: object = with_massive) -> Trainer:
    trainer = Trainer(spec, CPU, make(-1, 2048))  # type: ignore[operator]
    for step in range(spec.steps):
        trainer.train_step(make(step, 64))  # type: ignore[operator]
    return trainer


def test_rows_are_massive_only_where_they_dominate() -> None:
    found = massive.find(with_massive(0, 2048), (16,), 10.0)
    assert found is not None and torch.equal(found.kept(with_massive(1, 200)), ~(torch.arange(200) % 50 == 7))
    assert massive.find(with_massive(0, 2048), (16,), None) is None  # asked to keep everything
    assert massive.find(rows(0, 2048), (16,), 10.0) is None  # there are none
    x = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    x[5] *= 30  # one, with a hundredth of the variance
    assert massive.find(x, (16,), 10.0) is None
    pair = massive.find(torch.cat([rows(3, 2048), with_massive(0, 2048)], 1), (16, 16), 10.0)
    assert pair is not None and pair.facts()[0] is None and pair.facts()[1] > 0
    assert bool(pair.kept(rows(4, 64)).all())  # a transcoder's x alone: its y is massive, not it
    assert massive.of_facts(pair.facts(), 16, 16) == pair


def test_what_is_left_out_changes_neither_training_nor_measures() -> None:
    """Beside a training whose massive rows are ordinary ones: it explains as much of the ordinary rows, and is measured on them."""
    dominated = trained(SPEC)
    plain = trained(SPEC, rows)
    kept = trained(replace(SPEC, massive=None))
    x = with_massive(9999, 4000).view(40, 100, 16)
    ordinary = ~(torch.arange(4000) % 50 == 7).view(40, 100)
    results = {}
    for name, trainer in (("dominated", dominated), ("plain", plain), ("kept", kept)):
        sae = trainer.export()
        evaluator, on_ordinary = Evaluator(sae), Evaluator(sae)
        evaluator.add(x, torch.ones(40, 100, dtype=torch.bool))
        on_ordinary.add(x, ordinary)
        results[name] = (evaluator.result(), on_ordinary.result())
        for beside in trainer.controls().values():
            assert beside.massive == sae.massive
    found, same = results["dominated"]
    left = found.pop("massive")
    assert left["rows"] == 0.02 and left["variance"] > 0.99
    same.pop("massive")
    assert found == same  # the very same numbers
    assert abs(found["explained_variance"] - results["plain"][1]["explained_variance"]) < 0.03
    assert "massive" not in results["plain"][0]
    # What is avoided: nearly all is explained, and of the ordinary rows next to nothing.
    assert results["kept"][0]["explained_variance"] > 0.99 > 0.5 > results["kept"][1]["explained_variance"]


def test_an_sae_has_no_features_where_it_is_not_for_and_says_so_in_its_file(tmp_path: Path) -> None:
    sae = trained(replace(SPEC, steps=20)).export()
    formats.save(tmp_path, sae, {"model_name": "m"})
    again = formats.load(tmp_path)
    assert again.massive == sae.massive and sae.massive is not None
    x = with_massive(3, 200)
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again.encode(x).abs().sum(1) > 0, sae.massive.kept(x))
    config = json.loads((tmp_path / "cfg.json").read_text())
    for wrong in ([1.0, 2.0, 3.0], [], ["large"], 3):
        config["metadata"][formats.MASSIVE] = wrong
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=formats.MASSIVE):
            formats.load(tmp_path)


def test_a_continued_training_leaves_out_the_same(tmp_path: Path) -> None:
    straight, cut = trained(replace(SPEC, steps=60)), Trainer(replace(SPEC, steps=60), CPU, with_massive(-1, 2048))
    for step in range(60):
        if step == 31:
            tensors, meta = cut.state()
            cut = Trainer.resume(replace(SPEC, steps=60), tensors, json.loads(json.dumps(meta)), CPU)
        cut.train_step(with_massive(step, 64))
    (mine, facts), (theirs, other) = cut.state(), straight.state()
    assert facts == other and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert cut.export().massive == straight.export().massive is not None


def test_a_measurement_goes_on_with_what_it_left_out() -> None:
    sae = trained(replace(SPEC, steps=20)).export()
    x, keep = with_massive(5, 400).view(4, 100, 16), torch.ones(4, 100, dtype=torch.bool)
    once, first = Evaluator(sae), Evaluator(sae)
    once.add(x, keep)
    first.add(x[:2], keep[:2])
    second = Evaluator(sae)
    second.load(first.state()[0])
    second.add(x[2:], keep[2:])
    assert second.result() == once.result()


def test_what_a_store_holds_from_before_is_not_taken_for_it(tmp_path: Path) -> None:
    """Of a model that may have massive rows, the default is another SAE than one that keeps them; the embedded models have none."""
    model = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(model).save_pretrained(tmp_path / "model")
    bpe(300).save_pretrained(tmp_path / "model")
    words = f"task=sae model={tmp_path / 'model'} data=text data.path={__file__}".split()
    keys = [key(*words, *more) for more in ((), ("sae.massive=5",), ("sae.massive=null",))]
    assert [json.loads(k.payload)["extra"] for k in keys] == [{"sae.massive": 10.0}, {"sae.massive": 5.0}, {}]
    assert len({k.id for k in keys}) == 3
    assert "sae.massive" not in json.loads(key("task=sae").payload)["extra"]
