"""Long passes hear a stop, and are the same in one go and in pieces: trainings, measurements, examples, scores, tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pieces import Stop, in_pieces, stopping_after
from test_baseline import prompt_set
from test_data import make_documents, make_tokenizer
from test_interpret import planted, text
from test_sae_loop import STEPS, equal, run, spec
from test_stream import VOCAB, RandomSource, make_lm, make_stream, one_thread  # noqa: F401 (for this module, too)

from circuits.activations.scoring import score
from circuits.activations.stream import ActivationStream, Position
from circuits.data import textstore
from circuits.data.keeper import Keeper
from circuits.features.collect import Collector, Fresh
from circuits.features.pooling import pooled
from circuits.sae import loop
from circuits.sae.evaluate import measure
from circuits.sae.loop import Hooks, train
from circuits.sae.modules import SAE, SAEConfig, architectures
from circuits.sae.training import Trainer

# -- training ----------------------------------------------------------------------------------------------------------


def test_a_training_that_ended_has_its_last_checkpoint_for_what_follows_may_be_cut() -> None:
    whole, checkpoints, _ = run("topk", (0, 1), {})
    assert whole is not None and {(0, STEPS), (1, STEPS)} <= checkpoints.keys()
    resumed, again, logged = run("topk", (0, 1), {layer: checkpoints[layer, STEPS] for layer in (0, 1)})
    assert resumed is not None and not again and logged == {0: [], 1: []}, "nothing is trained again"
    assert all(equal(trainer, resumed[layer]) for layer, trainer in whole.items())


@pytest.mark.parametrize("passes", [1, 6, 11])
def test_a_stop_is_heard_while_a_block_is_filled_and_costs_no_step(
    passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_ROWS", 64)
    whole, _, _ = run("topk", (0, 1), {})
    stream, seen, saved = make_stream(make_lm("qwen2"), layers=(0, 1)), [], {}
    captured = ActivationStream._capture

    def counted(self: ActivationStream, tokens: Any) -> Any:
        seen.append(len(tokens))
        return captured(self, tokens)

    monkeypatch.setattr(ActivationStream, "_capture", counted)
    hooks: Hooks[int] = Hooks(
        log=lambda *_: None,
        save=lambda layer, step, tensors, meta: saved.update({layer: (tensors, meta)}),
        stopping=lambda: len(seen) >= passes,
    )
    specs = {layer: spec("topk", layer, stream.width) for layer in (0, 1)}
    until = dict.fromkeys(specs, STEPS)
    assert train(stream, specs, {}, hooks, until) is None and len(seen) == passes, "no pass more"
    monkeypatch.undo()
    monkeypatch.setattr(loop, "FIRST_ROWS", 64)
    resumed = {
        layer: (Trainer.resume(specs[layer], tensors, meta, stream.lm.device), Position(**meta["position"]))
        for layer, (tensors, meta) in saved.items()
    }
    assert bool(resumed) == (passes > 1), "before the first step there is nothing to save"
    rest: Hooks[int] = Hooks(log=lambda *_: None, save=lambda *_: None, stopping=lambda: False)
    found = train(make_stream(make_lm("qwen2"), layers=(0, 1)), specs, resumed, rest, until)
    assert whole is not None and found is not None and all(equal(t, found[layer]) for layer, t in whole.items())


# -- passes ------------------------------------------------------------------------------------------------------------


def random_sae(seed: int) -> SAE:
    """An SAE of sixteen inputs that is active now and then."""
    generator = torch.Generator().manual_seed(seed)
    sae = architectures()["relu"].sae(SAEConfig(16, 24))
    for weight in (sae.W_enc, sae.W_dec):
        weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return sae


@pytest.fixture(scope="module")
def stream() -> Iterator[ActivationStream]:
    yield make_stream(make_lm("qwen2"), layers=(0, 1, 2))


def test_a_measurement_goes_on_from_where_it_was_cut(stream: ActivationStream, tmp_path: Path) -> None:
    saes = {layer: random_sae(layer) for layer in (0, 1)}
    controls = {
        layer: {"untrained": random_sae(layer + 5), "frozen_decoder": random_sae(layer + 9)} for layer in (0, 1)
    }

    def work(keeper: Keeper[Any] | None) -> Any:
        return measure(stream, saes, controls, n_sequences=40, seed=0, keeper=keeper)

    paths = {layer: tmp_path / f"{layer}.safetensors" for layer in saes}
    whole = work(None)
    found = in_pieces(paths, work, (2, 1))
    for layer, (metrics, rate) in whole.items():
        assert found[layer][0] == metrics and torch.equal(found[layer][1], rate)
    early = paths[0].read_bytes()
    with pytest.raises(Stop):
        work(stopping_after(1, paths))
    paths[0].write_bytes(early)  # layer 1 is one step ahead of layer 0, as after a kill between two writes
    again = work(Keeper(paths))
    assert all(again[layer][0] == metrics for layer, (metrics, _) in whole.items())
    paths[1].write_bytes(early[:-50])
    assert work(Keeper(paths))[1][0] == whole[1][0], "what is damaged is measured again"
    saes[0] = random_sae(9)
    assert work(Keeper(paths))[0][0] != whole[0][0], "another SAE goes on from nothing"


def test_examples_go_on_from_where_they_were_cut(tmp_path: Path) -> None:
    tokens, x = text()
    sae = planted(20, {3: torch.eye(20)[7], 5: torch.eye(20)[2]})
    cuts = [Collector(sae, torch.arange(12), top_k=5, window=2) for _ in range(2)]
    fresh = Fresh()
    for start in range(0, len(tokens), 8):
        part = slice(start, start + 8)
        new = fresh(tokens.ids[part], tokens.mask[part])
        cuts[0].add(x[part], tokens.mask[part], new)
        tensors, counts = cuts[1].state()
        cuts[1] = Collector(sae, torch.arange(12), top_k=5, window=2)
        cuts[1].load(tensors, counts)
        cuts[1].add(x[part], tokens.mask[part], new)
    whole, pieces = (collector.result() for collector in cuts)
    for name, value in vars(whole).items():
        assert (value == vars(pieces)[name]).all() if hasattr(value, "all") else value == vars(pieces)[name], name


def test_features_on_prompts_and_scores_go_on_from_where_they_were_cut(tmp_path: Path) -> None:
    lm, prompts = make_lm("qwen2"), prompt_set((2, 1), n=20)
    assert max(max(p.ids) for p in prompts) < VOCAB
    sae, features = random_sae(1), torch.arange(0, 24, 3)

    def pool(keeper: Keeper[Any] | None) -> Any:
        options: dict[str, Any] = {"site": "resid_post", "how": "max", "skip_first": 1, "batch_size": 3}
        return pooled(lm, {1: sae}, {1: features}, prompts, keeper=keeper, **options)[1]

    assert (pool(None) == in_pieces({1: tmp_path / "p.safetensors"}, pool, (2, 3))).all()

    def scores(keeper: Keeper[Any] | None) -> Any:
        return score(lm, prompts, batch_size=3, keeper=keeper)

    assert scores(None) == in_pieces({"scores": tmp_path / "s.safetensors"}, scores, (1, 4))


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokenising_goes_on_from_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textstore, "_BATCH_DOCUMENTS", 16)
    documents, tokenizer = make_documents(200), make_tokenizer(eos_token="<eos>")

    def work(keeper: Keeper[Any] | None, out: Path = tmp_path / "pieces") -> dict[str, Any]:
        out.mkdir(exist_ok=True)
        return textstore.tokenise(documents, tokenizer, out, context=16, heldout_fraction=0.2, keeper=keeper)

    whole = work(None, tmp_path / "whole")
    path = {"tokens": tmp_path / "pieces" / "place.safetensors"}
    assert in_pieces(path, work, (3, 4)) == whole and textstore.finished(tmp_path / "pieces") == whole
    for name in textstore.FILES:
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(Stop):
        work(stopping_after(2, path))
    (tmp_path / "pieces" / ".train.npy.part").write_bytes(b"")
    assert work(Keeper(path)) == whole, "a file that lost what was written is begun anew"
