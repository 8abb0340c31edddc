"""How a model scores answers after prompts: teacher-forced log-probabilities of target and foil (SPEC QC-2, TL-5, TL-8).

Rows are padded by us with mask and position ids; results do not depend on the padding side, the batch size or the order beyond
rounding. What is read of a row is :func:`circuits.activations.answers.read`'s, as in every pass with edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from circuits.activations.answers import READ, Answers, Row, read, rows_of
from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet, Side, batches
from circuits.errors import NonFinite, UserError
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.transfer import sent


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


_COLUMNS = dict(zip(Scores.__dataclass_fields__, READ, strict=True))  # the same numbers under a table's names


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
    rows = rows_of(prompts, span=True)
    _check(lm, prompts, rows)
    n = len(prompts)
    found: dict[str, list[float]] = {name: [0.0] * n for name in _COLUMNS}
    keeper, facts = keeper or Keeper(), {"batch": batch_size, "side": side, "by_length": by_length, "prompts": n}
    for tensors, _ in keeper.begin({"scores": facts}).values():
        found = {name: tensors[name].tolist() for name in found}

    def state(_: str) -> State:
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}, {}

    done = 0
    for batch in batches([row.ids for row in rows], batch_size, side=side, by_length=by_length):
        if done >= keeper.start:
            chosen = [rows[i] for i in batch.samples.tolist()]
            _keep(chosen, _scored(lm, prompts, chosen, batch), found)
            keeper.step(done + len(batch), len(rows), state)
        done += len(batch)
    keeper.end(done, state)
    return Scores(**{name: [int(v) for v in values] if name == "top" else values for name, values in found.items()})  # type: ignore[arg-type]


def _check(lm: LM, prompts: PromptSet, rows: Sequence[Row]) -> None:
    prompts.check_vocabulary(lm.dims.vocab, lm.name)
    context = lm.dims.context
    for row in rows:
        if context is not None and len(row.ids) > context:
            raise UserError(
                f"prompt {prompts[row.prompt].id}: {len(row.ids)} tokens are more than the {context} positions of {lm.name}"
            )


def _scored(lm: LM, prompts: PromptSet, rows: Sequence[Row], batch: ModelInput) -> dict[str, list[float]]:
    """:data:`READ` of each row. The host waits once a batch, whatever the number of prompts."""
    answers = Answers.of(rows, lm.device)
    first = batch.last - batch.lengths + 1  # padded on the left, a row begins later
    logits = forward(lm, batch, logits=answers.columns + sent(first[:, None], lm.device)).read.float()
    sound = torch.isfinite(logits.sum(dim=-1)).all(dim=1)
    *values, fine = torch.cat([read(logits, logits.log_softmax(-1), answers), sound[None]]).cpu()
    if not bool(fine.all()):
        sample = prompts[rows[int((fine == 0).nonzero()[0, 0])].prompt].id
        raise NonFinite(f"non-finite logits, prompt {sample}; use precision=fp32 or precision=bf16")
    return {name: column.double().tolist() for name, column in zip(READ, values, strict=True)}


def _keep(rows: Sequence[Row], values: Mapping[str, list[float]], found: Mapping[str, list[float]]) -> None:
    """What each row reads, to its prompt's place; of two rows the target's says what is likeliest."""
    for name, number in _COLUMNS.items():
        foil = "foil" in name
        for row, value in zip(rows, values[number], strict=True):
            if row.answer in ("both", "foil" if foil else "target"):
                found[name][row.prompt] = value
