"""Two-layer models of several families that have learned induction on random sequences, trained here in seconds."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers as hf

from circuits.data.prompts import Prompt, PromptSet
from circuits.models.load import LM, wrap

VOCAB, HALF = 26, 7
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


def sequences(n: int, generator: torch.Generator) -> torch.Tensor:
    """``[n, 1 + 2 HALF]``: a start token, random tokens, the same again."""
    drawn = torch.argsort(torch.rand(n, VOCAB - 1, generator=generator), dim=1)[:, :HALF] + 1
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), drawn, drawn], 1)


@functools.cache
def trained(family: str, steps: int = 700) -> LM:
    """A model that continues a repeated sequence; :data:`NULL` heads write nothing, from the beginning on."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = hf.AutoModelForCausalLM.from_config(configuration(family))
        out = [_out(model, family, layer)[:, head] for layer, head in NULL]
        adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98))
        plan = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, steps, pct_start=0.1)
        generator = torch.Generator().manual_seed(2)
        for _ in range(steps):
            ids = sequences(64, generator)
            logits = model(ids).logits[:, HALF:-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, HALF + 1 :].flatten())
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            plan.step()
            with torch.no_grad():
                for rows in out:
                    rows.zero_()
    return wrap(model, name=f"induction-{family}")


def _out(model: Any, family: str, layer: int) -> torch.Tensor:
    """A view of the output projection's weight in which index 1 is the head."""
    if family == "gpt2":
        return model.transformer.h[layer].attn.c_proj.weight.data.unflatten(0, (4, 16)).transpose(0, 1)
    return model.model.layers[layer].self_attn.o_proj.weight.data.unflatten(1, (4, 16))


def prompts(n: int, seed: int = 5) -> PromptSet:
    """A sequence and the beginning of its second time; the corrupt one has another token where the answer stood the first time."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, ids in enumerate(sequences(n, generator).tolist()):
        at = 1 + i % (HALF - 1)
        clean = ids[: HALF + 1 + at]  # ends with the token before ids[at + 1]
        target = ids[at + 1]
        foil = next(t for t in range(1, VOCAB) if t not in ids)
        corrupt = [foil if t == target else t for t in clean]
        found.append(
            Prompt(f"p{i}", f"text {i}", "", "", "", "induction", "train" if i % 2 else "test", str(i), {"at": str(at)},
                   tuple(clean), tuple(corrupt), (target,), (foil,))
        )  # fmt: skip
    return PromptSet(tuple(found))
