"""One pass of the model with everything that circuits read of it, and one backward pass that serves all edges.

The gradient that a single head's query receives from the stream is W_Q[h]ᵀ g through the norm's Jacobian, g the gradient at the
projection's output; so the outputs of the projections, the inputs of the MLPs and the final norm's answer are all that is
differentiated, and the rest is closed form (:mod:`circuits.attribution.scores`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.activations.answers import Answers
from circuits.attribution.anatomy import OUT, Anatomy
from circuits.attribution.rules import PLAIN, Rules, applied
from circuits.errors import NonFinite
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, Prefix, forward
from circuits.models.modules import hooked, module_at

Key = tuple[str, int]


@dataclass(frozen=True)
class Run:
    """One pass over rows.

    Attributes:
        tokens: the rows, ``[n, pos]``.
        streams: the residual stream by (what, layer): ``pre`` and ``mid`` (where there is one), and ``post`` of the last layer.
        z: what each layer's heads give to the output projection, ``[n, pos, heads, head_dim]``.
        mlp: what each MLP adds.
        sizes: what the norm after each attention divides by; empty where there is none.
        reads: (part, layer) → the projections' outputs ``[n, pos, items, head_dim]``, the MLPs' inputs, ``("logits", layers)`` the
            final norm's answer; in the graph where one was asked for.
        metric: logit difference of each row (log-probability difference of whole answers), in the graph.
    """

    tokens: ModelInput
    streams: Mapping[Key, Tensor]
    z: Mapping[int, Tensor]
    mlp: Mapping[int, Tensor]
    sizes: Mapping[int, Tensor]
    reads: Mapping[Key, Tensor] = field(default_factory=dict)
    raw: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    metric: Float[Tensor, " n"] | None = None


def _kept(where: list[Tensor], out: Tensor) -> Tensor:
    """Keep a module's output, as it is in the graph."""
    where.append(out)
    return out


def run(
    anatomy: Anatomy,
    tokens: ModelInput,
    answers: Answers | None = None,
    *,
    graph: bool = False,
    start: Float[Tensor, "n pos width"] | None = None,
    edits: Sequence[Edit] = (),
    rules: Rules = PLAIN,
) -> Run:
    """A pass; with `graph`, everything that is differentiated is kept in it.

    Args:
        anatomy: the model.
        tokens: the rows.
        answers: what is read, where the metric is wanted.
        graph: keep what a backward pass needs.
        start: the stream entering the first layer, in place of the tokens' own embedding.
        edits: of the pass.
        rules: of the backward pass.
    """
    lm, layers = anatomy.lm, range(anatomy.nodes.layers)
    wanted: list[Key] = [("resid_pre", i) for i in layers] + [("head_z", i) for i in layers]
    wanted += [("mlp_out", i) for i in layers] + [("resid_post", len(layers) - 1)]
    wanted += [] if lm.dims.parallel else [("resid_mid", i) for i in layers]
    wanted += [("mlp_in", i) for i in layers] if graph else []
    raw: dict[int, list[Tensor]] = {i: [] for i in layers}
    with contextlib.ExitStack() as stack:
        stack.enter_context(applied(anatomy, rules) if rules.any else contextlib.nullcontext())
        if graph:
            for i in layers:
                for module in anatomy.projections(i):
                    stack.enter_context(hooked(module, OUT, partial(_kept, raw[i])))
        prefix = None if start is None else Prefix(0, start)
        found = forward(lm, tokens, capture=wanted, edits=edits, detach=not graph, prefix=prefix)
        sites = found.sites
        last = sites["resid_post", len(layers) - 1]
        reads: dict[Key, Tensor] = {}
        metric = None
        with torch.set_grad_enabled(graph):
            if answers is not None:
                normed, metric = read(anatomy, last, answers)
                reads["logits", len(layers)] = normed
    reads |= {("mlp", i): sites["mlp_in", i] for i in layers} if graph else {}
    z = {i: sites["head_z", i].detach() for i in layers}
    sizes = {i: size for i in layers if (size := anatomy.attn_size(i, z[i])) is not None}
    streams = {
        (name.removeprefix("resid_"), i): t.detach() for (name, i), t in sites.items() if name.startswith("resid_")
    }
    return Run(
        tokens, streams, z, {i: sites["mlp_out", i].detach() for i in layers}, sizes, reads,
        {i: tuple(outs) for i, outs in raw.items()} if graph else {}, metric,
    )  # fmt: skip


def read(
    anatomy: Anatomy, last: Float[Tensor, "n pos width"], answers: Answers
) -> tuple[Float[Tensor, "n read width"], Float[Tensor, " n"]]:
    """The final norm's answer where rows are read, and each row's metric. Of first tokens only two rows of the unembedding are met.

    Raises:
        NonFinite: a metric is none.
    """
    lm = anatomy.lm
    rows = torch.arange(len(last), device=last.device)[:, None]
    normed = module_at(lm.model, lm.family.final_norm)(last[rows, answers.columns])
    head = module_at(lm.model, lm.family.lm_head)
    if bool((answers.first >= 0).all()):
        target, foil = answers.first[:, 0], answers.first[:, 1]
        metric = (normed[:, 0] * (head.weight[target] - head.weight[foil])).sum(-1).float()
        if head.bias is not None:
            metric = metric + (head.bias[target] - head.bias[foil]).float()
    else:
        metric = answers.difference(head(normed))
    if not bool(torch.isfinite(metric).all()):
        raise NonFinite("non-finite logits in a pass of attribution; use precision=fp32 or precision=bf16")
    return normed, metric


@dataclass
class Gradients:
    """∂ metric / ∂ what readers read, of one pass.

    Attributes:
        at: (part, layer) → ``[n, pos, items, head_dim]``; ``mlp`` and ``logits`` ``[n, pos, width]``.
        reads: the outputs themselves, at the same places.
    """

    at: Mapping[Key, Tensor]
    reads: Mapping[Key, Tensor]


def gradients(anatomy: Anatomy, done: Run, answers: Answers) -> Gradients:
    """One backward pass of a run with a graph, for all readers."""
    if done.metric is None:
        raise ValueError("this run has no metric")
    layers = anatomy.nodes.layers
    keys = list(done.reads)
    outs = [(i, j) for i in range(layers) for j in range(len(done.raw[i]))]
    wanted = [done.reads[key] for key in keys] + [done.raw[i][j] for i, j in outs]
    got = torch.autograd.grad(done.metric.sum(), wanted, materialize_grads=True)
    at: dict[Key, Tensor] = dict(zip(keys, got[: len(keys)], strict=True))
    reads = {key: done.reads[key].detach() for key in keys}
    for (i, j), g in zip(outs, got[len(keys) :], strict=True):
        parts = list(anatomy.projections(i).values())[j]
        for part in parts:
            at[part, i], reads[part, i] = anatomy.cut(part, g), anatomy.cut(part, done.raw[i][j].detach())
    key = ("logits", layers)
    at[key], reads[key] = spread(at[key], answers.columns, done.tokens.ids.shape[1]), reads[key]
    return Gradients(at, reads)


def spread(
    x: Float[Tensor, "n read width"], columns: Int[Tensor, "n read"], positions: int
) -> Float[Tensor, "n pos width"]:
    """What stands at `columns`, among all positions; zero elsewhere."""
    full = x.new_zeros(len(x), positions, x.shape[-1])
    return full.index_put((torch.arange(len(x), device=x.device)[:, None], columns), x, accumulate=True)
