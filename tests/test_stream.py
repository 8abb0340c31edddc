"""The activation stream: every row once, the same batches from any start, the same layer beside any other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from circuits.activations.heldout import bad_rows
from circuits.activations.stream import ActivationStream, Batch, Position
from circuits.errors import NonFinite, RunError, UserError
from circuits.model_input import ModelInput, padded
from circuits.models.hooks import forward
from circuits.models.load import LM, wrap

VOCAB = 5000


class RandomSource:
    """Sequences of random tokens and random lengths, a generator that never repeats."""

    name = "random"

    def __init__(self, shortest: int = 3, context: int = 12) -> None:
        self.shortest, self.context = shortest, context

    def _sequences(self, first: int, n: int) -> ModelInput:
        rows = []
        for sample in range(first, first + n):
            rng = np.random.default_rng(sample)
            rows.append(rng.integers(0, VOCAB, rng.integers(self.shortest, self.context + 1)).tolist())
        return padded(rows, list(range(first, first + n)))

    def block(self, index: int, n: int) -> ModelInput:
        return self._sequences(index * n, n)

    def heldout(self, n: int) -> ModelInput:
        return self._sequences(10**9, n)

    def passes(self, index: int, n: int) -> float:
        return 0.0


class FailingSource(RandomSource):
    """Its third block cannot be made."""

    def block(self, index: int, n: int) -> ModelInput:
        if index == 2:
            raise UserError("corpus.jsonl, line 7: not JSON")
        return super().block(index, n)


def make_lm(family: str) -> LM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            return wrap(GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=3, n_head=2)))
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
        return wrap(Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_hidden_layers=3, **sizes)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def lm(request: pytest.FixtureRequest) -> LM:
    return make_lm(request.param)


def make_stream(lm: LM, layers: tuple[int, ...] = (0, 1, 2), **options: object) -> ActivationStream:
    defaults = {"site": "resid_post", "batch_size": 16, "block_rows": 200, "forward_batch": 8, "seed": 1}
    return ActivationStream(lm, RandomSource(), layers=layers, **(defaults | options))  # type: ignore[arg-type]


def take(stream: ActivationStream, n: int, start: Position | None = None) -> list[Batch]:
    return list(islice(stream.batches(start), n))


def of_first_block(stream: ActivationStream) -> list[Batch]:
    return list(takewhile(lambda batch: batch.position.block == 0, stream.batches()))


def naive_rows(stream: ActivationStream, layer: int, block: int = 0) -> Tensor:
    """Every valid row of a block, one sequence at a time."""
    tokens = stream.source.block(block, stream.sequences_per_block)
    rows = []
    for i in range(len(tokens)):
        one = tokens.take(slice(i, i + 1))
        site = forward(stream.lm, one, capture=[(stream.site, layer)]).sites[(stream.site, layer)]
        rows.append(site.flatten(2)[0, stream.skip_first :])
    return torch.cat(rows)


@pytest.mark.parametrize("site", ["resid_post", "mlp_act", "head_z"])
@pytest.mark.parametrize("skip_first", [0, 2])
def test_a_block_holds_every_row_once_in_another_order(lm: LM, site: str, skip_first: int) -> None:
    stream = make_stream(lm, site=site, skip_first=skip_first)
    batches = of_first_block(stream)
    for layer in (0, 2):
        found, expected = torch.cat([b.rows[layer] for b in batches]), naive_rows(stream, layer)
        assert found.shape[1] == expected.shape[1] == stream.width
        assert 0 <= len(expected) - len(found) < stream.batch_size
        nearest = torch.cdist(found.double(), expected.double()).min(dim=1)
        assert nearest.values.max() < 1e-5 and len(set(nearest.indices.tolist())) == len(found)
        assert (nearest.indices.diff() == 1).float().mean() < 0.2
    assert abs(len(batches) * 16 - 200) < 60


def test_rows_of_all_layers_are_the_same_tokens(lm: LM) -> None:
    stream = make_stream(lm)
    places = []
    for layer in (0, 1, 2):
        found = torch.cat([b.rows[layer] for b in of_first_block(stream)])
        places.append(torch.cdist(found.double(), naive_rows(stream, layer).double()).argmin(dim=1))
    assert torch.equal(places[0], places[1]) and torch.equal(places[0], places[2])


def test_any_start_repeats_the_uninterrupted_stream_bit_for_bit(lm: LM) -> None:
    batches = take(make_stream(lm), 40)
    assert {b.position.block for b in batches} >= {0, 1, 2} and [b.position.step for b in batches] == list(range(40))
    for before, after in pairwise(batches):
        assert before.following == after.position
    for i in (0, 5, next(i for i, b in enumerate(batches) if b.position.offset == 0 and b.position.block == 1) - 1, 30):
        again = take(make_stream(lm), 6, batches[i].following)
        for expected, found in zip(batches[i + 1 :], again, strict=False):
            assert found.position == expected.position
            assert all(torch.equal(found.rows[layer], expected.rows[layer]) for layer in (0, 1, 2))


def test_a_layer_alone_gives_the_batches_it_gives_in_a_set(lm: LM) -> None:
    together, alone = take(make_stream(lm), 20), take(make_stream(lm, layers=(1,)), 20)
    assert make_stream(lm).facts == make_stream(lm, layers=(1,)).facts
    for a, b in zip(together, alone, strict=True):
        assert a.position == b.position and list(b.rows) == [1] and torch.equal(a.rows[1], b.rows[1])


def test_seed_changes_the_order_only(lm: LM) -> None:
    one, other = (of_first_block(make_stream(lm, seed=seed)) for seed in (1, 2))
    assert not torch.equal(one[0].rows[0], other[0].rows[0])


def test_batches_belong_to_the_consumer(lm: LM) -> None:
    stream = make_stream(lm)
    kept, fresh = take(stream, 30), take(stream, 1)
    assert torch.equal(kept[0].rows[0], fresh[0].rows[0])  # not overwritten when the buffer was filled again
    assert kept[0].rows[0].dtype == torch.float32 and kept[0].rows[0].shape == (16, 16)


def test_heldout_keeps_order_and_marks_what_counts(lm: LM) -> None:
    stream = make_stream(lm, skip_first=1)
    chunks = list(stream.heldout(10, chunk=4))
    tokens = stream.source.heldout(10)
    assert [len(c.tokens) for c in chunks] == [4, 4, 2]
    assert torch.cat([c.tokens.samples for c in chunks]).tolist() == tokens.samples.tolist()
    for start, chunk in zip((0, 4, 8), chunks, strict=True):
        part = tokens.take(slice(start, start + 4))
        assert torch.equal(chunk.tokens.ids, part.ids) and not chunk.keep[:, 0].any()
        assert torch.equal(chunk.keep[:, 1:], part.mask[:, 1:])
        for layer, found in chunk.sites.items():
            expected = forward(lm, part, capture=[("resid_post", layer)]).sites[("resid_post", layer)]
            assert torch.equal(found, expected)


def broken(lm: LM, token: int) -> LM:
    """The model with a NaN in one token's embedding."""
    model: Any = type(lm.model)(lm.model.config)  # type: ignore[call-arg]
    model.load_state_dict(lm.model.state_dict())
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return wrap(model)


