"""Forward passes with capture and edits at eight sites, by hooks on the native Hugging Face modules.

The model's own code runs; a hook only reads or replaces one tensor. So an identity edit leaves logits bit-equal, and
the cost is the model's. Three savings: the pass ends at the last wanted tensor when no logits are asked; with
``logits="last"`` only the last valid position meets the unembedding; a :class:`Prefix` starts at a later layer.

Gradients: with ``detach=False`` each captured tensor is the very tensor the rest of the pass is computed from, so
``torch.autograd.grad(metric, captured)`` is the gradient at that site. The parameters stay frozen: the graph starts at
the first captured or edited tensor. Edits are differentiable, and see a copy, so they may work in place.

Text that is being written: with a `cache` (transformers' own) a pass reads the columns that the cache does not hold yet, and leaves
them in it. Sites then hold those columns alone, and edits see those alone: an edit that reads one token at a time gives what the
whole rows give.

Hooks and skipped layers are undone in ``finally``. One pass at a time per model: hooks belong to the module, not to a
thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from circuits.errors import NonFinite, UserError
from circuits.model_input import Later, ModelInput, made, position_ids
from circuits.models import attention as masks
from circuits.models.load import LM
from circuits.models.modules import hooked, module_at, only_at, restarted
from circuits.models.positions import Kept, last_positions
from circuits.models.sites import Tap, check_layer, check_site
from circuits.transfer import sent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from transformers import Cache

Key = tuple[str, int]
"""(site, layer)."""
Capture = Mapping[str, Iterable[int]] | Iterable[Key]
"""What to capture: ``{"resid_post": [0, 1]}`` or ``[("resid_post", 0), ("resid_post", 1)]``."""
Logits = Literal["all", "last"] | Tensor | None
"""``all`` positions, each row's ``last`` valid one, or those of a tensor of columns ``[batch, n]``."""


@dataclass(frozen=True)
class Edit:
    """Replace a site's tensor by ``fn(tensor)``: ``[batch, pos, width]``, head_z ``[batch, pos, heads, head_dim]``."""

    site: str
    layer: int
    fn: Callable[[Tensor], Tensor]


class Prefix(NamedTuple):
    """The residual stream entering `layer`, from which a pass can restart. A single row serves any batch size."""

    layer: int
    resid: Float[Tensor, "batch pos width"]


@dataclass(frozen=True, repr=False)
class Result:
    """What a pass was asked for. `index` and `valid` are set when `positions` were given (see positions.Kept)."""

    logits: Float[Tensor, "batch pos vocab"] | Float[Tensor, "batch vocab"] | None
    sites: dict[Key, Tensor]
    index: Int[Tensor, "batch n"] | None = None
    valid: Bool[Tensor, "batch n"] | None = None

    @property
    def read(self) -> Tensor:
        """The logits of a pass that was asked for them."""
        return torch.empty(0) if self.logits is None else self.logits

    def __repr__(self) -> str:
        parts = [f"{site} {layer}: {list(value.shape)}" for (site, layer), value in self.sites.items()]
        parts += [] if self.logits is None else [f"logits: {list(self.logits.shape)}"]
        return f"Result({', '.join(parts)})"


def forward(
    lm: LM,
    rows: ModelInput,
    *,
    capture: Capture = (),
    positions: int | None = None,
    edits: Sequence[Edit] = (),
    logits: Logits = None,
    detach: bool = True,
    prefix: Prefix | None = None,
    cache: Cache | None = None,
) -> Result:
    """One pass over right- or left-padded rows, of text or of text and images.

    `capture` keeps sites, all positions or the last `positions` valid ones of each row; edits apply in the given order,
    before a capture at the same site. `logits`: ``all`` [batch, pos, vocab], ``last`` [batch, vocab] at each row's last
    valid token, or [batch, n, vocab] at the columns of a tensor [batch, n]. `detach=False` keeps the graph (see above).
    `cache`: keys and values of the columns before, of these very rows.
    """
    ids, mask = rows.ids, rows.mask
    wanted = _keys(capture)
    _check_request(lm, wanted, positions, edits, logits, prefix)
    _check_rows(lm, ids, mask, prefix)
    done = 0 if cache is None else _cached(cache, mask, positions, logits, prefix)
    # An image's place holders may lie beyond the embedding; the rows of a prefix were looked at when it was made.
    if not rows.extra and prefix is None and not done:
        _check_ids(lm, ids)
    mask = mask.bool()
    kept = None if positions is None else last_positions(mask, positions).to(lm.device)
    last = isinstance(logits, str) and logits == "last"
    at = last_positions(mask, 1).index[:, 0] - done if last else logits if isinstance(logits, Tensor) else None
    ids, mask = sent(ids, lm.device), sent(mask, lm.device)
    run = _Pass(lm, wanted, kept, detach, stop=logits is None)
    with torch.set_grad_enabled(not detach), contextlib.ExitStack() as hooks:
        if prefix is not None:
            resid = prefix.resid.to(lm.device).expand(len(ids), -1, -1)
            hooks.enter_context(restarted(module_at(lm.model, lm.family.blocks), prefix.layer, resid))
        run.attach(edits, hooks)
        if at is not None:
            hooks.enter_context(only_at(module_at(lm.model, lm.family.lm_head), sent(at, lm.device)))
        out = _call(lm, ids, mask, {} if done else rows.extra, cache, done)
    if out is not None and last:
        out = out[:, 0]
    chosen = {} if kept is None else {"index": kept.index, "valid": kept.valid}
    return Result(out, {key: run.sites[key] for key in wanted}, **chosen)


