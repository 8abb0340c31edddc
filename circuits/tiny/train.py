"""Training of the embedded language model: next-token loss on the mixture, with the answer tokens weighted up.

loss = Σ_t w_t · CE(logits_{t-1}, token_t) / Σ_t w_t, with w = `answer_weight` at answers and 1 elsewhere. Prompts are mostly
random words that nobody can predict; without the weight their noise drowns the one token per sentence that teaches a
behaviour, and negation, logic and IOI stay at chance.

Behaviours are drawn in proportion to their running error, so most of the batch goes to what is not yet learned (the facts take
100 steps, logic 800). When all errors are small, or `decay` steps before the end, the learning rate falls linearly to zero.

Sentences are packed: a row of the batch holds several whole sentences, each attending to itself only and counting its
positions from 0, which is the same computation as one sentence at a time (a test compares them) with little padding.
AdamW, linear warm-up, gradient norm clipped at 1. Every draw comes from generators derived from `spec.seed`; with equal numbers of
threads two trainings are equal bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from circuits.data.behaviours import embedded
from circuits.data.behaviours.base import WORD
from circuits.data.keeper import Keeper, State
from circuits.data.seeds import derive_seed
from circuits.errors import NonFinite
from circuits.files import write_json
from circuits.tiny import mixture
from circuits.tiny.accuracy import Accuracy, accuracies
from circuits.tiny.keeping import Progress, adam_state, quiet_saving, run, take_up
from circuits.tiny.spec import BOS, EOS, SPECIALS, VERSION, TinySpec, hf_config, vocabulary
from circuits.tiny.tokenizer import build_tokenizer, word_ids

ERROR_RATE = 0.05
"""Weight of the newest batch in a behaviour's running error."""
KEEP_ALIVE = 0.04
"""What a behaviour's share of the draws never falls below; its running error is added."""
LEARNED = 0.05
"""Running error, measured at the full learning rate, from which the decay brings a behaviour to nearly zero."""

ROW = 64
"""Positions of a packed row; the longest sentence has about 30."""


class Packed(NamedTuple):
    """Rows of whole sentences."""

    ids: Int[Tensor, "rows pos"]
    positions: Int[Tensor, "rows pos"]
    """Counted from 0 in every sentence."""
    sentence: Int[Tensor, "rows pos"]
    """Number of the sentence in the batch, -1 at padding."""
    weight: Float[Tensor, "rows pos"]
    """Weight of predicting this token; 0 at a sentence's first token and at padding."""
    answers: Int[Tensor, "n 2"]
    """Row and position of each sentence's answer."""


def encode(sentences: list[mixture.Sentence], ids: dict[str, int]) -> list[list[int]]:
    """Each sentence as <bos> words <eos>; its answer stands at ``place + 1``."""
    bos, eos = SPECIALS.index(BOS), SPECIALS.index(EOS)
    return [[bos, *(ids[word] for word in WORD.findall(s.text)), eos] for s in sentences]


def pack(sequences: list[list[int]], answers: list[int], answer_weight: float, width: int = ROW) -> Packed:
    """First-fit packing, longest first. `answers`: position of the answer in each sequence.

    What follows an answer up to the full stop is determined by the behaviour too (`Example.rest`) and weighs as much.
    """
    room: list[int] = []
    starts: list[tuple[int, int]] = [(0, 0)] * len(sequences)
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        length = len(sequences[i])
        row = next((r for r, left in enumerate(room) if left >= length), len(room))
        if row == len(room):
            room.append(width)
        starts[i] = (row, width - room[row])
        room[row] -= length
    shape = (len(room), width)
    ids, positions, sentence = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
    weight, places = np.zeros(shape, np.float32), np.zeros((len(sequences), 2), np.int64)
    for i, ((row, start), sequence, answer) in enumerate(zip(starts, sequences, answers, strict=True)):
        end = start + len(sequence)
        ids[row, start:end], positions[row, start:end] = sequence, range(len(sequence))
        sentence[row, start:end] = i
        weight[row, start + 1 : end] = 1.0
        weight[row, start + answer : end - 2] = answer_weight
        places[i] = row, start + answer
    return Packed(*(torch.from_numpy(array) for array in (ids, positions, sentence, weight, places)))


def attention_mask(sentence: Int[Tensor, "rows pos"]) -> Bool[Tensor, "rows 1 pos pos"]:
    """Causal within a sentence; padding sees padding, so that no row of the softmax is empty."""
    same = sentence[:, :, None] == sentence[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def weighted_loss(model: Qwen2ForCausalLM, batch: Packed) -> tuple[Float[Tensor, ""], Bool[Tensor, " n"]]:
    """The weighted next-token loss, and which sentences' answers were the most likely token."""
    logits = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=attention_mask(batch.sentence),
        use_cache=False,
    ).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weight = batch.weight[:, 1:].flatten()
    rows, places = batch.answers.unbind(dim=1)
    right = logits.detach()[rows, places - 1].argmax(dim=-1) == batch.ids[rows, places]
    return (loss * weight).sum() / weight.sum(), right


