"""Small random models of every family and padded rows of random tokens, for tests of numerics."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from circuits.models.load import LM, wrap
from circuits.models.sites import SITES

LAYERS, VOCAB = 3, 50


def build(family: str, dtype: torch.dtype = torch.float32, head_dim: int = 12) -> LM:
    """A small model whose every parameter is random, so that no site is trivially zero or identical to another."""
    common = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        if family == "gpt2":
            sizes = {"n_layer": LAYERS, "n_embd": 32, "n_head": 4, "n_positions": 32}
            model = GPT2LMHeadModel(GPT2Config(**sizes, **common))
        else:  # grouped-query attention, head_dim x heads != width, untied embedding
            sizes = {"num_hidden_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
            more = {
                "head_dim": head_dim,
                "intermediate_size": 80,
                "max_position_embeddings": 32,
                "tie_word_embeddings": False,
            }
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, **more, **common))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return wrap(model.to(dtype))


def rows(*lengths: int, side: str = "right", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token rows padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(longest - length, None)
        ids[row, where] = torch.randint(1, VOCAB, (length,), generator=generator)
        mask[row, where] = True
    return ids, mask


def every_site() -> dict[str, range]:
    return {site: range(LAYERS) for site in SITES}
