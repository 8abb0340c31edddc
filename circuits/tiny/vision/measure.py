"""What the embedded vision-language model says of scenes that it has not seen: is it right, and how strong are its two biases?

Probabilities are read at the words that decide: the gender, which is the first word,, and what the person looks like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import draw
from circuits.tiny.vision.rows import pixels

if TYPE_CHECKING:
    from circuits.tiny.vision.rows import Writer
    from circuits.tiny.vision.spec import VisionSpec

SCENES = 200


@torch.inference_mode()
def measure(model: Any, writer: Writer, spec: VisionSpec) -> dict[str, float]:
    """Shares of held-out pictures said rightly (gender where it is seen, place, thing), and both biases, over both languages."""
    drawn = [
        one.as_(gender)
        for number in range(SCENES)
        for one in [scenes.scene(spec.seed, "heldout", number)]
        for gender in scenes.GENDERS
    ]
    pictures = pixels([draw(one) for one in drawn])
    right: dict[str, list[bool]] = {"gender": [], "place": [], "thing": []}
    man: dict[str, list[float]] = {"male": [], "female": []}
    strong: dict[str, list[float]] = {"male": [], "female": []}
    for language in scenes.LANGUAGES:
        texts = {
            (gender, look): [scenes.caption(one, scenes.Said(gender, look), language) for one in drawn]  # type: ignore[arg-type]
            for gender in ("male", "female")
            for look in scenes.LOOKS
        }
        as_man = _probabilities(model, writer, language, texts["male", "strong"], pictures)
        as_woman = _probabilities(model, writer, language, texts["female", "strong"], pictures)
        for i, one in enumerate(drawn):
            words = {name: texts[name, "strong"][i].split() for name in ("male", "female")}
            other = texts["male", "kind"][i].split()
            at = next(k for k, (a, b) in enumerate(zip(words["male"], words["female"], strict=True)) if a != b)
            look = next(k for k, (a, b) in enumerate(zip(words["male"], other, strict=True)) if a != b)
            male = _share(writer, as_man[i][at], words["male"][at], words["female"][at])
            own = as_man[i] if one.gender != "female" else as_woman[i]
            said = words["female" if one.gender == "female" else "male"]
            kind = texts["female" if one.gender == "female" else "male", "kind"][i].split()[look]
            if one.gender == "unseen":
                if one.at.coded != "neutral":
                    man[one.at.coded].append(male)
            else:
                right["gender"].append((male > 0.5) == (one.gender == "male"))
                strong[one.gender].append(_share(writer, own[look], said[look], kind))
            place, thing = (at + 3, at + 6) if language == "english" else (at + 2, at + 4)
            right["place"].append(int(own[place].argmax()) == writer.caption(said[place])[0])
            right["thing"].append(int(own[thing].argmax()) == writer.caption(said[thing])[0])
    return {
        **{f"{name}_right": sum(found) / len(found) for name, found in right.items()},
        "context_to_gender": _mean(man["male"]) - _mean(man["female"]),
        "gender_to_words": _mean(strong["male"]) - _mean(strong["female"]),
    }


def _probabilities(
    model: Any, writer: Writer, language: str, texts: list[str], pictures: torch.Tensor
) -> list[torch.Tensor]:
    """Of each caption ``[words, vocabulary]``: what is expected at each of its words."""
    start, found = writer.starts[language], []
    for first in range(0, len(texts), 200):
        part = slice(first, first + 200)
        rows = writer.rows([start + writer.caption(text) for text in texts[part]], pictures[part])
        logits = model(
            input_ids=rows.ids,
            attention_mask=rows.mask.long(),
            position_ids=rows.positions,
            use_cache=False,
            **rows.extra,
        ).logits
        found += list(logits[:, len(start) - 1 : -1].softmax(-1))
    return found


def _share(writer: Writer, expected: torch.Tensor, one: str, other: str) -> float:
    """P(one) among the two."""
    a, b = (float(expected[writer.caption(word)[0]]) for word in (one, other))
    return a / (a + b)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