def new_model(spec: TinySpec, vocab: int) -> Qwen2ForCausalLM:
    """The model at its random start; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "tiny", "init"))
        return Qwen2ForCausalLM(Qwen2Config(**hf_config(spec, vocab))).float()


class Curriculum:
    """Running error per behaviour: it sets what is drawn next, and says when everything is learned."""

    def __init__(self) -> None:
        self.errors = dict.fromkeys(embedded(), 1.0)

    def shares(self) -> dict[str, float]:
        """What is not yet learned is drawn more often, what is learned is kept alive."""
        return {name: KEEP_ALIVE + error for name, error in self.errors.items()}

    def update(self, behaviours: list[str], right: list[bool]) -> None:
        """Move each behaviour's error a twentieth of the way to that of this batch."""
        for name in self.errors:
            now = [r for b, r in zip(behaviours, right, strict=True) if b == name]
            if now:
                self.errors[name] += ERROR_RATE * (1 - sum(now) / len(now) - self.errors[name])

    def learned(self) -> bool:
        """Whether every behaviour's running error is below `LEARNED`."""
        return max(self.errors.values()) < LEARNED


class Fit:
    """A training of `model` in place, that can be taken up at any step."""

    def __init__(self, model: Qwen2ForCausalLM, spec: TinySpec, ids: dict[str, int]) -> None:
        self.model, self.spec, self.ids = model, spec, ids
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=spec.weight_decay, fused=True
        )
        self.curriculum = Curriculum()
        self.taken, self.end, self.decaying = 0, spec.steps, False

    def step(self) -> dict[str, float]:
        """One step on a batch that is drawn for it; its loss, and the largest running error."""
        spec, step = self.spec, self.taken
        sentences = mixture.sentences(spec.seed, step, spec.batch, shares=self.curriculum.shares())
        batch = pack(encode(sentences, self.ids), [s.place + 1 for s in sentences], spec.answer_weight)
        loss, right = weighted_loss(self.model, batch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFinite(f"loss of the embedded model is {value} at step {step}; lower its lr ({spec.lr})")
        for group in self.optimizer.param_groups:
            group["lr"] = spec.lr * min(1.0, (step + 1) / spec.warmup, (self.end - step) / spec.decay)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.taken += 1
        self.curriculum.update([s.behaviour for s in sentences], right.tolist())
        if not self.decaying and self.curriculum.learned():
            self.decaying, self.end = True, min(self.end, self.taken + spec.decay)
        return {"loss": value, "error": max(self.curriculum.errors.values())}

    def state(self) -> State:
        """What :meth:`load` takes."""
        facts = {"taken": self.taken, "end": self.end, "decaying": self.decaying, "errors": self.curriculum.errors}
        return adam_state(self.model, self.optimizer), facts

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, bit by bit."""
        take_up(self.model, self.optimizer, tensors)
        self.taken, self.end, self.decaying = int(facts["taken"]), int(facts["end"]), bool(facts["decaying"])
        self.curriculum.errors = dict(facts["errors"])


def fit(
    model: Qwen2ForCausalLM,
    spec: TinySpec,
    ids: dict[str, int],
    progress: Progress | None = None,
    keeper: Keeper[str] | None = None,
) -> int:
    """Train `model` in place; returns the number of steps taken.

    Warm-up, a constant rate until all is learned (at the latest until the decay must begin), linear decay to zero.
    """
    training = Fit(model, spec, ids)
    run(training, {**asdict(spec), "version": VERSION}, progress, keeper or Keeper())
    return training.taken


@dataclass(frozen=True)
class Trained:
    """The trained model, its tokenizer, and how well it knows each behaviour."""

    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    measured: dict[str, Accuracy]

    def save(self, out: Path) -> None:
        """A model's directory, with accuracy.json."""
        out.mkdir(parents=True, exist_ok=True)
        with quiet_saving():
            self.model.save_pretrained(out)
            self.tokenizer.save_pretrained(out)
        write_json(out / "accuracy.json", {name: m._asdict() for name, m in self.measured.items()})

    def told(self) -> str:
        """What was measured, in a line."""
        return "  ".join(f"{name} {found.accuracy:.3f}" for name, found in self.measured.items())


def train(spec: TinySpec, *, progress: Progress | None = None, keeper: Keeper[str] | None = None) -> Trained:
    """Train the embedded model and measure it.

    Uses as many threads as torch is set to. `progress` gets (steps done, steps in all, {"loss": …}); `keeper`: where the training
    is kept ("training"), it may end it.
    """
    words = vocabulary()
    tokenizer = build_tokenizer(words, spec.max_positions)
    model, keeper = new_model(spec, len(words)), keeper or Keeper()
    fit(model, spec, word_ids(words), progress, keeper)
    with keeper.cutting():
        measured = accuracies(model, tokenizer, n=200, seed=derive_seed(spec.seed, "tiny", "accuracy"))
    return Trained(model, tokenizer, measured)
