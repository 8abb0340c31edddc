"""A whole study: every edge scored on every prompt, the scores held against exact patching, and a circuit chosen.

::

    Pairs ── Method ──▶ scores [prompts, edges] ──┬─▶ choose ──▶ circuit.json
                                 │                ├─▶ stability over prompts and wordings
                                 └─▶ top + random edges ── exact patching ──▶ agreement
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.attribution.anatomy import Anatomy, check_attention
from circuits.attribution.choose import choose
from circuits.attribution.exact import exact_edges
from circuits.attribution.methods.base import Method, Task
from circuits.attribution.nodes import Nodes
from circuits.attribution.pairs import Pairs
from circuits.attribution.passes import run
from circuits.attribution.scores import total_write
from circuits.attribution.settings import Settings
from circuits.data import tensorfile
from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet
from circuits.data.seeds import derive_seed
from circuits.errors import Damaged, UserError
from circuits.interventions.settings import Direction, Metric

if TYPE_CHECKING:
    from circuits.models.load import LM

MakeKeeper = Callable[[str], Keeper[str]]
PART = 64
"""Prompts of one part: what was found of it is kept by itself."""


@dataclass(frozen=True)
class Ask:
    """What a study is made from."""

    lm: LM
    prompts: PromptSet
    settings: Settings
    seed: int = 0
    anatomy: Anatomy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_attention(self.lm)
        self.prompts.check_vocabulary(self.lm.dims.vocab, self.lm.name)
        self.prompts.check_lengths(self.lm.dims.context, self.lm.name)
        object.__setattr__(self, "anatomy", Anatomy(self.lm))

    @property
    def nodes(self) -> Nodes:
        """Writers and readers of the model."""
        return self.anatomy.nodes

    def pairs(self, prompts: PromptSet) -> Pairs:
        """The rows of prompts, as the settings want them."""
        return pairs(prompts, self.settings)

    def draw(self, *purpose: str) -> int:
        """A seed of its own for a purpose."""
        return derive_seed(self.seed, "attribution", *purpose)


def pairs(prompts: PromptSet, s: Settings) -> Pairs:
    """Rows by settings."""
    return Pairs(
        prompts,
        denoising=s.direction is Direction.denoising,
        span=s.metric is Metric.full_target,
        positions=s.positions,
    )


def measured(prompts: PromptSet, s: Settings) -> PromptSet:
    """The prompts that edges are scored on.

    Raises:
        UserError: an empty side; fewer prompts than are asked for; answers of several tokens where first tokens are compared.
    """
    several = [p.id for p in prompts if max(len(p.target_ids), len(p.foil_ids)) > 1]
    if s.metric is Metric.first_token and several:
        raise UserError(
            f"metric=first_token: {len(several)} prompts ({' '.join(several[:3])}) have answers of several tokens; "
            "metric=full_target compares whole answers"
        )
    chosen = prompts if s.split.value == "all" else prompts.only(s.split.value)
    if s.samples is not None:
        if s.samples > len(chosen):
            raise UserError(f"samples={s.samples}: there are {len(chosen)} prompts in split={s.split.value}")
        chosen = PromptSet(chosen.prompts[: s.samples], prompts.meta)
    return chosen


def method(name: str) -> Method:
    """What ``method=name`` means; :func:`circuits.attribution.settings.check` has refused other names."""
    found: Method = importlib.import_module(f"circuits.attribution.methods.{name}").METHOD
    return found


@dataclass
class Found:
    """What was read of the prompts.

    Attributes:
        scores: ``[prompts, edges]``.
        base: the metric of the run that is edited, by prompt.
        other: of the run whose values are put in.
        by_piece: mean scores ``[pieces, edges]`` where positions are ``spans``.
    """

    scores: NDArray[np.float32]
    base: NDArray[np.float64]
    other: NDArray[np.float64]
    by_piece: NDArray[np.float32] | None = None
    pieces: Sequence[str] = ()


def parts(n: int, world_size: int) -> list[range]:
    """The parts of the prompts: 64 each, fewer where so many processes share the work that some would have none."""
    size = max(1, min(PART, -(-n // world_size)))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def part_name(part: range, what: str = "scores") -> str:
    """What the scores (or something else) of a part are called."""
    return f"{what}-{part.start:06d}"


def share(n: int, shard: int, world_size: int) -> list[range]:
    """The parts of `n` prompts that one of `world_size` processes makes."""
    return parts(n, world_size)[shard::world_size]


def check_whole(ask: Ask) -> None:
    """Refuse a model whose parts do not add up to its residual stream: what circuits would leave out has no name.

    Raises:
        UserError: with how far they are apart.
    """
    batch = next(ask.pairs(PromptSet(ask.prompts.prompts[:1], ask.prompts.meta)).batches(1, ask.lm.device))
    with torch.no_grad():
        error = float(total_write(ask.anatomy, run(ask.anatomy, batch.base))["error"])
    least = 1e-3 if ask.lm.dtype is torch.float32 else 0.05
    if not error <= least:
        raise UserError(
            f"{ask.lm.name}: embedding, heads, MLPs and biases differ from the residual stream by {error:.2g} of its largest entry "
            f"(at most {least:g}): something else adds to it, and its circuits cannot be told"
        )


def score(ask: Ask, keeper: MakeKeeper, *, shard: int = 0, world_size: int = 1, whole: bool = True) -> Found | None:
    """Every edge on every prompt; with `whole` false only this shard's parts, and None."""
    check_whole(ask)
    n = len(ask.prompts)
    found = [
        _part(ask, part, keeper(part_name(part)))
        for part in (parts(n, world_size) if whole else share(n, shard, world_size))
    ]
    if not whole:
        return None
    names = found[0].pieces
    weights = np.array([len(f.scores) for f in found], dtype=np.float32)
    return Found(
        np.concatenate([f.scores for f in found]),
        np.concatenate([f.base for f in found]),
        np.concatenate([f.other for f in found]),
        None if not names else np.average([f.by_piece for f in found], axis=0, weights=weights).astype(np.float32),
        names,
    )


