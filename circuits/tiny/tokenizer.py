"""The embedded model's tokenizer: one token per word, a real Hugging Face fast tokenizer saved beside the model."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from circuits.tiny.spec import BOS, EOS, PAD, SPECIALS, UNK


def build_tokenizer(vocabulary: Sequence[str], max_positions: int) -> PreTrainedTokenizerFast:
    """Word-level over `vocabulary` (special tokens first), cut at white space and punctuation; adds ``<bos>`` in front.

    A word's token does not know the space before it: ``" Paris"`` and ``"Paris"`` are the same single token, so an answer with
    its leading space is one token, as it is under the tokenizers of large models.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    # Decoding joins words by spaces, then takes out those before . , ? (the clean-up) and :, as the texts are written.
    inner.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )


def word_ids(vocabulary: Sequence[str]) -> dict[str, int]:
    """Word -> id without the special tokens, for callers that cut the text themselves."""
    return {word: i for i, word in enumerate(vocabulary) if word not in SPECIALS}