class OneBadToken(RandomSource):
    """The last token stands only at the end of sequence 5 (and of one held-out sequence)."""

    def _sequences(self, first: int, n: int) -> ModelInput:
        tokens = super()._sequences(first, n)
        tokens.ids[tokens.ids == VOCAB - 1] = 0
        for row, sample in enumerate(tokens.samples.tolist()):
            if sample in (5, 10**9 + 1):
                tokens.ids[row, int(tokens.lengths[row]) - 1] = VOCAB - 1
        return tokens


def test_a_non_finite_activation_is_named(lm: LM) -> None:
    stream = make_stream(broken(lm, VOCAB - 1), layers=(1, 2))
    stream.source = OneBadToken()
    with pytest.raises(NonFinite, match=r"resid_post, layer 1, sample 5 of random; .*nonfinite=drop"):
        next(stream.batches())
    with pytest.raises(NonFinite, match=r"resid_post, layer 1, sample 1000000001"):
        list(stream.heldout(4))


def test_dropped_rows_are_counted_and_the_rest_is_finite(lm: LM) -> None:
    stream = make_stream(broken(lm, VOCAB - 1), layers=(1, 2), nonfinite="drop")
    stream.source = OneBadToken()
    batches = take(stream, 30)
    assert all(rows.isfinite().all() for batch in batches for rows in batch.rows.values())
    # The whole sequence: attention gives a later token the weight zero, and zero times NaN is NaN.
    length = int(OneBadToken().block(0, 6).lengths[5])
    assert stream.dropped == {0: {"rows": length, "layers": {1: length, 2: length}, "samples": [5]}}
    chunk = next(stream.heldout(4))
    assert chunk.keep.any(dim=1).tolist() == [True, False, True, True]
    assert stream.heldout_dropped == int(chunk.tokens.lengths[1])
    assert chunk.sites[2][chunk.keep].isfinite().all()
    everything = make_stream(broken(lm, 0), nonfinite="drop")
    everything.source = AllZero()
    with pytest.raises(RunError, match=r"block 0: \d+ of \d+ rows are not finite at resid_post, 0 are left"):
        next(everything.batches())


