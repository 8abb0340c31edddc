"""How a model scores answers after prompts: teacher-forced log-probabilities of target and foil (SPEC QC-2, TL-5, TL-8).

The answer's first token is read at the prompt's last valid position; its further tokens with the ones before them given. Both
answers of single tokens need one row, the prompt's; a longer answer needs a row of its own, prompt + answer without its
last token. Log-probabilities are a float32 log-softmax, taken only at the positions that are read, so that no
[batch, pos, vocab] tensor is made. Rows are padded by us with mask and position ids; results do not depend on the padding
side, the batch size or the order beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet, Side, batches
from circuits.errors import NonFinite, UserError
from circuits.model_input import ModelInput, made
from circuits.models.load import LM
from circuits.models.modules import module_at, only_at
from circuits.transfer import sent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Scores:
    """What the model makes of each prompt's answers, in the set's order; float64 numbers of float32 computations."""

    logit_target: list[float]
    """Raw logit of the target's first token after the prompt."""
    logit_foil: list[float]
    logp_target: list[float]
    """Log-probability of the whole target: the sum over its tokens, each given the ones before."""
    logp_foil: list[float]
    logp_first_target: list[float]
    logp_first_foil: list[float]
    top: list[int]
    """The most likely next token, and its probability."""
    top_probability: list[float]


@dataclass
class _Row:
    """One row of the model: a prompt and what of its answers is read there."""

    prompt: int
    answer: str
    sequence: tuple[int, ...]
    tokens: tuple[int, ...]


def score(
    lm: LM,
    prompts: PromptSet,
    *,
    batch_size: int,
    side: Side = "right",
    by_length: bool = True,
    keeper: Keeper[str] | None = None,
) -> Scores:
    """Score target and foil of every prompt. `keeper`: where scores are kept; told (rows done, all), it may end the pass."""
    _check(lm, prompts)
    rows = _rows(prompts)
    n = len(prompts)
    found: dict[str, list[float]] = {name: [0.0] * n for name in Scores.__dataclass_fields__}
    keeper, facts = keeper or Keeper(), {"batch": batch_size, "side": side, "by_length": by_length, "prompts": n}
    for tensors, _ in keeper.begin({"scores": facts}).values():
        found = {name: tensors[name].tolist() for name in found}

    def state(_: str) -> State:
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}, {}

    done = 0
    for batch in batches([row.sequence for row in rows], batch_size, side=side, by_length=by_length):
        if done >= keeper.start:
            _score_batch(lm, prompts, [rows[i] for i in batch.samples.tolist()], batch, found)
            keeper.step(done + len(batch), len(rows), state)
        done += len(batch)
    keeper.end(done, state)
    return Scores(**{name: [int(v) for v in values] if name == "top" else values for name, values in found.items()})  # type: ignore[arg-type]


def _rows(prompts: PromptSet) -> list[_Row]:
    rows = []
    for i, p in enumerate(prompts):
        if len(p.target_ids) == len(p.foil_ids) == 1:
            rows.append(_Row(i, "both", p.ids, (p.target_ids[0], p.foil_ids[0])))
        else:
            rows.append(_Row(i, "target", p.ids + p.target_ids[:-1], p.target_ids))
            rows.append(_Row(i, "foil", p.ids + p.foil_ids[:-1], p.foil_ids))
    return rows


def _check(lm: LM, prompts: PromptSet) -> None:
    prompts.check_vocabulary(lm.dims.vocab, lm.name)
    context = lm.dims.context
    for row in _rows(prompts):
        if context is not None and len(row.sequence) > context:
            raise UserError(
                f"prompt {prompts[row.prompt].id}: {len(row.sequence)} tokens are more than the {context} positions of {lm.name}"
            )


