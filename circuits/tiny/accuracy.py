"""How well a model knows the behaviours: is the answer the most likely of all tokens, on prompts it was not trained on?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from circuits.data.behaviours import Example, embedded
from circuits.data.behaviours.base import unseen
from circuits.data.seeds import derive_seed


class Accuracy(NamedTuple):
    """Share of `n` prompts whose answer is the argmax over the full vocabulary."""

    accuracy: float
    n: int


@torch.inference_mode()
def correct(model: Any, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[bool]:
    """Per example: is the target the most likely token after the clean prompt's last token?"""
    encoded = tokenizer([e.clean for e in examples], padding=True, padding_side="right", return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    best = logits[torch.arange(len(ids)), mask.sum(dim=1) - 1].argmax(dim=-1)
    targets = [tokenizer(e.target, add_special_tokens=False)["input_ids"][0] for e in examples]
    return [bool(b == t) for b, t in zip(best.tolist(), targets, strict=True)]


def accuracies(model: Any, tokenizer: PreTrainedTokenizerFast, n: int, seed: int) -> dict[str, Accuracy]:
    """Behaviour -> accuracy on up to `n` unseen prompts (a behaviour with a `domain`: on all of it)."""
    measured = {}
    for name, behaviour in embedded().items():
        examples = unseen(behaviour, np.random.default_rng(derive_seed(seed, name)), n)
        right = correct(model, tokenizer, examples)
        measured[name] = Accuracy(sum(right) / len(right), len(right))
    return measured