class AllZero(RandomSource):
    """Nothing but token 0."""

    def _sequences(self, first: int, n: int) -> ModelInput:
        tokens = super()._sequences(first, n)
        return ModelInput(torch.zeros_like(tokens.ids), tokens.mask, tokens.samples)


def test_very_large_is_not_infinite() -> None:
    rows = torch.full((4, 3, 8), 3e38)
    rows[1, 2, 5], rows[3, 0, 0] = float("inf"), float("nan")
    expected = torch.zeros(4, 3, dtype=torch.bool)
    expected[1, 2] = expected[3, 0] = True
    found = bad_rows([torch.zeros(4, 3, 8), rows, rows[:, :, ::2].half()])
    assert not found[0].any() and torch.equal(found[1], expected) and found[2].all()


def test_errors_of_the_background_thread_surface_and_it_ends(lm: LM) -> None:
    stream = make_stream(lm)
    stream.source = FailingSource()
    with pytest.raises(UserError, match="line 7"):
        take(stream, 1000)
    batches = make_stream(lm).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokens")]


def test_wrong_settings_are_refused(lm: LM) -> None:
    for options, message in (
        ({"layers": (0, 7)}, "layer 7 is out of range: the model has 3 layers"),
        ({"layers": ()}, "no layer"),
        ({"site": "resid_pots"}, "unknown site"),
        ({"nonfinite": "zero"}, "choices: fail drop"),
        ({"batch_size": 0}, "batch_size=0; at least 1"),
        ({"block_rows": 31}, "sae.block_rows=31 is less than two batches of sae.batch_size=16"),
        ({"skip_first": 12}, "sae.skip_first=12 leaves no position"),
    ):
        with pytest.raises(UserError, match=message):
            make_stream(lm, **options)  # type: ignore[arg-type]


def test_half_precision_buffers_lose_nothing_of_a_half_precision_model() -> None:
    lm = make_lm("gpt2")
    half = wrap(GPT2LMHeadModel(lm.model.config).to(torch.bfloat16))
    stream = make_stream(half, layers=(1,))
    wide = make_stream(half, layers=(1,), dtype=torch.float32)
    assert stream.dtype == torch.bfloat16 and stream.facts["dtype"] == "bfloat16"
    for a, b in zip(take(stream, 3), take(wide, 3), strict=True):
        assert a.rows[1].dtype == torch.float32 and torch.equal(a.rows[1], b.rows[1])
