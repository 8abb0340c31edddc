"""A corpus as fixed-length token sequences on disk: tokenise once, then read any sequence by number.

Documents are joined in order, each followed by a separator token, and the stream is cut into contexts that begin with
the tokenizer's beginning-of-text token where it has one (the packing of GPT pre-training, and what SAELens calls
concatenated batches). What does not fill the last context is dropped and counted.

Held-out text is split off by document, never by context, by a seeded hash of the document's *text*: two copies of a
document are always on the same side, whatever their order. The first two different documents are put on different
sides, so that neither side is empty.

On disk, in the given directory: ``train.npy`` and ``heldout.npy`` (int32 ``[contexts, context]``), beside each the
number of the document every context begins in (``*_documents.npy``), and ``tokens.json`` with the facts, written last.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.data.keeper import Keeper, State
from circuits.data.npy import GrowingNpy, open_npy
from circuits.data.seeds import derive_seed
from circuits.errors import Damaged, UserError
from circuits.files import read_json, write_json
from circuits.model_input import ModelInput

SIDES = ("train", "heldout")
FILES = (*(f"{side}{name}.npy" for side in SIDES for name in ("", "_documents")), "tokens.json")
"""What :func:`tokenise` writes."""
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 2_000_000
"""A batch for the tokenizer ends at whichever comes first, so that long documents do not fill the memory."""

Progress = Callable[[int, int], None]
"""Called with (documents, tokens) done so far."""


class Split:
    """Which side a document belongs to."""

    def __init__(self, fraction: float, seed: int) -> None:
        if not 0 < fraction < 1:
            raise UserError(f"held-out fraction {fraction} is not between 0 and 1")
        self.fraction, self.salt = fraction, derive_seed(seed, "heldout").to_bytes(8, "big")
        self.fixed: dict[bytes, bool] = {}

    def heldout(self, text: str) -> bool:
        """True for the held-out side; depends on the text, the seed and the corpus's first two different documents."""
        digest = hashlib.sha256(self.salt + text.encode()).digest()
        if len(self.fixed) < 2 and digest not in self.fixed:
            first = next(iter(self.fixed.values()), None)
            self.fixed[digest] = self._by_hash(digest) if first is None else not first
        return self.fixed.get(digest, self._by_hash(digest))

    def _by_hash(self, digest: bytes) -> bool:
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64


class Cutter:
    """Collects the tokens of one side and writes every full context. Its files get their names when they are complete."""

    def __init__(self, out: Path, side: str, context: int, bos: int | None, kept: State | None = None) -> None:
        """`kept`: a :meth:`state` to go on from; the files are cut back to what they held then.

        Raises:
            Damaged: they hold less.
        """
        self.context, self.bos = context, bos
        self.body = context - (bos is not None)
        self.tokens, self.documents, self.seen, rows = np.empty(0, np.int32), np.empty(0, np.int64), 0, 0
        if kept is not None:
            self.tokens, self.documents = (kept[0][name].numpy() for name in ("tokens", "documents"))
            self.seen, rows = kept[1]["seen"], kept[1]["rows"]
        self.contexts = GrowingNpy(out / f".{side}.npy.part", np.dtype(np.int32), (context,), rows)
        self.first = GrowingNpy(out / f".{side}_documents.npy.part", np.dtype(np.int64), (), rows)

    def add(self, tokens: NDArray[np.int32], documents: NDArray[np.int64]) -> None:
        """Take more tokens, each with the number of its document."""
        self.seen += len(tokens)
        tokens, documents = np.concatenate([self.tokens, tokens]), np.concatenate([self.documents, documents])
        full = len(tokens) // self.body
        rows = tokens[: full * self.body].reshape(full, self.body)
        if self.bos is not None:
            rows = np.concatenate([np.full((full, 1), self.bos, np.int32), rows], axis=1)
        self.contexts.append(rows)
        self.first.append(documents[: full * self.body : self.body])
        self.tokens, self.documents = tokens[full * self.body :], documents[full * self.body :]

    def state(self) -> State:
        """What another one goes on from; what was written until now is then on the disk."""
        for file in (self.contexts, self.first):
            file.sync()
        tensors = {"tokens": torch.from_numpy(self.tokens), "documents": torch.from_numpy(self.documents)}
        return tensors, {"rows": self.contexts.rows, "seen": self.seen}

    def close(self, publish: bool | None) -> None:
        """Finish the files; False: drop them; None: leave them to whoever goes on."""
        for file in (self.contexts, self.first):
            if publish:
                file.finish()
                file.path.replace(file.path.with_name(file.path.name.removeprefix(".").removesuffix(".part")))
            else:
                file.close()
            if publish is False:
                file.path.unlink(missing_ok=True)


