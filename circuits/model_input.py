"""What goes into a model: one record for text and for images, for forward passes, scoring, capture and training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.errors import UserError
from circuits.transfer import pinned, sent


class Later:
    """A tensor with a row for each row of an input, made when a model is run: the pixels of pictures, of which few fit into memory.

    Args:
        make: the rows of these numbers, stacked.
        which: the number of each row.
    """

    def __init__(self, make: Callable[[Sequence[int]], Tensor], which: Sequence[int]) -> None:
        self._make, self.which = make, tuple(which)

    def __len__(self) -> int:
        return len(self.which)

    def __repr__(self) -> str:
        return f"Later({len(self)} rows)"

    def take(self, index: slice | Tensor) -> Later:
        """Some of the rows."""
        return Later(self._make, self.which[index] if isinstance(index, slice) else [self.which[int(i)] for i in index])

    def make(self) -> Tensor:
        """All rows."""
        return self._make(self.which)

    def beside(self, others: Sequence[Tensor | Later]) -> Later:
        """These rows and those of others with the same source, in order.

        Raises:
            UserError: another source.
        """
        parts = [self, *(other for other in others if isinstance(other, Later) and other._make == self._make)]
        if len(parts) <= len(others):
            raise UserError("pictures of different sets cannot be put together")
        return Later(self._make, [number for part in parts for number in part.which])


def position_ids(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """0, 1, 2 … over each row's valid tokens. GPT-2's learned positions are wrong under left padding without them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def made(tensor: Tensor | Later) -> Tensor:
    """The tensor itself."""
    return tensor.make() if isinstance(tensor, Later) else tensor


@dataclass(frozen=True)
class ModelInput:
    """Padded rows of token ids, and what else the model takes for them.

    Raises:
        UserError: shapes that do not belong together.
    """

    ids: Int[Tensor, "batch pos"]
    """Token ids, int64; whatever stands where `mask` is False is never read."""
    mask: Bool[Tensor, "batch pos"]
    """True at valid tokens, which stand together; padding is on either side."""
    samples: Int[Tensor, " batch"] = None  # type: ignore[assignment]
    """The number of each row in its source, so that an error or a feature's example can say where it came from; 0, 1, 2 … where
    none is given."""
    extra: Mapping[str, Tensor | Later] = field(default_factory=dict)
    """Further tensors under the names that the model's forward takes, a row (an image) for each row here: ``pixel_values``
    [batch, channels, height, width], ``token_type_ids`` [batch, pos] …"""
    shown: Bool[Tensor, "batch pos"] | None = None
    """True at the tokens that stand for an image; None where the rows are text alone. The model does not get it."""
    asked: Bool[Tensor, "batch pos"] | None = None
    """True at the tokens of a question to which the rest is the answer; None where all text is to be predicted."""

    def __post_init__(self) -> None:
        if self.samples is None:
            object.__setattr__(self, "samples", torch.arange(len(self.ids)))
        if self.ids.shape != self.mask.shape or self.samples.shape != self.ids.shape[:1] or self.ids.ndim != 2:
            shapes = f"ids {tuple(self.ids.shape)}, mask {tuple(self.mask.shape)}, samples {tuple(self.samples.shape)}"
            raise UserError(f"a model's input needs ids and mask [batch, pos] and samples [batch], got {shapes}")
        if wrong := [name for name, tensor in self.extra.items() if len(tensor) != len(self.ids)]:
            raise UserError(
                f"{wrong[0]} {tuple(getattr(self.extra[wrong[0]], 'shape', [len(self.extra[wrong[0]])]))}: a row for each of "
                f"{len(self.ids)} is needed"
            )
        for name, found in (("shown", self.shown), ("asked", self.asked)):
            if found is not None and found.shape != self.ids.shape:
                raise UserError(f"{name} {tuple(found.shape)}: as ids, {tuple(self.ids.shape)}")

    @property
    def beside(self) -> tuple[int, ...] | None:
        """The number of what stands beside each row's tokens and is made when a pass needs it (its picture); None of text alone."""
        return next((one.which for one in self.extra.values() if isinstance(one, Later)), None)

    @property
    def predicted(self) -> Bool[Tensor, "batch pos"]:
        """Valid tokens that a language model is asked to predict: those of text, without a question's."""
        found = self.mask if self.shown is None else self.mask & ~self.shown
        return found if self.asked is None else found & ~self.asked

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Valid tokens of each row."""
        return self.mask.sum(dim=1)

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position ids: 0, 1, 2 … over each row's valid tokens."""
        return position_ids(self.mask)

    def after(self, n: int) -> Bool[Tensor, "batch pos"]:
        """Valid tokens but the first `n` of each row."""
        return self.mask & (self.positions >= n)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Column of each row's last valid token."""
        return torch.where(self.mask, torch.arange(self.mask.shape[1], device=self.mask.device), -1).amax(dim=1)

    def take(self, index: slice | Int[Tensor, " m"]) -> ModelInput:
        """The rows `index` (a slice or row numbers), without columns that are padding in all of them (one stays)."""
        mask = self.mask[index]
        used = mask.any(0).nonzero()[:, 0] if mask.numel() else torch.zeros(0)
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1 if len(mask) else None)
        whole = self.ids.shape[1]
        extra: dict[str, Tensor | Later] = {}
        for name, tensor in self.extra.items():
            if isinstance(tensor, Later):
                extra[name] = tensor.take(index)
            else:
                along = tensor.ndim > 1 and tensor.shape[1] == whole
                extra[name] = tensor[index][:, columns] if along else tensor[index]
        shown, asked = (None if one is None else one[index][:, columns] for one in (self.shown, self.asked))
        return ModelInput(self.ids[index][:, columns], mask[:, columns], self.samples[index], extra, shown, asked)

    def to(self, device: torch.device) -> ModelInput:
        """The same on `device`, without waiting where that can be."""
        ids, mask, samples = (sent(tensor, device) for tensor in (self.ids, self.mask, self.samples))
        shown, asked = (None if one is None else sent(one, device) for one in (self.shown, self.asked))
        extra = {name: sent(made(tensor), device) for name, tensor in self.extra.items()}
        return ModelInput(ids, mask, samples, extra, shown, asked)

    def pinned(self, device: torch.device) -> ModelInput:
        """The same, in memory that `device` copies from without the host."""
        extra = {name: t if isinstance(t, Later) else pinned(t, device) for name, t in self.extra.items()}
        shown, asked = (None if one is None else pinned(one, device) for one in (self.shown, self.asked))
        return ModelInput(pinned(self.ids, device), pinned(self.mask, device), self.samples, extra, shown, asked)


