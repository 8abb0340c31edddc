"""Tokenizers, prompt files and a model directory for tests of prompts and baselines."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits.data.behaviours import BEHAVIOURS

END = "<|endoftext|>"


@functools.cache
def texts() -> tuple[str, ...]:
    """Natural-language prompts of all behaviours with their answers."""
    found = []
    for behaviour in BEHAVIOURS.values():
        rng = np.random.default_rng(0)
        for _ in range(300):
            e = behaviour.generator("natural")(rng)
            found += [e.clean + e.target, e.corrupt + e.foil]
    return tuple(found)


@functools.cache
def bpe(size: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, trained on the behaviours' texts: no pad token; 600 ids split most words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    inner.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=END, eos_token=END, unk_token=END)


@functools.cache
def digit_bpe() -> PreTrainedTokenizerFast:
    """Cut as Qwen's tokenizer cuts: every digit is a token, a space before a number another, " 68" three."""
    qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    inner = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(qwen), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    inner.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END)


def save_model(
    folder: Path, tokenizer: Any, vocabulary: int | None = None, seed: int = 5, layers: int = 2, positions: int = 64
) -> Path:
    """A small random GPT-2 with `tokenizer` in `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"n_layer": layers, "n_embd": 32, "n_head": 4, "n_positions": positions}
        vocab = len(tokenizer) if vocabulary is None else vocabulary
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab, bos_token_id=0, eos_token_id=0, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def animals(n: int = 40) -> list[dict[str, Any]]:
    """Records of a file in the embedded model's words: agreement without an attractor, ten groups."""
    nouns = ("bird", "boy", "cat", "dog", "doctor", "farmer", "girl", "horse", "king", "teacher")
    openings = ("The", "Today the", "I know that the", "It seems that the")
    found = []
    for i in range(n):
        noun, opening, plural = nouns[i % 10], openings[i // 20], i // 10 % 2
        one, other = (f"{opening} {noun}{'s' if number else ''}" for number in (plural, 1 - plural))
        answers = (" are", " is") if plural else (" is", " are")
        found.append(
            {"prompt": one, "corrupt": other, "target": answers[0], "foil": answers[1], "group": noun, "number": plural}
        )
    return found


def write_jsonl(path: Path, records: list[Mapping[str, Any]], end: str = "\n") -> Path:
    """A JSON-lines file."""
    path.write_bytes("".join(json.dumps(record) + end for record in records).encode())
    return path
