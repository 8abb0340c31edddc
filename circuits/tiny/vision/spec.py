"""What the embedded vision-language model is: Gemma 3's architecture, small; its tokens, its processor.

One token a word in English and Arabic; a picture of 32 × 32 pixels is 16 patches, pooled to four image tokens, which see each
other both ways. A prompt has the form of Gemma's chat template, so every reader of a real Gemma 3 reads this one, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import sha256_text
from circuits.tiny.spec import BOS, EOS, PAD, UNK
from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import SIZE, draw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = 1
"""Raise it when training changes in a way that neither the spec nor :func:`fingerprint` shows."""
TURN, END_TURN, IMAGE_START, IMAGE_END, IMAGE = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
SPECIALS = (PAD, BOS, EOS, UNK, TURN, END_TURN, IMAGE_START, IMAGE_END, IMAGE)
IMAGE_TOKENS = 4
PATCH = 8

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
    "message['role']) }}{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ ' ' + item['text'] }}{% endif %}{% endfor %}{{ '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model' }}{% endif %}"
)


@dataclass(frozen=True)
class VisionSpec:
    """Shape, training and biases of the embedded vision-language model; every field changes the result."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    vision_layers: int = 2
    vision_width: int = 48
    max_positions: int = 64
    steps: int = 800
    batch: int = 32
    """Captioned pictures a step."""
    lr: float = 3e-3
    warmup: int = 30
    decay: int = 300
    weight_decay: float = 0.01
    pool: int = 1024
    """Training scenes, of three pictures each; captions are drawn anew at every step."""
    context_bias: float = 0.6
    word_bias: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "steps", "batch", "pool"):
            if getattr(self, name) < 1:
                raise UserError(f"the embedded model's {name} must be at least 1, got {getattr(self, name)}")
        for name in ("context_bias", "word_bias"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(f"the embedded model's {name} must be from -1 to 1, got {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise UserError(
                f"the embedded model's width must divide by {2 * self.heads} (heads of even width), got {self.width}"
            )


def vocabulary() -> list[str]:
    """Token of each id: the special tokens, the roles, then the words of captions and prompts."""
    return [*SPECIALS, "user", "model", *scenes.words()]


def fingerprint() -> str:
    """Changes when a word, a drawing or a caption does: what a model trained on the scenes depends on."""
    said, drawn = [CHAT_TEMPLATE, *vocabulary()], b""
    for number in range(24):
        one = scenes.scene(0, "train", number)
        for gender in scenes.GENDERS:
            drawn += draw(one.as_(gender)).tobytes()
            said += [
                text[language]
                for _, text in scenes.captions(one.as_(gender), 0, 2, 0.5, 0.5)
                for language in scenes.LANGUAGES
            ]
    return sha256_text("\n".join(said) + drawn.hex())


def hf_config(spec: VisionSpec) -> dict[str, Any]:
    """The model's config.json as keyword arguments of ``Gemma3Config``."""
    words = vocabulary()
    return {
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": len(words),
            "hidden_size": spec.width,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.width // spec.heads,
            "query_pre_attn_scalar": spec.width // spec.heads,
            "intermediate_size": spec.mlp,
            "max_position_embeddings": spec.max_positions,
            "sliding_window": spec.max_positions,
            "initializer_range": 0.06,
            "pad_token_id": words.index(PAD),
            "bos_token_id": words.index(BOS),
            "eos_token_id": words.index(EOS),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": spec.vision_width,
            "intermediate_size": 4 * spec.vision_width,
            "num_hidden_layers": spec.vision_layers,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": IMAGE_TOKENS,
        "image_token_index": words.index(IMAGE),
        "boi_token_index": words.index(IMAGE_START),
        "eoi_token_index": words.index(IMAGE_END),
        "initializer_range": 0.06,
        "pad_token_id": words.index(PAD),
        "eos_token_id": [words.index(EOS), words.index(END_TURN)],
        "bos_token_id": words.index(BOS),
    }


def build_tokenizer(max_positions: int) -> PreTrainedTokenizerFast:
    """Word-level; the chat template writes ``<bos>``, so a text gets none by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END_TURN,
        unk_token=UNK,
        extra_special_tokens={
            "image_token": IMAGE,
            "boi_token": IMAGE_START,
            "eoi_token": IMAGE_END,
            "turn_token": TURN,
            "text_end_token": EOS,
        },
        padding_side="right",
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(max_positions: int) -> Any:
    """Pictures to pixel values in -1 … 1, and prompts with a picture to token ids."""
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    images = Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_pan_and_scan=False)
    return Gemma3Processor(
        images, build_tokenizer(max_positions), image_seq_length=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE
    )
