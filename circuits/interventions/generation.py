"""Greedy continuation under edits, and how fluent it is.

Keys and values are computed once a token. Edits read one token at a time, so that what is cached is what the whole sequence would
give (a test holds it against whole passes). Rows of a batch are of equal length and end at the tokenizer's end-of-text token, which
is not counted. Fluency is what the model without edits makes of the text:

    nll          −(1/n) Σ log p(token | what stands before it), nats; perplexity = exp(nll)
    distinct_2   different pairs of neighbouring tokens / all of them (Li et al. 2016, arXiv:1510.03055)
    repetition   1 − distinct_2

A low perplexity is no praise by itself: a text that repeats itself is likely, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from circuits.interventions.units.base import Lens
from circuits.model_input import ModelInput, padded
from circuits.models.hooks import Edit as Hook
from circuits.models.hooks import Prefix, forward
from circuits.models.load import LM

Ids = tuple[int, ...]
MakeHooks = Callable[[Sequence[int], Sequence[int], int], list[Hook]]
"""(numbers of the rows, their lengths now, columns) → what is done in a pass over all columns, or over the last of them."""


def as_rows(texts: Sequence[Sequence[int]], steps: int) -> Int[Tensor, "texts steps"]:
    """Texts of up to `steps` tokens as one tensor, -1 after each one's end."""
    return torch.tensor([[*ids, *[-1] * (steps - len(ids))] for ids in texts], dtype=torch.int64)


def as_texts(rows: Int[Tensor, "texts steps"]) -> list[Ids]:
    """Back from :func:`as_rows`."""
    return [tuple(token for token in ids if token >= 0) for ids in rows.tolist()]


MakeInputs = Callable[[Sequence[int], Sequence[Ids]], ModelInput]
"""(numbers of the rows, their tokens) → what goes into the model."""


def text_inputs(rows: Sequence[int], sequences: Sequence[Ids]) -> ModelInput:
    """Text alone."""
    return padded(sequences)


def no_hooks(rows: Sequence[int], lengths: Sequence[int], width: int) -> list[Hook]:
    """The model as it is."""
    return []


def adding(
    lens: Lens,
    key: tuple[str, int],
    layer: int,
    change: Tensor,
    columns: Sequence[Sequence[int] | None],
    device: torch.device,
) -> MakeHooks:
    """Adds `change` at the columns of each row; None: at every token, the generated ones included."""
    change = change.float().to(device)

    def hooks(rows: Sequence[int], lengths: Sequence[int], width: int) -> list[Hook]:
        mask = torch.zeros(len(rows), width, 1, 1, dtype=torch.bool)
        for r, (i, length) in enumerate(zip(rows, lengths, strict=True)):
            at = columns[i]
            mask[r, list(range(length) if at is None else at)] = True
        mask = mask.to(device)

        def fn(x: Tensor) -> Tensor:
            old = lens.values(x, layer, (0,))
            here = mask[:, -x.shape[1] :]
            return lens.put(x, layer, (0,), old, torch.where(here, (old + change).to(old.dtype), old))

        return [Hook(*key, fn)]

    return hooks


@torch.inference_mode()
def generate(
    lm: LM,
    starts: Sequence[Ids],
    steps: int,
    *,
    hooks: MakeHooks = no_hooks,
    batch_size: int = 32,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Ids]:
    """Up to `steps` likeliest tokens after each start."""
    found: list[Ids] = [()] * len(starts)
    done, total = 0, len(starts) * steps
    for part in alike(starts, batch_size):

        def edits(active: Sequence[int], tokens: ModelInput, part: Sequence[int] = part) -> list[Hook]:
            width = tokens.ids.shape[1]
            return hooks([part[k] for k in active], [width] * len(active), width)

        def told(step: int, done: int = done, n: int = len(part)) -> None:
            tell(done + step * n, total)

        texts = greedy(lm, [starts[i] for i in part], steps, edits, padded, tell=told)
        for i, ids in zip(part, texts, strict=True):
            found[i] = ids
        done += steps * len(part)
    return found


def greedy(
    lm: LM,
    starts: Sequence[Ids],
    steps: int,
    edits: Callable[[Sequence[int], ModelInput], list[Hook]],
    inputs: Callable[[Sequence[Ids]], ModelInput],
    prefix: Prefix | None = None,
    tell: Callable[[int], None] = lambda step: None,
) -> list[Ids]:
    """Up to `steps` likeliest tokens after each start of one batch, all of equal length.

    Args:
        edits: (numbers of the rows that go on, their tokens so far) → what is done in the pass.
        inputs: what goes into the model for these tokens.
        prefix: where the first pass starts, at layer 0.
        tell: gets the number of steps done.
    """
    end, known = lm.tokenizer.eos_token_id, DynamicCache(config=lm.model.config)
    said: list[list[int]] = [[] for _ in starts]
    active = list(range(len(starts)))
    for step in range(1, steps + 1):
        tokens = inputs([starts[k] + tuple(said[k]) for k in active])
        read = forward(lm, tokens, edits=edits(active, tokens), logits="last", prefix=prefix, cache=known).read
        top, prefix = read.float().argmax(-1).tolist(), None
        goes_on = [place for place, token in enumerate(top) if token != end]
        for place in goes_on:
            said[active[place]].append(top[place])
        tell(step)
        if not goes_on:
            break
        if len(goes_on) < len(active):
            known.batch_select_indices(torch.tensor(goes_on, device=lm.device))
            active = [active[place] for place in goes_on]
    return [tuple(ids) for ids in said]


def alike(starts: Sequence[Ids], batch_size: int) -> list[list[int]]:
    """The numbers of rows of equal length, in batches."""
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(starts):
        by_length.setdefault(len(ids), []).append(i)
    return [
        some[first : first + batch_size] for some in by_length.values() for first in range(0, len(some), batch_size)
    ]


@torch.inference_mode()
def nll(
    lm: LM, starts: Sequence[Ids], texts: Sequence[Ids], *, inputs: MakeInputs = text_inputs, batch_size: int = 32
) -> list[float]:
    """Mean −log p of each text's tokens after its start, without edits; NaN of an empty text."""
    found = [float("nan")] * len(starts)
    some = sorted((i for i, text in enumerate(texts) if text), key=lambda i: (-len(starts[i]) - len(texts[i]), i))
    for first in range(0, len(some), batch_size):  # equal lengths together, the longest first
        rows = some[first : first + batch_size]
        tokens = inputs(rows, [starts[i] + texts[i] for i in rows])
        longest = max(len(texts[i]) for i in rows)
        columns, wanted = torch.zeros(2, len(rows), longest, dtype=torch.int64).unbind()
        for r, i in enumerate(rows):
            n = len(texts[i])
            columns[r, :n] = len(starts[i]) - 1 + torch.arange(n)
            wanted[r, :n] = torch.tensor(texts[i])
        logp = forward(lm, tokens, logits=columns).read.float().log_softmax(-1)
        each = logp.gather(2, wanted.to(logp.device)[..., None])[..., 0].cpu().double()
        for r, i in enumerate(rows):
            found[i] = -float(each[r, : len(texts[i])].mean())
    return found


def distinct(text: Ids, n: int = 2) -> float:
    """The share of its runs of `n` tokens that are different ones; NaN where it has none."""
    runs = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else float("nan")
