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
from circuits.data.prompts import Batch, PromptSet, Side, batches
from circuits.errors import NonFinite, UserError
from circuits.models.load import LM
from circuits.models.modules import module_at, only_at

if TYPE_CHECKING:
    from jaxtyping import Float, Int


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
    names = [prompts[row.prompt].id for row in rows]
    for batch in batches([row.sequence for row in rows], names, batch_size, side=side, by_length=by_length):
        if done >= keeper.start:
            _score_batch(lm, prompts, [rows[i] for i in batch.index], batch, found)
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
def _score_batch(lm: LM, prompts: PromptSet, rows: Sequence[_Row], batch: Batch, found: dict[str, list[float]]) -> None:
    spans = [1 if row.answer == "both" else len(row.tokens) for row in rows]
    logits = answer_logits(lm, batch, max(spans)).float()
    bad = ~torch.isfinite(logits.sum(dim=-1)).all(dim=1)
    if bool(bad.any()):
        raise NonFinite(
            f"non-finite logits, prompt {batch.samples[int(bad.nonzero()[0, 0])]}; use precision=fp32 or precision=bf16"
        )
    logp = logits.log_softmax(dim=-1)
    for r, (row, span) in enumerate(zip(rows, spans, strict=True)):
        start = logits.shape[1] - span
        i, first_logits, first = row.prompt, logits[r, start], logp[r, start]
        if row.answer in ("both", "target"):
            best = int(first.argmax())
            found["top"][i], found["top_probability"][i] = best, float(first[best].exp())
        for name, tokens in _answers(row):
            found[f"logit_{name}"][i] = float(first_logits[tokens[0]])
            found[f"logp_first_{name}"][i] = float(first[tokens[0]])
            steps = [logp[r, start + j, token] for j, token in enumerate(tokens)]
            found[f"logp_{name}"][i] = float(torch.stack(steps).sum())


def _answers(row: _Row) -> list[tuple[str, tuple[int, ...]]]:
    if row.answer == "both":
        return [("target", row.tokens[:1]), ("foil", row.tokens[1:])]
    return [(row.answer, row.tokens)]


def answer_logits(lm: LM, batch: Batch, n: int) -> Float[Tensor, "batch n vocab"]:
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
        )
    logits: Tensor = out.logits
    return logits


def _last(batch: Batch, n: int) -> Int[Tensor, "batch n"]:
    first = batch.last - batch.mask.sum(dim=1) + 1
    back = torch.arange(n - 1, -1, -1, device=batch.ids.device)
    return torch.maximum(batch.last[:, None] - back, first[:, None])
