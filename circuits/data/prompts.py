"""Prompt sets: what a behaviour was studied on, as records and as token ids, read from a ``prompts`` artifact.

The artifact's directory holds ``prompts.jsonl`` (one record a line), ``tokens.parquet`` (the token ids of prompt, corrupt
prompt, target and foil, so that nobody tokenises again), ``meta.json`` (how they were tokenised), ``lint.json`` and
``metrics.json``::

    prompts = read(path)                                   # a PromptSet, in the artifact's order
    for batch in prompts.only(split="test").batches(32):   # longest first; rows padded, with mask and positions
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits
        last = logits[torch.arange(len(batch)), batch.last]
        names = batch.samples                              # the id of each row's prompt

Padding is ours (any id stands there; the mask says so), so that a tokenizer needs no pad token and no result depends on
its padding side. Reading loads no torch; :meth:`PromptSet.batches` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuits.errors import Damaged, UserError, suggest
from circuits.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

    from circuits.model_input import ModelInput

PROMPTS, TOKENS, META = "prompts.jsonl", "tokens.parquet", "meta.json"
TEXT = ("id", "prompt", "corrupt", "target", "foil", "behaviour", "split", "group", "factors")
IDS = ("ids", "corrupt_ids", "target_ids", "foil_ids")
Which = Literal["prompt", "corrupt"]
Side = Literal["right", "left"]


@dataclass(frozen=True)
class Prompt:
    """One prompt pair with its answers; `prompt` is the clean one."""

    id: str
    prompt: str
    corrupt: str | None
    """The same prompt with the deciding thing exchanged, for which `foil` is right; None where a file gives none."""
    target: str
    foil: str
    behaviour: str
    split: str
    """``train`` or ``test``; no group and no clean prompt is in both."""
    group: str
    factors: Mapping[str, str]
    ids: tuple[int, ...]
    """Token ids of the whole input up to the answer: with the BOS token and the chat template where they are used."""
    corrupt_ids: tuple[int, ...] | None
    target_ids: tuple[int, ...]
    """Token ids of the answer alone; ``ids + target_ids`` is how prompt and answer tokenise together."""
    foil_ids: tuple[int, ...]

    def text(self) -> dict[str, Any]:
        """The record without its token ids."""
        return {name: value for name, value in asdict(self).items() if name in TEXT}


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order, and how they were tokenised (`meta`: ``bos``, ``chat``, ``vocabulary``, ``tokenizer`` …)."""

    prompts: tuple[Prompt, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"PromptSet({len(self)} prompts{f', the first {self.prompts[0].prompt[:60]!r}' if self.prompts else ''})"

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    @property
    def samples(self) -> list[str]:
        """The prompts' ids."""
        return [p.id for p in self.prompts]

    @property
    def splits(self) -> list[str]:
        """The split of each prompt."""
        return [p.split for p in self.prompts]

    @property
    def groups(self) -> list[str]:
        """The group of each prompt: the unit that a split keeps together and a bootstrap draws."""
        return [p.group for p in self.prompts]

    def only(self, split: str | None = None, samples: Iterable[str] | None = None) -> PromptSet:
        """The prompts of a split, or those with the ids `samples` (in the set's own order).

        Raises:
            UserError: there is no such split or id.
        """
        kept = self.prompts
        if split is not None:
            if split not in self.splits:
                raise UserError(f"split={split}: no prompt is in it" + suggest(split, set(self.splits), "splits"))
            kept = tuple(p for p in kept if p.split == split)
        if samples is not None:
            wanted = set(samples)
            if unknown := wanted - set(self.samples):
                raise UserError(
                    f"{sorted(unknown)[0]}: no such prompt" + suggest(sorted(unknown)[0], self.samples[:10])
                )
            kept = tuple(p for p in kept if p.id in wanted)
        return PromptSet(kept, self.meta)

    def sequences(self, which: Which = "prompt") -> list[tuple[int, ...]]:
        """The token ids of every prompt, or of every corrupt one.

        Raises:
            UserError: a prompt has no corrupt one.
        """
        if which == "prompt":
            return [p.ids for p in self.prompts]
        found = []
        for p in self.prompts:
            if p.corrupt_ids is None:
                raise UserError(f"prompt {p.id} has no corrupt prompt; give one in the file's field 'corrupt'")
            found.append(p.corrupt_ids)
        return found

    def check_vocabulary(self, size: int, model: str) -> None:
        """Refuse token ids that a model does not embed (a tokenizer that is not its own).

        Raises:
            UserError: an id is not below `size`.
        """
        for p in self.prompts:
            highest = max([*p.ids, *(p.corrupt_ids or ()), *p.target_ids, *p.foil_ids])
            if highest >= size:
                raise UserError(
                    f"prompt {p.id} has token id {highest}, but {model} embeds only {size} ids (0-{size - 1}); "
                    "its tokenizer is not the model's own"
                )

    def check_lengths(self, context: int | None, model: str) -> None:
        """Refuse a prompt that is longer than a model's context.

        Raises:
            UserError: naming the first one.
        """
        for p in self.prompts:
            if context is not None and len(p.ids) > context:
                raise UserError(f"prompt {p.id}: {len(p.ids)} tokens are more than the {context} positions of {model}")

    def batches(
        self, size: int, which: Which = "prompt", side: Side = "right", by_length: bool = True
    ) -> Iterator[ModelInput]:
        """All prompts (or corrupt ones) in batches of at most `size`; `by_length` puts the longest first."""
        return batches(self.sequences(which), size, side=side, by_length=by_length)

    def table(self) -> pd.DataFrame:
        """One row a prompt: sample, behaviour, split, group, tokens, and a column ``factor.<name>`` for each factor."""
        import pandas as pd

        rows = [
            {"sample": p.id, "behaviour": p.behaviour, "split": p.split, "group": p.group, "tokens": len(p.ids)}
            | {f"factor.{name}": value for name, value in p.factors.items()}
            for p in self.prompts
        ]
        return pd.DataFrame(rows)


def batches(
    sequences: Sequence[Sequence[int]],
    size: int,
    side: Side = "right",
    by_length: bool = True,
    pad: int = 0,
) -> Iterator[ModelInput]:
    """Token sequences in padded batches of at most `size`; a row's sample is the place of its sequence."""
    from circuits.model_input import padded

    if size < 1:
        raise UserError(f"a batch of {size} prompts: at least 1")
    order = list(range(len(sequences)))
    if by_length:  # equal lengths together: little padding, and the largest batch first, where memory would run out
        order.sort(key=lambda i: (-len(sequences[i]), i))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        yield padded([sequences[i] for i in index], index, pad, side)


def write(directory: Path, prompts: Sequence[Prompt], meta: Mapping[str, Any]) -> None:
    """Write a prompt set into `directory`: records, token ids and how they were tokenised."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [json.dumps(p.text(), ensure_ascii=False) for p in prompts]
    (directory / PROMPTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    rows = [{"id": p.id} | {name: getattr(p, name) for name in IDS} for p in prompts]
    schema = pa.schema([("id", pa.string()), *((name, pa.list_(pa.int32())) for name in IDS)])
    pq.write_table(pa.Table.from_pylist(rows, schema), directory / TOKENS)
    write_json(directory / META, dict(meta))


def read(directory: Path) -> PromptSet:
    """The prompt set in `directory`.

    Raises:
        Damaged: a file is missing or does not belong to the others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (directory / PROMPTS).open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        rows = pq.read_table(directory / TOKENS).to_pylist()
        meta = read_json(directory / META)
    except (OSError, ValueError, pa.ArrowException) as e:
        raise Damaged(f"{directory}: no whole prompt set ({str(e).splitlines()[0]})") from e
    if [record["id"] for record in records] != [row["id"] for row in rows]:
        raise Damaged(f"{directory}: {PROMPTS} and {TOKENS} hold different prompts")
    return PromptSet(tuple(_prompt(record, row) for record, row in zip(records, rows, strict=True)), meta)


def _prompt(record: Mapping[str, Any], row: Mapping[str, Any]) -> Prompt:
    ids: dict[str, Any] = {name: None if row[name] is None else tuple(row[name]) for name in IDS}
    return Prompt(**{name: record[name] for name in TEXT}, **ids)
