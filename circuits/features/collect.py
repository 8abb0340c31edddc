"""Top-activating examples and activation histograms of an SAE's features, in one pass over sequences, in bounded memory.

A feature's examples are its `top_k` largest activations, at most one a sequence, so that ten examples are ten contexts; a
sequence that was seen before gives none. Around each peak a window of activations is kept, of a row with a picture also the
activations at all of its picture's tokens. The state is features × top_k × (window + those) numbers, and 16 bytes a sequence: of
each chunk only candidates that enter the list have their window copied. Equal activations keep the order of the text, so the result
does not depend on how the text is cut (beyond a model's rounding).

Histograms count active tokens in half-octave bins of the activation, since activations span decades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.data.keeper import State
from circuits.errors import UserError
from circuits.sae.memory import FEATURES_AT_ONCE
from circuits.sae.modules import SAE
from circuits.transfer import sent, widest

LOWEST, PER_OCTAVE, BINS = -10, 2, 48
EDGES: NDArray[np.float64] = 2.0 ** (LOWEST + np.arange(BINS + 1) / PER_OCTAVE)
"""Bins of activations, from 1/1024 to 16,384; what lies outside counts in the first or the last."""


@dataclass(frozen=True)
class Collected:
    """What was found of each feature, in the order of `features`."""

    features: NDArray[np.int64]
    rows: int
    """Tokens looked at."""
    sequences: int
    repeated: int
    """Sequences seen before, which give no example."""
    n_active: NDArray[np.int64]
    """Tokens on which a feature was active."""
    n_sequences: NDArray[np.int64]
    """Sequences on which it was."""
    mean: NDArray[np.float64]
    """Mean activation where it was active; 0 where it never was."""
    maximum: NDArray[np.float64]
    histogram: NDArray[np.int64]
    """``[features, BINS]``: active tokens by activation, bins between EDGES."""
    values: NDArray[np.float32]
    """``[features, top_k]``: the largest activations, falling; 0 where there are fewer examples."""
    sequence: NDArray[np.int64]
    """Number of the sequence, as they were given; -1 where there is no example."""
    position: NDArray[np.int64]
    windows: NDArray[np.float32]
    """``[features, top_k, 2 × window + 1]``: activations around the peak, 0 outside of the sequence."""
    maps: NDArray[np.float32]
    """``[features, top_k, patches]``: activations at the tokens of the example's picture, row by row; no patches of text."""


