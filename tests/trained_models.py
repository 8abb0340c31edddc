"""Two-layer models of several families that have learned to continue a repeated stretch of tokens, trained here in seconds."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from filelock import FileLock
from safetensors.torch import load_model, save_model

from circuits.data.prompts import Prompt, PromptSet
from circuits.models.load import LM, wrap

VOCAB, LENGTH = 26, 16
NULL = ((0, 3), (1, 3))
"""Heads (layer, head) whose output rows are zero: they write nothing."""


def configuration(family: str) -> Any:
    """Two layers, four heads of 16, grouped keys where the family has them."""
    common: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    gqa = {**common, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
           "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 32, "tie_word_embeddings": False}  # fmt: skip
    if family == "gpt2":
        return hf.GPT2Config(
            n_layer=2,
            n_embd=64,
            n_head=4,
            n_positions=32,
            n_inner=96,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            **common,
        )
    if family == "gemma3_text":
        return hf.Gemma3TextConfig(**{**gqa, "query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 2})
    return {"qwen2": hf.Qwen2Config, "mistral": hf.MistralConfig}[family](**gqa)


def sequences(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``[n, LENGTH]`` rows and the length of the stretch that each ends with twice.

    A start token, some tokens, and a stretch of 4 to 7 tokens twice; no token comes otherwise again.
    """
    drawn = torch.argsort(torch.rand(n, VOCAB - 1, generator=generator), dim=1) + 1
    stretch = torch.randint(4, 8, (n,), generator=generator)
    column = torch.arange(LENGTH - 1)[None]
    again = column >= LENGTH - 1 - stretch[:, None]
    body = drawn.gather(1, torch.where(again, column - stretch[:, None], column))
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), body], 1), stretch


@functools.cache
def trained(family: str, steps: int = 400) -> LM:
    """A model that continues a repeated sequence; :data:`NULL` heads write nothing, from the beginning on. Trained once: kept in
    the temporary folder under what it is made by."""
    made_by = hashlib.sha256(Path(__file__).read_bytes() + f"{torch.__version__} {family} {steps}".encode()).hexdigest()
    kept = Path(tempfile.gettempdir()) / f"circuits-trained-{family}-{made_by[:12]}.safetensors"
    model = hf.AutoModelForCausalLM.from_config(configuration(family))
    with FileLock(f"{kept}.lock"):
        if kept.exists():
            load_model(model, kept)
        else:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # so small a model gains nothing by more, and waits for them where cores are busy
            train(model, family, steps)
            torch.set_num_threads(threads)
            save_model(model, str(kept))
    return wrap(model, name=f"repeats-{family}")


def train(model: Any, family: str, steps: int) -> None:
    """Adam on the second halves of drawn sequences."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.apply(model._init_weights)
        out = [_out(model, family, layer)[:, head] for layer, head in NULL]
        adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98))
        plan = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, steps, pct_start=0.1)
        generator = torch.Generator().manual_seed(2)
        for _ in range(steps):
            ids, stretch = sequences(64, generator)
            logits = model(ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
            known = (
                torch.arange(LENGTH - 1)[None] >= LENGTH - stretch[:, None]
            )  # the second token of the second time, and on
            loss = torch.nn.functional.cross_entropy(logits[known], ids[:, 1:][known])
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            plan.step()
            with torch.no_grad():
                for rows in out:
                    rows.zero_()


def _out(model: Any, family: str, layer: int) -> torch.Tensor:
    """A view of the output projection's weight in which index 1 is the head."""
    if family == "gpt2":
        return model.transformer.h[layer].attn.c_proj.weight.data.unflatten(0, (4, 16)).transpose(0, 1)
    return model.model.layers[layer].self_attn.o_proj.weight.data.unflatten(1, (4, 16))


def prompts(n: int, seed: int = 5) -> PromptSet:
    """A row up to a token of the second time; in the corrupt one another token stood after it the first time."""
    rows, stretch = sequences(n, torch.Generator().manual_seed(seed))
    found = []
    for i, (ids, k) in enumerate(zip(rows.tolist(), stretch.tolist(), strict=True)):
        stop = LENGTH - k + 1 + i % (k - 1)
        clean, target = ids[:stop], ids[stop]
        foil = next(t for t in range(1, VOCAB) if t not in ids)
        corrupt = [foil if t == target else t for t in clean]
        found.append(
            Prompt(f"p{i}", f"text {i}", "", "", "", "repeats", "train" if i % 2 else "test", str(i), {"stretch": str(k)},
                   tuple(clean), tuple(corrupt), (target,), (foil,))
        )  # fmt: skip
    return PromptSet(tuple(found))
