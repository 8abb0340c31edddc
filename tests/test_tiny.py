"""The embedded language model: its tokenizer, its training and, once a session, what it knows; and the stream of its text."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from circuits.data.behaviours import BEHAVIOURS
from circuits.data.behaviours.base import WORD, Split, unseen
from circuits.data.keeper import Keeper
from circuits.errors import NonFinite, UserError
from circuits.models.load import load_tokenizer
from circuits.tiny import mixture
from circuits.tiny.accuracy import accuracies, correct
from circuits.tiny.source import CHUNK, EmbeddedSource
from circuits.tiny.spec import SPECIALS, TinySpec, hf_config, vocabulary
from circuits.tiny.tokenizer import build_tokenizer, word_ids
from circuits.tiny.train import Curriculum, Packed, encode, fit, new_model, pack, train, weighted_loss

SMALL = TinySpec(layers=2, width=32, mlp=64, batch=16, steps=20, warmup=5, decay=5)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(vocabulary(), 128)


@pytest.fixture(scope="module")
def learned(tiny_dir: Path) -> Qwen2ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


# What is known without torch.


def test_shape_and_vocabulary_need_no_torch() -> None:
    code = (
        "import sys; from circuits.tiny.spec import *; from circuits.tiny.mixture import fingerprint;"
        "hf_config(TinySpec(), len(vocabulary())); fingerprint(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_model_is_of_its_declared_shape() -> None:
    model = new_model(TinySpec(), len(vocabulary()))
    config = hf_config(TinySpec(), len(vocabulary()))
    assert {k: getattr(model.config, k) for k in config if k != "rope_parameters"} == {
        k: v for k, v in config.items() if k != "rope_parameters"
    }
    assert model.config.rope_parameters["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_100_000


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"width": 130}, "width 130, heads 4"),
        ({"kv_heads": 3}, "kv_heads 3"),
    ],
)
def test_a_wrong_spec_is_refused(wrong: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        replace(TinySpec(), **wrong)


# The tokenizer.


def test_every_word_and_answer_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    words = vocabulary()
    assert len(set(words)) == len(words) and tuple(words[:4]) == SPECIALS
    for name, behaviour in BEHAVIOURS.items():
        for e in unseen(behaviour, np.random.default_rng(0), 30):
            ids = [
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (e.target, e.foil, e.clean, e.corrupt)
            ]
            assert len(ids[0]) == len(ids[1]) == 1 and len(ids[2]) == len(ids[3]), name
            assert tokenizer.unk_token_id not in chain.from_iterable(ids)
    for i, word in enumerate(words[4:], start=4):
        assert tokenizer(f" {word}")["input_ids"] == [tokenizer.bos_token_id, i]


def test_the_saved_tokenizer_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Also beside a Qwen2 config, which names another tokenizer class."""
    tokenizer.save_pretrained(tmp_path)
    new_model(SMALL, len(vocabulary())).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = [s.text for s in mixture.sentences(0, 0, 200)]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token, loaded.padding_side) == (
        "<bos>",
        "<eos>",
        "<pad>",
        "right",
    )
    assert loaded.convert_tokens_to_ids("Paris") == loaded(" Paris")["input_ids"][1]
    assert loaded("Gondor")["input_ids"] == [loaded.bos_token_id, loaded.unk_token_id]


def test_texts_come_back_from_their_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for s in mixture.sentences(0, 0, 200):
        assert tokenizer.decode(tokenizer(s.text)["input_ids"], skip_special_tokens=True) == s.text


# Training.


def padded_loss(model: Qwen2ForCausalLM, sequences: list[list[int]], answers: list[int], weight: float) -> Tensor:
    """The reference: one sentence at a time."""
    total, weights = torch.zeros(()), 0.0
    for sequence, answer in zip(sequences, answers, strict=True):
        logits = model(input_ids=torch.tensor([sequence])).logits[0]
        w = torch.ones(len(sequence) - 1)
        w[answer - 1 : len(sequence) - 3] = weight
        total = total + (F.cross_entropy(logits[:-1], torch.tensor(sequence[1:]), reduction="none") * w).sum()
        weights += float(w.sum())
    return total / weights


