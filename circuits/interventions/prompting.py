"""What a prompt does where a vector is added: demonstrations put before the prompt, measured as any edit (AxBench, 2501.17148).

``prompting``        demonstrations of what steering wants: prompts like the one that is steered, each with the answer that it is to
                     get (corrupt prompts with the target, or clean ones with the foil)
``prompting right``  the same pairs' clean prompts with their right answers: what a longer context and the task itself do

They are token ids of prompts that are not measured, one set for all: one BOS token, the demonstrations with a line's end between
them (a full stop where the tokenizer has no such token; with a chat template its end-of-turn token before it), then the prompt. As
many as fit into the model's context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from circuits.activations.answers import rows_of
from circuits.data.keeper import State
from circuits.data.prompts import Prompt
from circuits.interventions.ask import Ask
from circuits.interventions.edits.steer import Steer
from circuits.interventions.effects import Effects, effects_of
from circuits.interventions.engine import Engine, Readings
from circuits.interventions.readout import NUMBERS, numbers
from circuits.interventions.settings import Metric
from circuits.interventions.steering import base
from circuits.interventions.units.base import Lens, Unit
from circuits.model_input import padded
from circuits.models.hooks import forward

WANTED, RIGHT = "prompting", "prompting right"


@dataclass(frozen=True)
class Before:
    """Token ids that are put before every prompt.

    Attributes:
        ids: with one BOS token where prompts have one.
        bos: how many tokens of a prompt it takes the place of: 0 or 1.
        samples: whose demonstrations they are.
    """

    ids: tuple[int, ...]
    bos: int
    samples: tuple[str, ...]

    @property
    def shift(self) -> int:
        """How far a prompt's tokens move to the right."""
        return len(self.ids) - self.bos

    def of(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """A prompt after the demonstrations."""
        return self.ids + ids[self.bos :]


def demonstrations(ask: Ask, room: int) -> dict[str, Before]:
    """Both kinds, of the same pairs; none where `room` tokens hold none or ``shots=0``."""
    order = np.random.default_rng(ask.draw("shots")).permutation(len(ask.others))
    drawn = [ask.others[int(i)] for i in order][: ask.settings.shots]
    bos, between = int(bool(ask.others.meta.get("bos"))), _between(ask)
    found: dict[str, Before] = {}
    texts = {kind: [_shot(ask, p, kind)[bos:] + between for p in drawn] for kind in (WANTED, RIGHT)}
    fits = 0
    while fits < len(drawn) and all(sum(map(len, shots[: fits + 1])) <= room for shots in texts.values()):
        fits += 1
    for kind, shots in texts.items():
        if fits:
            ids = drawn[0].ids[:bos] + tuple(token for shot in shots[:fits] for token in shot)
            found[kind] = Before(ids, bos, tuple(p.id for p in drawn[:fits]))
    return found


def room(ask: Ask, steps: int = 0) -> int:
    """Tokens of the model's context that the longest measured prompt with its answer, and `steps` generated tokens, leave free."""
    if ask.lm.dims.context is None:
        return 1 << 30
    span = ask.settings.metric is Metric.full_target
    longest = max(
        max(len(p.ids), len(p.corrupt_ids or ())) + max(steps, max(len(p.target_ids), len(p.foil_ids)) if span else 1)
        for p in ask.measured
    )
    return ask.lm.dims.context - longest


def _shot(ask: Ask, p: Prompt, kind: str) -> tuple[int, ...]:
    if kind == RIGHT:
        return p.ids + p.target_ids
    return (p.corrupt_ids or ()) + p.target_ids if base(ask) == "corrupt" else p.ids + p.foil_ids


def _between(ask: Ask) -> tuple[int, ...]:
    """What stands between demonstrations."""
    tokenizer = ask.lm.tokenizer
    end = [tokenizer.eos_token_id] if ask.others.meta.get("chat") and tokenizer.eos_token_id is not None else []
    for text in ("\n", "."):
        ids = [i for i in tokenizer.encode(text, add_special_tokens=False) if i != tokenizer.unk_token_id]
        if ids:
            return tuple(end + ids)
    return tuple(end)


@torch.inference_mode()
def prompted(ask: Ask, lens: Lens, given: dict[str, Before]) -> Effects | None:
    """The effect of the demonstrations on every measured prompt; KL and the rest are against the prompt without them."""
    if not given:
        return None
    prompts = ask.measured
    rows = rows_of(prompts, base=base(ask), span=ask.settings.metric is Metric.full_target)
    engine = Engine(ask.lm, prompts, rows, lens, batch_size=ask.settings.batch_size)
    values = {name: torch.full((len(given), len(rows)), float("nan"), dtype=torch.float64) for name in NUMBERS}
    without = {name: torch.full((len(rows),), float("nan"), dtype=torch.float64) for name in NUMBERS}
    done, keeper = 0, ask.keep("prompted")

    def state(_: str) -> State:
        return {**values, **{f"without.{name}": column for name, column in without.items()}}, {}

    facts = {"given": list(given), "rows": prompts.samples, "batch": engine.batch_size}
    for tensors, _ in keeper.begin({"effects": facts}).values():
        for name, value in values.items():
            value.copy_(tensors[name])
        for name, column in without.items():
            column.copy_(tensors[f"without.{name}"])
    for members in engine.batches():
        done += len(members)
        if done <= keeper.start:
            continue
        batch = engine.prepare(members, [], Steer({}), copies=1)
        for name, column in batch.numbers.items():
            without[name][batch.rows] = column
        for k, before in enumerate(given.values()):
            tokens = padded([before.of(rows[i].ids) for i in members])
            read = forward(ask.lm, tokens, logits=batch.answers.columns + before.shift).read
            for name, column in numbers(read, batch.logp, batch.answers).items():
                values[name][k, batch.rows] = column
        keeper.step(done, len(rows), state)
    keeper.end(done, state)
    units = [Unit(name, (), control="prompting") for name in given]
    return effects_of(Readings(values, without), units, "steer", prompts, rows)
