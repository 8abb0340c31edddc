"""Exact patching of single edges: the reader gets the writer's value of the other run, everything after is free to follow.

Several edges share a pass: each copy of the rows has an edge of its own. Passes start at the reader's layer; all have one shape,
the one without edits included, and what a reader gets is what it gets without the edit plus a difference. So an edge whose
writer changes nothing has an effect of exactly 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.activations.answers import Answers
from circuits.attribution.anatomy import OUT, Anatomy
from circuits.attribution.nodes import Reader
from circuits.attribution.pairs import Batch
from circuits.attribution.passes import Run, read, run
from circuits.attribution.scores import changes, norm_of, stream
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, Prefix, forward
from circuits.models.modules import hooked

Edge = tuple[int, int]


@torch.no_grad()
def exact_edges(
    anatomy: Anatomy,
    batch: Batch,
    edges: Sequence[Edge],
    copies: int = 1,
    told: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "n edges"]:
    """metric(edge patched) − metric of each row.

    Args:
        anatomy: the model.
        batch: the rows.
        edges: (writer, reader) by number.
        copies: edges that share a pass.
        told: told how many edges are done; may end the work.
    """
    n, copies = len(batch.rows), max(1, min(copies, len(edges)))
    tokens, answers, base, metric, delta = prepared(anatomy, batch, copies)
    found = torch.zeros(n, len(edges))
    readers = anatomy.nodes.readers
    order = sorted(range(len(edges)), key=lambda e: edges[e][1])
    done = 0
    while done < len(order):
        layer = readers[edges[order[done]][1]].layer
        chosen = [e for e in order[done : done + copies] if readers[edges[e][1]].layer == layer]
        patched = _patched(
            anatomy, tokens, answers, base, [(delta[:, edges[e][0]], readers[edges[e][1]]) for e in chosen]
        )
        found[:, chosen] = (patched - metric).view(copies, n)[: len(chosen)].T.cpu()
        done += len(chosen)
        told(done)
    return found


def prepared(
    anatomy: Anatomy, batch: Batch, copies: int
) -> tuple[ModelInput, Answers, Run, Float[Tensor, " copies_n"], Float[Tensor, "n writers pos width"]]:
    """What all passes over a batch start from: its rows and answers `copies` times over, their run without edits, its metric, and
    what each writer would add in the other run, less what it adds in this one."""
    tokens = ModelInput(batch.base.ids.repeat(copies, 1), batch.base.mask.repeat(copies, 1))
    answers = repeated(batch.answers, copies)
    base = run(anatomy, tokens, answers)
    metric = base.metric if base.metric is not None else torch.zeros(0)
    delta = changes(anatomy, run(anatomy, batch.base), run(anatomy, batch.other), batch.at)
    return tokens, answers, base, metric, delta if batch.counts is None else delta * batch.counts[:, None, :, None]


def repeated(answers: Answers, copies: int) -> Answers:
    """The answers of a batch, `copies` times over."""
    return Answers(
        *(x.repeat(copies, 1) for x in (answers.columns, answers.mask, answers.first, answers.target, answers.foil))
    )


def _patched(
    anatomy: Anatomy, tokens: ModelInput, answers: Answers, base: Run, edges: Sequence[tuple[Tensor, Reader]]
) -> Float[Tensor, " rows"]:
    """The metric of a pass in which copy c has the c-th edge, all of one layer."""
    n, layers = len(edges[0][0]), anatomy.nodes.layers
    layer = edges[0][1].layer
    last = base.streams["post", layers - 1]
    if layer == layers:  # nothing follows but the final norm
        last = last.clone()
        for c, (delta, _) in enumerate(edges):
            last[c * n : (c + 1) * n] += delta.to(last.dtype)
        return _metric(anatomy, last, answers)
    with contextlib.ExitStack() as stack:
        edits = []
        by_module: dict[nn.Module, list[tuple[int, Tensor, Reader]]] = {}
        for c, (delta, reader) in enumerate(edges):
            if reader.part != "mlp":
                by_module.setdefault(anatomy.projection(layer, reader.part), []).append((c, delta, reader))
        mlps = [(c, delta) for c, (delta, reader) in enumerate(edges) if reader.part == "mlp"]
        for module, mine in by_module.items():
            stack.enter_context(hooked(module, OUT, _reading(anatomy, layer, base, mine, n)))
        if mlps:
            edits.append(Edit("mlp_in", layer, _mlp(anatomy, layer, base, mlps, n)))
        found = forward(
            anatomy.lm,
            tokens,
            capture=[("resid_post", layers - 1)],
            edits=edits,
            prefix=Prefix(layer, base.streams["pre", layer]),
        )
    return _metric(anatomy, found.sites["resid_post", layers - 1], answers)


def _metric(anatomy: Anatomy, last: Tensor, answers: Answers) -> Tensor:
    return read(anatomy, last, answers)[1]


def _difference(anatomy: Anatomy, base: Run, key: tuple[str, int], rows: slice, delta: Tensor) -> Tensor:
    """What `delta` on the stream changes in what the norm before a reader gives."""
    x, norm = stream(anatomy, base, key)[rows], norm_of(anatomy, key)
    return norm.normed(x + delta) - norm.normed(x)


def _reading(
    anatomy: Anatomy, layer: int, base: Run, edges: Sequence[tuple[int, Tensor, Reader]], n: int
) -> Callable[[Tensor], Tensor]:
    def change(y: Tensor) -> Tensor:
        y = y.clone()
        for c, delta, reader in edges:
            rows = slice(c * n, (c + 1) * n)
            more = _difference(anatomy, base, (reader.part, layer), rows, delta)
            weight = anatomy.w_in(layer, reader.part)[reader.item]
            anatomy.cut(reader.part, y)[rows, :, reader.item] += (more.to(weight.dtype) @ weight).to(y.dtype)
        return y

    return change


def _mlp(
    anatomy: Anatomy, layer: int, base: Run, edges: Sequence[tuple[int, Tensor]], n: int
) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        for c, delta in edges:
            rows = slice(c * n, (c + 1) * n)
            x[rows] += _difference(anatomy, base, ("mlp", layer), rows, delta).to(x.dtype)
        return x

    return change