def test_packing_is_the_same_computation_as_one_sentence_at_a_time() -> None:
    words = vocabulary()
    model = new_model(SMALL, len(words))
    sentences = mixture.sentences(3, 0, 24)
    sequences, answers = encode(sentences, word_ids(words)), [s.place + 1 for s in sentences]
    batch = pack(sequences, answers, 10.0)
    gradients = []
    for loss in (weighted_loss(model, batch)[0], padded_loss(model, sequences, answers, 10.0)):
        model.zero_grad()
        loss.backward()
        gradients.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (packed, packed_grad), (padded, padded_grad) = gradients
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    assert len(packed_grad) == len(padded_grad) > 0
    for a, b in zip(packed_grad, padded_grad, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    _check_rows(batch, sequences, answers)


def _check_rows(batch: Packed, sequences: list[list[int]], answers: list[int]) -> None:
    """Every sentence is whole, in one row, its answer where it is said to be; little is padding."""
    for i, (sequence, answer) in enumerate(zip(sequences, answers, strict=True)):
        row, place = batch.answers[i].tolist()
        here = batch.sentence[row] == i
        assert batch.ids[row, here].tolist() == sequence
        assert batch.positions[row, here].tolist() == list(range(len(sequence)))
        assert batch.ids[row, place] == sequence[answer] and batch.weight[row, place] == 10.0
    assert (batch.sentence < 0).float().mean() < 0.3


def test_training_is_deterministic_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for name in "ab":
        train(SMALL).save(tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "accuracy.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    words = vocabulary()
    other = new_model(replace(SMALL, seed=1), len(words))
    assert not torch.equal(other.lm_head.weight, new_model(SMALL, len(words)).lm_head.weight)


def test_progress_tells_steps_and_losses() -> None:
    seen: list[tuple[int, int, float]] = []
    words = vocabulary()
    steps = fit(
        new_model(SMALL, len(words)),
        SMALL,
        word_ids(words),
        lambda done, total, m: seen.append((done, total, m["loss"])),
    )
    assert steps == SMALL.steps and [s[:2] for s in seen] == [(i + 1, SMALL.steps) for i in range(SMALL.steps)]
    assert seen[-1][2] < seen[0][2]


def test_a_stopped_training_goes_on_from_where_it_was_bit_by_bit(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    words, done, few = vocabulary(), [], replace(SMALL, steps=6, decay=2)
    whole, cut = (new_model(few, len(words)) for _ in range(2))
    fit(whole, few, word_ids(words))
    path, seen = {"training": tmp_path / "training.safetensors"}, []
    with pytest.raises(Stop):
        keeper = Keeper(path, stopping=lambda: len(done) == 3, stop=stop)
        fit(cut, few, word_ids(words), lambda d, n, m: done.append(d), keeper)
    other = new_model(few, len(words))
    fit(other, few, word_ids(words), lambda d, n, m: seen.append(d), Keeper(path))
    assert done[-1] == 3 and seen[0] == 4
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))


def test_a_diverged_training_names_the_step() -> None:
    with pytest.raises(NonFinite, match=r"loss of the embedded model is .* at step \d+; lower its lr"):
        train(replace(SMALL, lr=1e30, warmup=1))


def test_what_is_not_learned_is_drawn_more_often() -> None:
    curriculum = Curriculum()
    assert len(set(curriculum.shares().values())) == 1 and not curriculum.learned()
    others = [name for name in BEHAVIOURS if name != "logic"]
    for _ in range(200):
        curriculum.update([*others, "logic"], [True] * len(others) + [False])
    shares = curriculum.shares()
    assert shares["logic"] > 5 * max(shares[name] for name in others) and not curriculum.learned()
    for _ in range(200):
        curriculum.update(["logic"], [True])
    assert curriculum.learned()


# What the trained model knows.


def test_the_trained_model_knows_every_behaviour(
    learned: Qwen2ForCausalLM, tiny_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """On draws other than those its training reported, none of them trained on; arithmetic: all sums in all wordings."""
    assert type(learned).__name__ == "Qwen2ForCausalLM"
    measured = accuracies(learned, load_tokenizer(tiny_dir), n=300, seed=123)
    assert set(measured) == set(BEHAVIOURS) and measured["arithmetic"].n == 400
    assert {name: m for name, m in measured.items() if m.accuracy < 0.98} == {}
    assert min(m.n for m in measured.values()) >= 40
    reported = json.loads((tiny_dir / "accuracy.json").read_text())
    assert {name: r["accuracy"] >= 0.98 for name, r in reported.items()} == dict.fromkeys(BEHAVIOURS, True)


def test_the_corrupt_prompt_flips_the_trained_models_answer(
    learned: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    for name, behaviour in BEHAVIOURS.items():
        examples = unseen(behaviour, np.random.default_rng(9), 100)[:400:4]
        swapped = [e._replace(clean=e.corrupt, target=e.foil) for e in examples]
        assert np.mean(correct(learned, tokenizer, swapped)) >= 0.95, name


def test_an_untrained_model_knows_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(TinySpec(), len(vocabulary())).eval()
    assert max(m.accuracy for m in accuracies(model, tokenizer, n=50, seed=0).values()) < 0.2


def test_the_trained_model_ends_its_sentences(learned: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenizer("The capital of France is", return_tensors="pt")
    out = learned.generate(**encoded, max_new_tokens=5, do_sample=False)[0]
    assert tokenizer.decode(out) == "<bos> The capital of France is Paris. <eos>"


# The stream of its text.


def test_the_source_gives_whole_sentences(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = EmbeddedSource(tokenizer, 0, 64).block(1, 300)
    texts = [s.text for c in (1, 2) for s in mixture.sentences(0, c, CHUNK)][300 - CHUNK :][:300]
    assert len(tokens) == 300 and tokens.samples.tolist() == list(range(300, 600))
    assert (tokens.ids[:, 0] == tokenizer.bos_token_id).all()
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert rows == tokenizer(texts)["input_ids"]
    assert tokens.ids.shape[1] == max(map(len, rows)) and (tokens.ids[~tokens.mask] == tokenizer.pad_token_id).all()


def test_blocks_are_the_same_whenever_and_however_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    source = EmbeddedSource(tokenizer, 0, 64)
    late, whole = source.block(7, 50), EmbeddedSource(tokenizer, 0, 64).block(0, 400)
    part = whole.take(slice(350, 400))
    assert torch.equal(late.ids, part.ids) and torch.equal(late.samples, part.samples)
    assert EmbeddedSource(tokenizer, 1, 64).block(7, 50).ids.tolist() != late.ids.tolist()
    assert source.passes(10**6, 50) == 0


def test_heldout_is_disjoint_and_a_prefix_of_more(tokenizer: PreTrainedTokenizerFast) -> None:
    source = EmbeddedSource(tokenizer, 0, 64)
    few, many = source.heldout(20), source.heldout(500)
    assert torch.equal(many.take(slice(0, 20)).ids, few.ids)

    train = source.block(0, 5000)
    prompts = set()
    for tokens, side in ((many, "heldout"), (train, "train")):
        for i in tokens.samples.tolist():
            sentence = _sentence(side, i)  # type: ignore[arg-type]
            assert len(WORD.findall(sentence.text)) + 1 == tokens.lengths[i]
            prompts.add((side, tuple(tokens.ids[i, : 1 + sentence.place].tolist())))
    assert not {p for s, p in prompts if s == "train"} & {p for s, p in prompts if s == "heldout"}


@cache
def _chunk(side: Split, c: int) -> list[mixture.Sentence]:
    return mixture.sentences(0, c, CHUNK, side)


def _sentence(side: Split, i: int) -> mixture.Sentence:
    """Sentence number `i` of the stream of seed 0."""
    return _chunk(side, i // CHUNK)[i % CHUNK]


def test_any_other_tokenizer_is_asked() -> None:
    """One that lacks words of the mixture: its unknown token stands for them, as it says itself."""
    partial = build_tokenizer([w for w in vocabulary() if w != "Paris"], 128)
    tokens = EmbeddedSource(partial, 0, 64).block(0, 300)
    texts = [s.text for c in (0, 1) for s in mixture.sentences(0, c, CHUNK)][:300]
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert rows == partial(texts)["input_ids"] and partial.unk_token_id in chain.from_iterable(rows)


def test_sequences_are_cut_to_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    source = EmbeddedSource(tokenizer, 0, 6)
    assert source.context == 6 and source.block(0, 50).ids.shape == (50, 6)
    with pytest.raises(UserError, match="context must be at least 2"):
        EmbeddedSource(tokenizer, 0, 1)