def tokenise(
    documents: Iterable[str],
    tokenizer: Any,
    out: Path,
    *,
    context: int,
    heldout_fraction: float = 0.05,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    vocabulary: int | None = None,
    keeper: Keeper[str] | None = None,
) -> dict[str, Any]:
    """Write `documents` as contexts into the directory `out` and return the facts; stop at `max_tokens`.

    `vocabulary` is how many ids the model embeds; a higher one is refused. Memory is bounded by one batch of documents.
    Files appear under their names only when all are complete. `keeper`: where the place ("tokens") is kept, it may end the pass;
    called again with the same documents, it then goes on.
    """
    if context < 2:
        raise UserError(f"data.context={context} is too short; at least 2")
    bos, separator = tokenizer.bos_token_id, tokenizer.eos_token_id
    separator = bos if separator is None else separator
    given = {"context": context, "heldout": heldout_fraction, "seed": seed, "bos": bos, "separator": separator}
    keeper = keeper or Keeper()
    kept = keeper.begin({"tokens": {**given, "max_tokens": max_tokens, "vocabulary": vocabulary}}).get("tokens")
    documents, cut = iter(documents), False
    try:
        work = _Work(out, Split(heldout_fraction, seed), context, bos, kept)
    except Damaged:  # the files do not hold what the place says: from the beginning
        keeper.forget("tokens")
        work = _Work(out, Split(heldout_fraction, seed), context, bos, None)
    complete: bool | None = None if keeper.paths else False
    try:
        for texts in _batches(_after(documents, work.count, keeper)):
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
            used = _within(encoded, separator, None if max_tokens is None else max_tokens - work.total)
            work.add(texts, used, bos, vocabulary)
            if progress is not None:
                progress(work.count, work.total)
            if max_tokens is not None and work.total >= max_tokens:
                cut = len(used) < len(texts) or next(documents, None) is not None
                break
            keeper.step(work.count, work.count, lambda _: work.state())
        _require_contexts(work.cutters, context, work.count)
        complete = True
    finally:
        for cutter in work.cutters.values():
            cutter.close(complete)
    facts = _facts(work.cutters, work.count, work.total, bos, separator)
    facts |= {"heldout_fraction": heldout_fraction, "seed": seed, "cut": cut}
    write_json(out / "tokens.json", facts)
    return facts


