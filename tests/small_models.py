"""Small random models of every family and padded rows of random tokens, for tests of numerics."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from circuits.models.load import LM, wrap
from circuits.models.sites import FAMILIES, SITES, sites_of

LAYERS, VOCAB = 3, 50
SEQUENTIAL = (
    "gpt_neox sequential"  # use_parallel_residual=False: not how Pythia is built, but the architecture allows it
)
MODELS = [*sorted(FAMILIES), SEQUENTIAL]

_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_SHAPE = {"num_hidden_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 32}
# grouped-query attention, head_dim x heads != width, untied embedding
_GQA = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 80, "tie_word_embeddings": False}
_WINDOW = {"sliding_window": 4}  # shorter than the rows, so that it matters
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
IMAGE_TOKEN, IMAGE_TOKENS = VOCAB, 4  # how many stand for one image


def configuration(family: str, head_dim: int = 12) -> Any:
    """The config of a small model of `family`."""
    gqa = {**_GQA, "head_dim": head_dim, **_COMMON}
    gemma = {**gqa, **_WINDOW, "layer_types": _LAYER_TYPES, "query_pre_attn_scalar": 7, "tie_word_embeddings": True}
    if family == "gpt2":
        return hf.GPT2Config(n_layer=LAYERS, n_embd=32, n_head=4, n_positions=32, **_COMMON)
    if family.startswith("gpt_neox"):
        sizes = {**_SHAPE, "intermediate_size": 96, **_COMMON}
        return hf.GPTNeoXConfig(**sizes, use_parallel_residual=family != SEQUENTIAL, rotary_pct=0.5)
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        return hf.Gemma3Config(
            text_config=gemma,
            vision_config={**vision, "image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=IMAGE_TOKENS,
            image_token_index=IMAGE_TOKEN,
        )
    makers = {"gemma3_text": (hf.Gemma3TextConfig, gemma), "mistral": (hf.MistralConfig, {**gqa, **_WINDOW})}
    makers |= {"qwen2": (hf.Qwen2Config, gqa), "qwen3": (hf.Qwen3Config, gqa), "llama": (hf.LlamaConfig, gqa)}
    maker, sizes = makers[family]
    return maker(**sizes)


def build(family: str, dtype: torch.dtype = torch.float32, head_dim: int = 12) -> LM:
    """A small model whose every parameter is random, so that no site is trivially zero or identical to another."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = hf.AutoModelForCausalLM.from_config(configuration(family, head_dim))
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


def every_site(lm: LM | None = None) -> dict[str, range]:
    """All sites of all layers, to capture."""
    return {site: range(LAYERS) for site in (SITES if lm is None else sites_of(lm.dims))}
