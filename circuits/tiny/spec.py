"""What the embedded language model is: its shape, its vocabulary and how it is trained. Torch-free, so that depth and
widths are known, and keys computed, before anything is trained or imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuits.errors import UserError
from circuits.tiny import mixture

VERSION = 1
"""Raise it when training changes in a way neither `TinySpec` nor `mixture.fingerprint` shows."""

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)


@dataclass(frozen=True)
class TinySpec:
    """Shape and training of the embedded model; every field changes the result."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    max_positions: int = 128
    steps: int = 1500
    """At most; training ends `decay` steps after everything is learned."""
    batch: int = 64
    """Sentences per step."""
    lr: float = 1e-3
    warmup: int = 50
    decay: int = 200
    weight_decay: float = 0.01
    answer_weight: float = 10.0
    """Weight of the answer token's loss; every other token has 1. Unweighted, the hard behaviours stay at chance."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "width",
            "heads",
            "kv_heads",
            "mlp",
            "max_positions",
            "steps",
            "batch",
            "warmup",
            "decay",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"the embedded model's {name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or self.heads % self.kv_heads:
            shape = f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}"
            raise UserError(f"the embedded model's width must divide by heads and heads by kv_heads, got {shape}")


def vocabulary() -> list[str]:
    """Token of each id: the special tokens, then the behaviours' words in order."""
    return [*SPECIALS, *mixture.words()]


def hf_config(spec: TinySpec, vocab: int) -> dict[str, Any]:
    """The model's config.json as keyword arguments of ``Qwen2Config`` (`vocab` = number of tokens)."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.mlp,
        "max_position_embeddings": spec.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.06,
        "tie_word_embeddings": False,
        "use_cache": True,
        "pad_token_id": SPECIALS.index(PAD),
        "bos_token_id": SPECIALS.index(BOS),
        "eos_token_id": SPECIALS.index(EOS),
    }