class _Work:
    """How far a corpus is tokenised: both sides' files, documents and tokens so far."""

    def __init__(self, out: Path, split: Split, context: int, bos: int | None, kept: State | None) -> None:
        (out / "tokens.json").unlink(missing_ok=True)
        self.split, self.count, self.total = split, 0, 0
        sides: dict[str, State | None] = dict.fromkeys(SIDES)
        if kept is not None:
            tensors, meta = kept
            self.count, self.total = meta["count"], meta["total"]
            split.fixed = {bytes.fromhex(digest): side for digest, side in meta["fixed"].items()}
            for side in SIDES:
                mine = {name: tensors[f"{side}.{name}"] for name in ("tokens", "documents")}
                sides[side] = (mine, meta["sides"][side])
        self.cutters = {side: Cutter(out, side, context, bos, sides[side]) for side in SIDES}

    def add(self, texts: list[str], used: list[list[int]], bos: int | None, vocabulary: int | None) -> None:
        """The documents of one batch that are used, in order."""
        held = [self.split.heldout(text) for text in texts[: len(used)]]
        for side, cutter in self.cutters.items():
            mine = [(self.count + i, ids) for i, ids in enumerate(used) if held[i] == (side == "heldout")]
            tokens, numbers = _joined(mine)
            _check_vocabulary(tokens, numbers, bos, vocabulary)
            cutter.add(tokens, numbers)
        self.count, self.total = self.count + len(used), self.total + sum(len(ids) for ids in used)

    def state(self) -> State:
        """For a keeper."""
        states = {side: cutter.state() for side, cutter in self.cutters.items()}
        tensors = {f"{side}.{name}": value for side, (found, _) in states.items() for name, value in found.items()}
        fixed = {digest.hex(): side for digest, side in self.split.fixed.items()}
        sides = {side: facts for side, (_, facts) in states.items()}
        return tensors, {"count": self.count, "total": self.total, "fixed": fixed, "sides": sides}


def finished(out: Path) -> dict[str, Any] | None:
    """The facts of a directory that :func:`tokenise` has filled; None where it has not come to its end."""
    try:
        return TextStore(out).facts
    except Damaged:
        return None


class TextStore:
    """A `TokenSource` over the files that `tokenise` wrote, memory-mapped.

    The training stream is endless: epoch after epoch, each in a seeded order of its own, so that any block is known by
    its number. Samples 0 … n_train - 1 are training contexts, those from n_train on are held-out ones.
    """

    def __init__(self, directory: Path, *, seed: int = 0, name: str | None = None) -> None:
        self.facts = _read_facts(directory)
        self.name = name or directory.name
        self.seed = seed
        shapes = {side: (self.facts[f"n_contexts_{side}"], self.facts["context"]) for side in SIDES}
        self._train = open_npy(directory / "train.npy", shapes["train"])
        self._heldout = open_npy(directory / "heldout.npy", shapes["heldout"])
        self._documents = {side: open_npy(directory / f"{side}_documents.npy", shapes[side][:1]) for side in SIDES}
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __repr__(self) -> str:
        sides = f"{len(self._train):,} training and {len(self._heldout):,} held-out contexts"
        return f"TextStore({self.name}: {sides} of {self.context} tokens)"

    @property
    def context(self) -> int:
        return int(self.facts["context"])

    def block(self, index: int, n: int) -> ModelInput:
        """Sequences ``index * n … index * n + n - 1`` of the endless stream; all of full length."""
        numbers = np.arange(index * n, (index + 1) * n)
        epochs, places = np.divmod(numbers, len(self._train))
        rows = np.concatenate([self._order(int(e))[places[epochs == e]] for e in np.unique(epochs)])
        return self._tokens(self._train, rows, 0)

    def heldout(self, n: int) -> ModelInput:
        """The first `n` held-out contexts in a seeded order (fewer when there are no more)."""
        order = self._permutation(len(self._heldout), "heldout-order")
        return self._tokens(self._heldout, order[:n], len(self._train))

    def summary(self, limit: int | None = None) -> str:
        """What of the corpus is in it, in words; `limit` is how many tokens were to be read at most."""
        facts = self.facts
        cut = facts.get("cut", limit is not None and facts["n_tokens"] >= limit)
        end = f"cut at {limit:,} tokens, more text follows" if cut else "all of it"
        return (
            f"{facts['n_documents']:,} documents, {facts['n_tokens']:,} tokens ({end}); {facts['n_contexts_train']:,} training and "
            f"{facts['n_contexts_heldout']:,} held-out sequences of {self.context}"
        )

    def passes(self, index: int, n: int) -> float:
        """How often the training contexts were gone through before this block."""
        return index * n / len(self._train)

    def describe(self, sample: int) -> str:
        """Where a sample stands, for messages and feature examples."""
        side, row = ("train", sample) if sample < len(self._train) else ("heldout", sample - len(self._train))
        return f"{side} context {row}, which begins in document {int(self._documents[side][row])}"

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            kept = {epoch - 1: self._orders[epoch - 1]} if epoch - 1 in self._orders else {}
            self._orders = kept | {epoch: self._permutation(len(self._train), "epoch", epoch)}
        return self._orders[epoch]

    def _permutation(self, n: int, *purpose: str | int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64(derive_seed(self.seed, *purpose))).permutation(n)

    @staticmethod
    def _tokens(store: NDArray[Any], rows: NDArray[np.int64], first_sample: int) -> ModelInput:
        order = np.argsort(rows, kind="stable")  # read the disk forwards, whatever the order wanted
        ids = np.empty((len(rows), store.shape[1]), np.int64)
        ids[order] = store[rows[order]]
        mask = torch.ones(ids.shape, dtype=torch.bool)
        return ModelInput(torch.from_numpy(ids), mask, torch.from_numpy(rows + first_sample))