def make_prefix(lm: LM, rows: ModelInput, layer: int, edits: Sequence[Edit] = ()) -> Prefix:
    """Run up to `layer` once; passes with this prefix (same rows, same mask) then start there, with equal logits."""
    return Prefix(layer, forward(lm, rows, capture=[("resid_pre", layer)], edits=edits).sites["resid_pre", layer])


def finite_rows(tensor: Float[Tensor, "batch ..."]) -> Bool[Tensor, " batch"]:
    """Which samples hold no NaN and no infinity."""
    return torch.isfinite(tensor).flatten(1).all(1)


def check_finite(tensor: Float[Tensor, "batch ..."], site: str, layer: int, samples: Sequence[int] | Tensor) -> None:
    """Raise NonFinite naming the site, the layer and the first bad sample; `samples` are the rows' ids."""
    bad = (~finite_rows(tensor)).nonzero()[:, 0].tolist()
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFinite(
            f"non-finite activation at {site} layer {layer}, sample {int(samples[bad[0]])}{more}; "
            "use precision=fp32 or bf16, or leave such samples out with nonfinite=drop"
        )


class _StopPassError(BaseException):
    """Ends a pass once everything wanted is there. Not an Exception: nothing on the way may take it for a failure."""


@dataclass
class _Pass:
    """One pass: what is wanted of it and what it has kept so far."""

    lm: LM
    wanted: list[Key]
    kept: Kept | None
    detach: bool
    stop: bool
    sites: dict[Key, Tensor] = field(default_factory=dict)

    def attach(self, edits: Sequence[Edit], hooks: contextlib.ExitStack) -> None:
        """Hook every site that is captured or edited, once."""
        blocks = module_at(self.lm.model, self.lm.family.blocks)
        keys = dict.fromkeys([*((edit.site, edit.layer) for edit in edits), *self.wanted])
        for site, layer in keys:
            tap = self.lm.family.taps[site]
            here = [edit for edit in edits if (edit.site, edit.layer) == (site, layer)]
            visit = self._visitor((site, layer), here, tap)
            hooks.enter_context(hooked(module_at(blocks[layer], tap.module), tap, visit))

    def _visitor(self, key: Key, edits: Sequence[Edit], tap: Tap) -> Callable[[Tensor], Tensor]:
        shape = (self.lm.dims.heads, self.lm.dims.head_dim)
        wanted = key in self.wanted

        def visit(x: Tensor) -> Tensor:
            y = x.unflatten(-1, shape) if tap.heads else x
            for edit in edits:
                y = _edited(edit, y)
            if wanted:
                # A captured tensor must be ours alone: an edit may have returned a tensor that its caller still uses.
                y = self._keep(key, y.clone() if edits else y)
            return y.flatten(-2) if tap.heads else y

        return visit

    def _keep(self, key: Key, y: Tensor) -> Tensor:
        """Store what is wanted of `y`; return the tensor with which the pass goes on."""
        if self.detach:
            self.sites[key] = _own(y.detach()) if self.kept is None else _take(y, self.kept)[0]
        elif self.kept is None:
            self.sites[key] = y if y.requires_grad else y.requires_grad_()
        else:
            y = self._keep_in_path(key, y, self.kept)
        if self.stop and len(self.sites) == len(self.wanted):
            raise _StopPassError
        return y

    def _keep_in_path(self, key: Key, y: Tensor, kept: Kept) -> Tensor:
        """Capture some positions and put them back, so that what follows is computed from the captured tensor."""
        taken, original = _take(y, kept)
        self.sites[key] = taken if taken.requires_grad else taken.requires_grad_()
        real = slice(-min(kept.index.shape[1], y.shape[1]), None)  # columns further left exist in no row
        index = kept.index[:, real]
        back = taken[:, real]
        if not kept.all_valid:
            back = torch.where(_like(kept.valid, y)[:, real], back, original[:, real])
        return y.index_put((torch.arange(len(index), device=index.device)[:, None], index), back)