@torch.inference_mode()
def _score_batch(
    lm: LM, prompts: PromptSet, rows: Sequence[_Row], batch: ModelInput, found: dict[str, list[float]]
) -> None:
    answers = [_answers(row) for row in rows]
    spans = [max(len(tokens) for _, tokens in given) for given in answers]
    # Of every token of every answer: the row, the column of the logits at which it is predicted, and its id.
    read = [
        (r, max(spans) - span + j, token)
        for r, (given, span) in enumerate(zip(answers, spans, strict=True))
        for _, tokens in given
        for j, token in enumerate(tokens)
    ]
    starts = [(r, max(spans) - span) for r, span in enumerate(spans)]
    sound, table, best = _looked_up(answer_logits(lm, batch, max(spans)).float(), read, starts)
    if not bool(sound.all()):
        sample = prompts[rows[int((~sound).nonzero()[0, 0])].prompt].id
        raise NonFinite(f"non-finite logits, prompt {sample}; use precision=fp32 or precision=bf16")
    at = 0
    for row, given, (top, probability) in zip(rows, answers, best.tolist(), strict=True):
        i = row.prompt
        if row.answer in ("both", "target"):
            found["top"][i], found["top_probability"][i] = top, probability
        for name, tokens in given:
            logit, logp = table[at : at + len(tokens)].unbind(1)
            found[f"logit_{name}"][i], found[f"logp_first_{name}"][i] = float(logit[0]), float(logp[0])
            found[f"logp_{name}"][i] = float(logp.contiguous().sum())
            at += len(tokens)


def _looked_up(
    logits: Float[Tensor, "batch n vocab"], read: Sequence[tuple[int, int, int]], starts: Sequence[tuple[int, int]]
) -> tuple[Bool[Tensor, " batch"], Float[Tensor, "read 2"], Float[Tensor, "batch 2"]]:
    """In main memory: whether a row's logits are finite; logit and log-probability of what is to be `read`; the most likely token
    at each row's start and its probability. The host waits once a batch, whatever the number of prompts."""
    device, vocab = logits.device, logits.shape[-1]
    sound = torch.isfinite(logits.sum(dim=-1)).all(dim=1)
    flat_logits, logp = logits.view(-1, vocab), logits.log_softmax(dim=-1).view(-1, vocab)
    row, column, token = sent(torch.tensor(read), device).unbind(1)
    place = row * logits.shape[1] + column
    first_row, first_column = sent(torch.tensor(starts), device).unbind(1)
    probability, top = logp.index_select(0, first_row * logits.shape[1] + first_column).max(dim=1)
    numbers = [sound.float(), flat_logits[place, token], logp[place, token], probability.exp()]
    sizes = [len(part) for part in numbers]
    # Token ids are whole numbers below 2^24 and so exact in float32: one copy brings everything.
    found = torch.cat([*numbers, top.float()]).cpu().split([*sizes, len(top)])
    return found[0] > 0, torch.stack(found[1:3], dim=1), torch.stack([found[4], found[3]], dim=1).double()


def _answers(row: _Row) -> list[tuple[str, tuple[int, ...]]]:
    if row.answer == "both":
        return [("target", row.tokens[:1]), ("foil", row.tokens[1:])]
    return [(row.answer, row.tokens)]


def answer_logits(lm: LM, batch: ModelInput, n: int) -> Float[Tensor, "batch n vocab"]:
    """Logits at the last `n` valid positions of each row; of shorter rows the first columns repeat position 0."""
    batch = batch.to(lm.device)
    last = _last(batch, n)
    with only_at(module_at(lm.model, lm.family.lm_head), last):
        out = lm.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
            return_dict=True,
            **{name: made(tensor) for name, tensor in batch.extra.items()},
        )
    logits: Tensor = out.logits
    return logits


def _last(batch: ModelInput, n: int) -> Int[Tensor, "batch n"]:
    last = batch.last
    first = last - batch.lengths + 1
    back = torch.arange(n - 1, -1, -1, device=batch.ids.device)
    return torch.maximum(last[:, None] - back, first[:, None])
