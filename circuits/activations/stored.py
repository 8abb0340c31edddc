"""Training rows from stores on disk, with everything else that a stream of activations gives taken from the model.

What is trained on are the stores' rows, shuffled by :class:`circuits.activations.reservoir.Reservoir`; what is measured on are the
held-out sequences of the same token source, run through the model, exactly those that an SAE from the stream is measured on. A
store holds the first training sequences, so none of the held-out ones is in it, and the two kinds of training can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from circuits.activations.reservoir import Reservoir
from circuits.activations.store import ActivationStore
from circuits.activations.stream import Batch, Position, Stream
from circuits.data.tokens import TokenSource
from circuits.errors import UserError
from circuits.models.load import DTYPES, LM
from circuits.models.sites import site_width


class StoredStream(Stream):
    """Batches of `stores` (one a layer; with a `target` site a pair of them); held-out activations from the model.

    `contents` are the stores' content hashes: a position in one store is none in another. `ram_bytes` bounds each layer's
    shuffled rows. `model`: the id and revision that the stores have to be of, where `lm` does not know its own. The other
    arguments are those of :class:`Stream`.
    """

    def __init__(
        self,
        lm: LM,
        source: TokenSource,
        stores: Mapping[int, tuple[ActivationStore, ...]],
        contents: Mapping[int, str],
        *,
        ram_bytes: int,
        model: tuple[str, str | None] | None = None,
        batch_size: int,
        seed: int = 0,
        **given: Any,
    ) -> None:
        super().__init__(lm, source, batch_size=batch_size, seed=seed, **given)
        sites = (self.site,) if self.target is None else (self.site, self.target)
        for layer, found in stores.items():
            for store, site in zip(found, sites, strict=True):
                self._check(layer, store, site, model or (lm.name, None))
        if missing := set(self.layers) - set(stores):
            raise UserError(
                f"no store of layer {min(missing)}; there are stores of {' '.join(map(str, sorted(stores)))}"
            )
        self.reservoir = Reservoir(
            stores, batch_size=batch_size, ram_bytes=ram_bytes, seed=seed, device=lm.device, own=False
        )
        self.n_rows, self.contents = self.reservoir.n_rows, dict(contents)

    def _check(self, layer: int, store: ActivationStore, site: str, model: tuple[str, str | None]) -> None:
        """Refuse a store of something else than what the model gives at this site and layer."""
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.lm.dtype)
        wanted = {
            "site": site,
            "layer": layer,
            "width": site_width(self.lm.dims, site),
            "model_dtype": dtype,
            "skip_first": self.skip_first,
            "last_n": None,
        }
        if model[1] != store.facts.get("revision", model[1]) or model[1] is not None:
            wanted |= {"model": model[0], "revision": model[1]}  # a directory's name says nothing of its content
        for name, value in wanted.items():
            if name in store.facts and store.facts[name] != value:
                raise UserError(
                    f"{store.path}: {name} {store.facts[name]}, but {model[0]} is read with {name} {value}; "
                    "make the store anew with task=activations activations.source=data"
                )

    @property
    def facts(self) -> dict[str, Any]:
        """What the batches are a function of, beside the stores' content."""
        return self.reservoir.facts

    def facts_of(self, layer: int) -> dict[str, Any]:
        return {**self.facts, "content": self.contents[layer]}

    def passes(self, steps: int) -> float:
        """How often the store's rows were gone through in so many batches."""
        return steps * self.batch_size / self.n_rows

    def batches(self, start: Position | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        return self.reservoir.batches(start or Position(0, 0, 0), stopping)