def _take(y: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """(the kept positions with zeros where a row is too short, the same unzeroed): new memory of the kept size only."""
    original = y[torch.arange(len(y), device=y.device)[:, None], kept.index]
    return (original if kept.all_valid else original.masked_fill(~_like(kept.valid, y), 0)), original


def _like(valid: Tensor, y: Tensor) -> Tensor:
    """`valid` with as many trailing dimensions as a site's tensor has."""
    return valid.reshape(*valid.shape, *[1] * (y.dim() - 2))


def _own(y: Tensor) -> Tensor:
    """`y` if it fills its memory, else a copy: a view would keep the whole of a larger tensor alive."""
    return y if y.untyped_storage().nbytes() == y.numel() * y.element_size() else y.clone()


def _edited(edit: Edit, y: Tensor) -> Tensor:
    new = edit.fn(y.clone())
    if new.shape != y.shape or new.dtype != y.dtype:
        raise UserError(
            f"the edit at {edit.site} layer {edit.layer} returned {tuple(new.shape)} {new.dtype}, "
            f"it must keep {tuple(y.shape)} {y.dtype}"
        )
    return new


def _call(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    inputs: Mapping[str, Tensor | Later],
    cache: Cache | None,
    done: int,
) -> Tensor | None:
    """The model's logits at the columns after the first `done`, or None when the pass was ended early."""
    given = {name: made(tensor).to(lm.device) for name, tensor in inputs.items()}
    try:
        with masks.shared(lm, mask, given.get(masks.TYPES), cache is not None) as attention:
            out = lm.model(
                input_ids=ids[:, done:],
                attention_mask=attention,
                position_ids=position_ids(mask)[:, done:],
                past_key_values=cache,
                use_cache=cache is not None,
                return_dict=True,
                **given,
            )
    except _StopPassError:
        return None
    return out.logits


def _keys(capture: Capture) -> list[Key]:
    pairs = (
        [(s, layer) for s, layers in capture.items() for layer in layers] if isinstance(capture, Mapping) else capture
    )
    return list(dict.fromkeys((str(site), int(layer)) for site, layer in pairs))


def _check_request(
    lm: LM, wanted: list[Key], positions: int | None, edits: Sequence[Edit], logits: Logits, prefix: Prefix | None
) -> None:
    if not isinstance(logits, Tensor) and logits not in (None, "all", "last"):
        raise UserError(f"logits={logits!r} is no choice; choices: all last None, or a tensor of columns [batch, n]")
    if logits is None and not wanted:
        raise UserError("nothing was asked of this pass: name sites to capture, or ask for logits")
    if positions is not None and positions < 1:
        raise UserError(f"positions={positions} must be at least 1 (None keeps all)")
    for site, layer in [*wanted, *((edit.site, edit.layer) for edit in edits)]:
        check_site(site, lm.dims)
        check_layer(layer, lm.dims)
        if prefix is not None and layer < prefix.layer:
            raise UserError(f"{site} layer {layer} lies before the prefix, which restarts at layer {prefix.layer}")
    if prefix is not None:
        check_layer(prefix.layer, lm.dims)


def _cached(cache: Cache, mask: Tensor, positions: int | None, logits: Logits, prefix: Prefix | None) -> int:
    """How many columns the cache holds."""
    done = int(cache.get_seq_length())
    if positions is not None or isinstance(logits, Tensor):
        raise UserError("with a cache a pass reads its new columns: positions= and columns of logits do not go with it")
    if prefix is not None and (done or prefix.layer):
        raise UserError("a cache begins with a whole pass: a prefix goes with an empty one, at layer 0")
    if done and not bool(mask[:, done:].any(1).all()):
        raise UserError(f"the cache holds {done} columns, and a row has no valid token after them")
    return done


def _check_rows(lm: LM, ids: Tensor, mask: Tensor, prefix: Prefix | None) -> None:
    if ids.dim() != 2 or ids.shape != mask.shape or ids.numel() == 0:
        raise UserError(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)} must both be [batch, pos] and not empty")
    if lm.dims.context is not None and ids.shape[1] > lm.dims.context:
        raise UserError(
            f"{ids.shape[1]} tokens are more than the {lm.dims.context} positions of {lm.name}; shorten the rows"
        )
    if not bool(mask.any(1).all()):
        raise UserError(f"row {int((~mask.bool().any(1)).nonzero()[0, 0])} of the batch holds no valid token")
    if prefix is not None:
        batch, *rest = prefix.resid.shape
        if batch not in (1, len(ids)) or rest != [ids.shape[1], lm.dims.width]:
            raise UserError(
                f"the prefix is {tuple(prefix.resid.shape)}, these rows need {(*ids.shape, lm.dims.width)}; "
                "make it from the same rows with make_prefix"
            )


def _check_ids(lm: LM, ids: Tensor) -> None:
    """On a GPU an id beyond the embedding would be an assertion of the device, after which nothing works."""
    if (highest := int(ids.max())) >= lm.dims.vocab:
        raise UserError(
            f"token id {highest} in these rows, but {lm.name} embeds only {lm.dims.vocab} ids (0-{lm.dims.vocab - 1}); "
            "its tokenizer is not the model's own"
        )
