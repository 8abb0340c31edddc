"""Training of the embedded language model: next-token loss on the mixture, with the answer tokens weighted up.

loss = Σ_t w_t · CE(logits_{t-1}, token_t) / Σ_t w_t, with w = `answer_weight` at answers and 1 elsewhere. Prompts are mostly
random words that nobody can predict; without the weight their noise drowns the one token per sentence that teaches a
behaviour, and negation, logic and IOI stay at chance.

Sentences are packed: a row of the batch holds several whole sentences, each attending to itself only and counting its
positions from 0, which is the same computation as one padded row per sentence (a test compares them) at about half the
tokens. AdamW, linear warm-up, cosine decay to a tenth, gradient norm clipped at 1. Every draw comes from generators
derived from `spec.seed`; with an equal number of threads two trainings are equal bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from circuits.data import mixture
from circuits.data.behaviours.base import WORD
from circuits.data.seeds import derive_seed
from circuits.errors import NonFinite, RunError
from circuits.files import write_json
from circuits.models.tiny.accuracy import accuracies
from circuits.models.tiny.spec import BOS, EOS, SPECIALS, TinySpec, hf_config, vocabulary
from circuits.models.tiny.tokenizer import build_tokenizer, word_ids

Progress = Callable[[int, int, dict[str, float]], None]

ROW = 64
"""Positions of a packed row; the longest sentence has about 30."""


class Packed(NamedTuple):
    """Rows of whole sentences."""

    ids: Int[Tensor, "rows pos"]
    positions: Int[Tensor, "rows pos"]
    """Counted from 0 in every sentence."""
    sentence: Int[Tensor, "rows pos"]
    """Number of the sentence within its row, -1 at padding."""
    weight: Float[Tensor, "rows pos"]
    """Weight of predicting this token; 0 at a sentence's first token and at padding."""


def encode(sentences: list[mixture.Sentence], ids: dict[str, int]) -> list[tuple[list[int], int]]:
    """Each sentence as <bos> words <eos>, and the position of its answer."""
    bos, eos = SPECIALS.index(BOS), SPECIALS.index(EOS)
    return [([bos, *(ids[word] for word in WORD.findall(s.text)), eos], 1 + s.place) for s in sentences]


def pack(sequences: list[tuple[list[int], int]], width: int, answer_weight: float) -> Packed:
    """First-fit packing, longest first, into rows of `width`."""
    rows: list[list[tuple[list[int], int]]] = []
    room: list[int] = []
    for sequence, answer in sorted(sequences, key=lambda s: -len(s[0])):
        row = next((r for r, left in enumerate(room) if left >= len(sequence)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append((sequence, answer))
        room[row] -= len(sequence)
    ids, positions = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    sentence, weight = torch.full((len(rows), width), -1), torch.zeros(len(rows), width)
    for r, row_sequences in enumerate(rows):
        start = 0
        for s, (sequence, answer) in enumerate(row_sequences):
            end = start + len(sequence)
            ids[r, start:end] = torch.tensor(sequence)
            positions[r, start:end] = torch.arange(len(sequence))
            sentence[r, start:end] = s
            weight[r, start + 1 : end] = 1.0
            weight[r, start + answer : end - 2] = answer_weight
            start = end
    return Packed(ids, positions, sentence, weight)


def attention_mask(sentence: Int[Tensor, "rows pos"]) -> Bool[Tensor, "rows 1 pos pos"]:
    """Causal within a sentence; padding sees padding, so that no row of the softmax is empty."""
    same = sentence[:, :, None] == sentence[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def weighted_loss(model: Qwen2ForCausalLM, batch: Packed) -> Float[Tensor, ""]:
    """The weighted next-token loss of a packed batch."""
    logits = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=attention_mask(batch.sentence),
        use_cache=False,
    ).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weight = batch.weight[:, 1:].flatten()
    return (loss * weight).sum() / weight.sum()


def new_model(spec: TinySpec, vocab: int) -> Qwen2ForCausalLM:
    """The model at its random start; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "tiny", "init"))
        return Qwen2ForCausalLM(Qwen2Config(**hf_config(spec, vocab))).float()


def learning_rate(spec: TinySpec, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to a tenth of it."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    done = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def fit(
    model: Qwen2ForCausalLM,
    spec: TinySpec,
    ids: dict[str, int],
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Train `model` in place for `spec.steps` steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=spec.weight_decay, fused=True
    )
    model.train()
    for step in range(spec.steps):
        if should_stop is not None and should_stop():
            raise RunError(
                f"training of the embedded model was stopped after {step} of {spec.steps} steps; run it again"
            )
        sentences = mixture.sentences(spec.seed, step, spec.batch)
        loss = weighted_loss(model, pack(encode(sentences, ids), ROW, spec.answer_weight))
        value = float(loss)
        if not math.isfinite(value):
            raise NonFinite(f"loss of the embedded model is {value} at step {step}; lower its lr ({spec.lr})")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, spec.steps, {"loss": value})
    model.eval()


def train(
    spec: TinySpec,
    out: Path,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Train the embedded model and save it, its tokenizer and accuracy.json in `out`; returns behaviour -> accuracy.

    Uses as many threads as torch is set to. `progress` gets (steps done, steps in all, {"loss": …}); when `should_stop`
    says so, a RunError is raised and nothing is written.
    """
    words = vocabulary()
    tokenizer = build_tokenizer(words, spec.max_positions)
    model = new_model(spec, len(words))
    fit(model, spec, word_ids(words), progress, should_stop)
    measured = accuracies(model, tokenizer, n=200, seed=derive_seed(spec.seed, "tiny", "accuracy"))
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / "accuracy.json", {name: m._asdict() for name, m in measured.items()})
    return {name: m.accuracy for name, m in measured.items()}