def unfinished(ask: Ask, kept: Path, world_size: int, what: str = "scores") -> int:
    """How many parts of all shards are not there yet, of what is kept in directory `kept`."""
    return sum(not _complete(kept / f"{part_name(p, what)}.safetensors") for p in parts(len(ask.prompts), world_size))


def _complete(path: Path) -> bool:
    try:
        _, meta = tensorfile.load(path)
    except (FileNotFoundError, Damaged):
        return False
    return bool(meta["done"] >= meta["total"])


def _part(ask: Ask, part: range, keeper: Keeper[str]) -> Found:
    s, nodes = ask.settings, ask.nodes
    rows = ask.pairs(PromptSet(ask.prompts.prompts[part.start : part.stop], ask.prompts.meta))
    u, v = (torch.from_numpy(column.copy()) for column in nodes.edges.T)
    scores = torch.zeros(len(rows), len(u))
    base, other = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    by_piece = torch.zeros(max(1, len(rows.names)), len(u) if rows.names else 0)
    facts = {"rows": [rows.prompts[row.prompt].id for row in rows.rows], "method": s.method, "steps": s.steps,
             "batch": s.batch_size, "edges": len(u)}  # fmt: skip

    def state(_: str) -> State:
        return {"scores": scores, "base": base, "other": other, "by_piece": by_piece}, {"total": len(rows)}

    for tensors, _ in keeper.begin({"effects": facts}).values():
        for mine, kept in ((scores, "scores"), (base, "base"), (other, "other"), (by_piece, "by_piece")):
            mine.copy_(tensors[kept])
    how, done = method(s.method), 0
    for batch in rows.batches(s.batch_size, ask.lm.device):
        if done + len(batch.rows) > keeper.start:
            task = Task(ask.anatomy, batch, s.steps, bool(rows.names))
            got = how.scores(task).detach()
            if rows.names and batch.piece is not None:
                for k in range(len(rows.names)):
                    at = (batch.piece == k).to(got.dtype)
                    by_piece[k] += torch.einsum("npuv,np->uv", got, at)[u, v].cpu() / len(rows)
                got = got.sum(1)
            index = torch.tensor(batch.rows)
            scores[index] = got[:, u, v].float().cpu()
            base[index], other[index] = (m.detach().double().cpu() for m in task.metrics())
        done += len(batch.rows)
        keeper.step(done, len(rows), state)
    keeper.end(done, state)
    return Found(
        rows.per_prompt(scores).numpy(), rows.per_prompt(base).numpy(), rows.per_prompt(other).numpy(),
        by_piece.numpy() if rows.names else None, rows.names,
    )  # fmt: skip


def matrix(nodes: Nodes, values: NDArray[Any]) -> NDArray[np.float64]:
    """Values of all edges as ``[writers, readers]``, 0 where there is none."""
    found = np.zeros(nodes.mask.shape)
    found[tuple(nodes.edges.T)] = values
    return found


def to_verify(ask: Ask, mean: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of the edges that are patched exactly: the largest, and random others; and which are the random ones."""
    s = ask.settings
    order = np.argsort(-np.abs(mean), kind="stable")
    largest, rest = order[: s.verify], order[s.verify :]
    rng = np.random.default_rng(ask.draw("verify"))
    drawn = rng.choice(rest, min(s.verify_random, len(rest)), replace=False) if len(rest) else rest
    chosen = np.concatenate([largest, drawn])
    return chosen, np.arange(len(chosen)) >= len(largest)


def verify(
    ask: Ask, edges: NDArray[np.int64], keeper: Keeper[str], copies: int = 4
) -> tuple[list[str], NDArray[np.float64]]:
    """Exact effects of some edges on the first prompts: their ids, and ``[prompts, edges]``."""
    prompts = PromptSet(ask.prompts.prompts[: ask.settings.verify_samples], ask.prompts.meta)
    rows = ask.pairs(prompts)
    chosen: list[tuple[int, int]] = [(int(u), int(v)) for u, v in ask.nodes.edges[edges]]
    found = torch.zeros(len(rows), len(chosen))
    facts = {"rows": [prompts[row.prompt].id for row in rows.rows], "edges": [list(edge) for edge in chosen]}
    total, done = len(rows) * len(chosen), 0

    def state(_: str) -> State:
        return {"exact": found}, {"total": total}

    for tensors, _ in keeper.begin({"effects": facts}).values():
        found.copy_(tensors["exact"])
    size = ask.settings.batch_size
    order = sorted(range(len(chosen)), key=lambda e: chosen[e][1])
    for batch in rows.batches(size, ask.lm.device):
        share = max(1, copies * size // len(batch.rows))
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            cells = len(some) * len(batch.rows)
            if done + cells > keeper.start:
                got = exact_edges(ask.anatomy, batch, [chosen[e] for e in some], copies=share)
                found[torch.tensor(batch.rows)[:, None], torch.tensor(some)[None]] = got
            done += cells
            keeper.step(done, total, state)
    keeper.end(done, state)
    return prompts.samples, rows.per_prompt(found).double().numpy()


CHUNK = 64
"""Edges between two safe points."""


def circuit(ask: Ask, mean: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The edges that are kept, ``[edges]``."""
    return choose(matrix(ask.nodes, mean), ask.nodes, ask.settings)[tuple(ask.nodes.edges.T)]