def _after(documents: Iterable[str], count: int, keeper: Keeper[str]) -> Iterator[str]:
    """The documents from number `count` on."""
    for number, text in enumerate(documents):
        if number >= count:
            yield text
        elif number % _BATCH_DOCUMENTS == 0:
            keeper.ask()


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _within(encoded: list[list[int]], separator: int | None, limit: int | None) -> list[list[int]]:
    """Documents with their separator, as many as reach `limit` tokens; the last one whole."""
    ended = encoded if separator is None else [[*ids, separator] for ids in encoded]
    if limit is None:
        return ended
    reached = itertools.accumulate(len(ids) for ids in ended)
    return ended[: 1 + sum(1 for tokens in reached if tokens < limit)]


def _joined(documents: list[tuple[int, list[int]]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    tokens = np.fromiter(itertools.chain.from_iterable(ids for _, ids in documents), np.int32)
    numbers = np.array([number for number, _ in documents], np.int64)
    return tokens, np.repeat(numbers, [len(ids) for _, ids in documents])


def _check_vocabulary(
    tokens: NDArray[np.int32], numbers: NDArray[np.int64], bos: int | None, vocabulary: int | None
) -> None:
    if vocabulary is None or not len(tokens) or max(int(tokens.max()), bos or 0) < vocabulary:
        return
    beyond = np.flatnonzero(tokens >= vocabulary)
    where = f"document {numbers[beyond[0]]} has token id {tokens[beyond[0]]}" if len(beyond) else f"BOS is id {bos}"
    raise UserError(
        f"{where}, but the model embeds only {vocabulary} ids (0-{vocabulary - 1}); its tokenizer is not the model's own"
    )


def _require_contexts(cutters: dict[str, Cutter], context: int, count: int) -> None:
    for side, cutter in cutters.items():
        if cutter.contexts.rows == 0:
            what = "training" if side == "train" else "held-out"
            raise UserError(
                f"{what} text has {cutter.seen} tokens (of {count} documents), fewer than one context of {context}; "
                "lower data.context or give more text"
            )


def _facts(
    cutters: dict[str, Cutter], count: int, total: int, bos: int | None, separator: int | None
) -> dict[str, Any]:
    train, heldout = cutters["train"], cutters["heldout"]
    return {
        "n_documents": count,
        "n_tokens": total,
        "n_tokens_train": train.seen,
        "n_tokens_heldout": heldout.seen,
        "n_contexts_train": train.contexts.rows,
        "n_contexts_heldout": heldout.contexts.rows,
        "dropped_tokens": len(train.tokens) + len(heldout.tokens),
        "context": train.context,
        "bos": bos,
        "separator": separator,
    }


def _read_facts(directory: Path) -> dict[str, Any]:
    path = directory / "tokens.json"
    try:
        facts = read_json(path)
        return {**facts, "context": int(facts["context"])}
    except FileNotFoundError as e:
        raise Damaged(f"{path}: missing, so the tokens beside it are not complete") from e
    except (ValueError, KeyError, TypeError) as e:
        raise Damaged(f"{path}: damaged ({e})") from e