def padded(
    sequences: Sequence[Sequence[int]], samples: Iterable[int] | None = None, pad: int = 0, side: str = "right"
) -> ModelInput:
    """Sequences of different lengths as rows, padded on the right (or the left) to the longest."""
    width = max((len(row) for row in sequences), default=0)
    ids = torch.full((len(sequences), width), pad, dtype=torch.int64)
    for i, row in enumerate(sequences):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in sequences], dtype=torch.int64)[:, None]
    place = torch.arange(width)
    mask = place < lengths if side == "right" else place >= width - lengths
    numbers = range(len(sequences)) if samples is None else samples
    return ModelInput(ids, mask, torch.tensor(list(numbers), dtype=torch.int64))


def joined(parts: Sequence[ModelInput]) -> ModelInput:
    """Rows of several inputs (padded on the right) as one, in main memory; with images: all of them.

    Raises:
        UserError: some have what others lack.
    """
    width = max(part.ids.shape[1] for part in parts)
    names = set(parts[0].extra)
    kinds = {(part.shown is None, part.asked is None) for part in parts}
    if len(kinds) > 1 or any(set(part.extra) != names for part in parts):
        raise UserError("rows of text alone and rows with images cannot be put together")

    def wide(tensor: Tensor, own: int) -> Tensor:
        along = tensor.ndim > 1 and tensor.shape[1] == own  # a number for each token
        return torch.nn.functional.pad(tensor.cpu(), (0, width - own)) if along else tensor.cpu()

    def put(which: Sequence[Tensor]) -> Tensor:
        return torch.cat([wide(tensor, part.ids.shape[1]) for part, tensor in zip(parts, which, strict=True)])

    ids, mask = put([part.ids for part in parts]), put([part.mask for part in parts])
    extra: dict[str, Tensor | Later] = {}
    for name, first in parts[0].extra.items():
        each = [part.extra[name] for part in parts]
        extra[name] = first.beside(each[1:]) if isinstance(first, Later) else put([made(one) for one in each])
    shown = [part.shown for part in parts if part.shown is not None]
    asked = [part.asked for part in parts if part.asked is not None]
    samples = torch.cat([part.samples.cpu() for part in parts])
    return ModelInput(ids, mask, samples, extra, put(shown) if shown else None, put(asked) if asked else None)
