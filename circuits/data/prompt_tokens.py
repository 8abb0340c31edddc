"""Prompts and answers as token ids: BOS, chat template, the audit of the answers. No torch.

An answer's ids are what remains of the tokenised prompt-with-answer behind the prompt's own ids. Where the prompt's ids are
not the beginning of the whole (a tokenizer that merges across the border), scoring the answer after the prompt would
score something else: such a row has the fault "prefix". BOS is put in front by us, never by the tokenizer, so that
each text is tokenised in one and the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from circuits.data.prompt_records import Record
from circuits.errors import UserError

Bos = Literal["auto", "always", "never"]
Fault = Literal["multi_token", "prefix", "same", "unknown", "unaligned"]

SAYS: dict[str, str] = {
    "multi_token": "an answer is of several tokens",
    "prefix": "prompt and answer together do not begin with the prompt's own tokens (a word follows with its space in front)",
    "same": "target and foil are the same tokens, or one is the beginning of the other",
    "unknown": "an answer is unknown to the tokenizer",
    "unaligned": "clean and corrupt prompt differ in length",
}


@dataclass(frozen=True)
class Encoded:
    """A record with its token ids, and what is wrong with it."""

    record: Record
    ids: tuple[int, ...]
    corrupt_ids: tuple[int, ...] | None
    target_ids: tuple[int, ...]
    foil_ids: tuple[int, ...]
    faults: tuple[Fault, ...]
    unknown: int
    """Unknown tokens in the prompts."""


class Encoder:
    """A tokenizer with our own decision about BOS and the chat template."""

    def __init__(self, tokenizer: Any, bos: Bos = "auto", chat: bool = False) -> None:
        self._tokenizer = tokenizer
        self.chat = chat
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "behaviour.chat=true: this model's tokenizer has no chat template; write behaviour.chat=false"
            )
        self.bos = self._wants_bos(bos)
        unknown = tokenizer.unk_token_id  # byte-level tokenizers know every text and give another token's id here
        self._unknown = None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown

    def _wants_bos(self, bos: Bos) -> bool:
        token = self._tokenizer.bos_token_id
        if bos == "never":
            return False
        if bos == "always":
            if token is None:
                raise UserError(
                    "behaviour.bos=always: this model's tokenizer has no BOS token; write behaviour.bos=auto"
                )
            return True
        if token is None:
            return False
        text = self.written("a") if self.chat else "a"
        return bool(self._tokenizer(text, add_special_tokens=not self.chat)["input_ids"][:1] == [token])

    def written(self, prompt: str) -> str:
        """The text before the answer."""
        if not self.chat:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def answer(self, text: str) -> str:
        """The answer as it follows that text: a model's turn begins without a space."""
        return text.lstrip() if self.chat else text

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each text, with BOS in front where it is wanted."""
        if not texts:
            return []
        token = self._tokenizer.bos_token_id
        rows = []
        for row in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
            own = row[1:] if token is not None and row[:1] == [token] else row  # a chat template writes its own
            rows.append((token, *own) if self.bos else tuple(own))
        return rows

    def encode(self, records: Sequence[Record], aligned: bool = False) -> list[Encoded]:
        """Every record with its ids and faults; `aligned`: clean and corrupt have to be equally long."""
        clean = [self.written(r.prompt) for r in records]
        having = [i for i, r in enumerate(records) if r.corrupt is not None]
        ids = self.ids(clean)
        corrupt = dict(zip(having, self.ids([self.written(str(records[i].corrupt)) for i in having]), strict=True))
        targets = self.ids([text + self.answer(r.target) for text, r in zip(clean, records, strict=True)])
        foils = self.ids([text + self.answer(r.foil) for text, r in zip(clean, records, strict=True)])
        return [self._encoded(r, ids[i], corrupt.get(i), targets[i], foils[i], aligned) for i, r in enumerate(records)]

    def _encoded(
        self,
        record: Record,
        ids: tuple[int, ...],
        corrupt: tuple[int, ...] | None,
        target: tuple[int, ...],
        foil: tuple[int, ...],
        aligned: bool,
    ) -> Encoded:
        n, unk = len(ids), self._unknown
        answers = (target[n:], foil[n:])
        shared = min(map(len, answers))
        faults: list[Fault] = []
        if any(whole[:n] != ids or len(whole) <= n for whole in (target, foil)):
            faults.append("prefix")
        if any(len(answer) > 1 for answer in answers):
            faults.append("multi_token")
        if answers[0][:shared] == answers[1][:shared]:
            faults.append("same")
        if unk is not None and any(unk in answer for answer in answers):
            faults.append("unknown")
        if aligned and corrupt is not None and len(corrupt) != n:
            faults.append("unaligned")
        unknown = 0 if unk is None else [*ids, *(corrupt or ())].count(unk)
        return Encoded(record, ids, corrupt, *answers, tuple(faults), unknown)