class Collector:
    """Feed it sequences of activations with `add`, in order, then read `result`."""

    def __init__(self, sae: SAE, features: Int[Tensor, " f"], *, top_k: int, window: int) -> None:
        device = sae.W_enc.device
        if top_k < 1:
            raise UserError(f"top_k={top_k}: at least 1")
        outside = [int(i) for i in features.tolist() if not 0 <= i < sae.cfg.d_sae]
        if outside:
            raise UserError(f"feature {outside[0]}: the SAE has {sae.cfg.d_sae} features (0-{sae.cfg.d_sae - 1})")
        self.sae, self.features, self.top_k, self.window = sae, features.to(device), top_k, window
        f = len(features)
        self._rows = self._sequences = self._repeated = 0
        self._n_active = torch.zeros(f, dtype=torch.int64, device=device)
        self._n_sequences = torch.zeros_like(self._n_active)
        self._total = torch.zeros(f, dtype=widest(device), device=device)
        self._maximum = torch.zeros(f, device=device)
        self._histogram = torch.zeros(f * BINS, dtype=torch.int64, device=device)
        self._values = torch.zeros(f, top_k, device=device)
        self._sequence = torch.full((f, top_k), -1, dtype=torch.int64, device=device)
        self._position = torch.zeros(f, top_k, dtype=torch.int64, device=device)
        self._windows = torch.zeros(f, top_k, 2 * window + 1, device=device)
        self._maps = torch.zeros(f, top_k, 0, device=device)  # as wide as a picture, once one comes

    @torch.no_grad()
    def add(
        self,
        x: Float[Tensor, "n pos d"],
        keep: Bool[Tensor, "n pos"],
        fresh: Bool[Tensor, " n"],
        shown: Bool[Tensor, "n pos"] | None = None,
    ) -> None:
        """Whole sequences; only positions where `keep` is True count, only `fresh` sequences give examples.

        `shown`: the tokens that stand for a row's picture, as many in every row.

        Raises:
            UserError: rows have another number of them.
        """
        if shown is not None:
            self._maps = _as_wide(self._maps, shown)
        at_once = max(1, FEATURES_AT_ONCE // (x.shape[1] * self.sae.cfg.d_sae))
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            active = feature_activations(self.sae, self.features, x[part], keep[part])
            self._count(active, keep[part])
            where = None if shown is None else sent(shown[part], active.device)
            self._examples(active, sent(fresh[part], active.device), where)
            self._sequences += len(active)
        self._repeated += int((~fresh).sum())

    def _count(self, active: Float[Tensor, "n pos f"], keep: Bool[Tensor, "n pos"]) -> None:
        on = active > 0
        self._rows += int(keep.sum())
        self._n_active += on.sum((0, 1))
        self._n_sequences += on.any(1).sum(0)
        self._total += active.sum((0, 1), dtype=self._total.dtype)
        self._maximum = torch.maximum(self._maximum, active.amax((0, 1)))
        _, _, feature = on.nonzero(as_tuple=True)
        bins = ((active[on].log2() - LOWEST) * PER_OCTAVE).floor().clamp(0, BINS - 1).long()
        self._histogram += torch.bincount(feature * BINS + bins, minlength=len(self._histogram))

    def _examples(
        self, active: Float[Tensor, "n pos f"], fresh: Bool[Tensor, " n"], shown: Bool[Tensor, "n pos"] | None
    ) -> None:
        """Merge each feature's best sequences of this chunk into its list."""
        best, peak = active.max(dim=1)
        best = torch.where(fresh[:, None], best, 0.0)
        values, local = best.T.sort(dim=1, descending=True, stable=True)
        values, local = values[:, : self.top_k], local[:, : self.top_k]
        # What is in the list came earlier in the text: it stands first, and a stable sort keeps it before its equals.
        both, order = torch.cat([self._values, values], 1).sort(dim=1, descending=True, stable=True)
        both, order = both[:, : self.top_k], order[:, : self.top_k]
        feature, rank = ((order >= self.top_k) & (both > 0)).nonzero(as_tuple=True)
        if not len(feature):
            return
        kept = order.clamp(max=self.top_k - 1)
        sequence, position = self._sequence.gather(1, kept), self._position.gather(1, kept)
        windows = self._windows.gather(1, kept[..., None].expand_as(self._windows))
        chosen = local[feature, order[feature, rank] - self.top_k]
        at = peak[chosen, feature]
        sequence[feature, rank] = self._sequences + chosen
        position[feature, rank] = at
        windows[feature, rank] = self._around(active, chosen, at, feature)
        if shown is not None:
            maps = self._maps.gather(1, kept[..., None].expand_as(self._maps))
            places = shown.nonzero()[:, 1].view(len(shown), -1)[chosen]  # [m, patches], in the order of the sequence
            maps[feature, rank] = active[chosen[:, None], places, feature[:, None]]
            self._maps = maps
        self._values, self._sequence, self._position, self._windows = both, sequence, position, windows

    def _around(self, active: Tensor, chosen: Tensor, at: Tensor, feature: Tensor) -> Float[Tensor, "m window"]:
        offsets = torch.arange(-self.window, self.window + 1, device=active.device)
        places = at[:, None] + offsets
        inside = (places >= 0) & (places < active.shape[1])
        found = active[chosen[:, None], places.clamp(0, active.shape[1] - 1), feature[:, None]]
        return torch.where(inside, found, 0.0)

    _KEPT = (
        "n_active",
        "n_sequences",
        "total",
        "maximum",
        "histogram",
        "values",
        "sequence",
        "position",
        "windows",
        "maps",
    )
    _COUNTS = ("rows", "sequences", "repeated")

    def state(self) -> State:
        """What :meth:`load` takes: all that was found so far."""
        tensors = {name: getattr(self, f"_{name}").cpu() for name in self._KEPT}
        return tensors, {name: getattr(self, f"_{name}") for name in self._COUNTS}

    def load(self, tensors: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        for name in tensors:
            setattr(self, f"_{name}", tensors[name].to(self.features.device))
        for name in self._COUNTS:
            setattr(self, f"_{name}", int(counts[name]))

    def result(self) -> Collected:
        """Everything on the CPU."""
        mean = self._total / self._n_active.clamp(min=1)
        return Collected(
            features=self.features.cpu().numpy(),
            rows=self._rows,
            sequences=self._sequences,
            repeated=self._repeated,
            n_active=self._n_active.cpu().numpy(),
            n_sequences=self._n_sequences.cpu().numpy(),
            mean=mean.cpu().double().numpy(),
            maximum=self._maximum.cpu().double().numpy(),
            histogram=self._histogram.view(-1, BINS).cpu().numpy(),
            values=self._values.cpu().numpy(),
            sequence=self._sequence.cpu().numpy(),
            position=self._position.cpu().numpy(),
            windows=self._windows.cpu().numpy(),
            maps=self._maps.cpu().numpy(),
        )


def feature_activations(
    sae: SAE, features: Int[Tensor, " f"], x: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]
) -> Float[Tensor, "n pos f"]:
    """Activations of some features; 0 at positions that do not count. Of a transcoder's rows [x | y], x is read."""
    keep = sent(keep, sae.W_enc.device)[..., None]
    # `where`, not a product: what stands at a padded position may be NaN.
    x = torch.where(keep, x.to(sae.W_enc.device, torch.float32)[..., : sae.cfg.d_in], 0.0)
    return torch.where(keep, sae.encode(x)[..., features], 0.0)


def _as_wide(maps: Float[Tensor, "f k patches"], shown: Bool[Tensor, "n pos"]) -> Float[Tensor, "f k patches"]:
    """`maps`, as wide as a picture of these rows; the first that come decide."""
    counts = shown.sum(1).unique().tolist()
    width = maps.shape[2] or max(counts, default=0)
    if wrong := [count for count in counts if count != width]:
        raise UserError(f"a row has {wrong[0]} picture tokens, others have {width}: every row needs as many")
    return maps if maps.shape[2] else maps.new_zeros(*maps.shape[:2], width)


class Fresh:
    """Tells sequences that were not seen before, by a digest of their tokens (and picture): 16 bytes a sequence are kept."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(
        self, ids: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"], beside: Sequence[int] | None = None
    ) -> Bool[Tensor, " n"]:
        """For each sequence whether it is the first of its kind; `beside`: the picture of each."""
        found = []
        for i, (row, valid) in enumerate(zip(ids.cpu(), mask.cpu(), strict=True)):
            digest = blake2b(row[valid].long().numpy().tobytes(), digest_size=16)
            if beside is not None:
                digest.update(f"picture {beside[i]}".encode())
            found.append(digest.digest() not in self._seen)
            self._seen.add(digest.digest())
        return torch.tensor(found, dtype=torch.bool)
