"""The tables that the Tiny Ablation Lab published of GPT-2 Medium, in its own reading and in the corrected one.

Opt-in, by ``make real``: its checkout is named by TINYLAB=DIR and the weights are in the cache of the hub (or TINYLAB_MODEL=DIR).
Its own reading: all prompts of a condition in one batch, begun with <|endoftext|> and padded on the right with it, answers read at
the last column whether that is padding or not, heads zeroed after the value biases were folded away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Cli
from edited import random_prompts
from small_models import build
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.interventions.edits.zero import Zero
from circuits.interventions.engine import Engine
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads

CORPORA = {"facts": "facts", "neg": "negation", "cf": "counterfactual", "logic": "logical"}
HEADS = ((2,), (4,), (7,), (2, 4, 7))
PUBLISHED = {  # logit differences without an edit, and without heads 2, 4, 7 of layer 0, and all three
    "facts": (1.4834, 1.7480, 1.5420, 1.5459, 1.8818),
    "neg": (1.6035, 2.1172, 1.7852, 1.7793, 2.4492),
    "cf": (1.4170, 1.8340, 1.5576, 1.5361, 2.2656),
    "logic": (1.2900, 1.7305, 1.4375, 1.4375, 1.8457),
}
WITHIN = 0.02
"""Of a logit difference: they ran in float16 on another device."""


@torch.no_grad()
def as_published(model: Any, ids: Sequence[Sequence[int]], answers: Tensor, heads: Sequence[int], end: int) -> float:
    """Mean logit difference of a GPT-2 with heads of layer 0 zeroed, read as the lab read it. `answers`: ``[prompts, 2]``."""
    longest = max(map(len, ids))
    rows = torch.tensor([[end, *one, *[end] * (longest - len(one))] for one in ids])
    attention, width = model.transformer.h[0].attn, model.config.n_embd // model.config.n_head
    bias = attention.c_attn.bias[-model.config.n_embd :]

    def zeroed(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        for head in heads:  # folded into the output's bias, the values' bias stays
            x[..., head * width : (head + 1) * width] = bias[head * width : (head + 1) * width]
        return (x, *args[1:])

    handle = attention.c_proj.register_forward_pre_hook(zeroed)
    try:
        logits = model(input_ids=rows, use_cache=False).logits[:, -1]
    finally:
        handle.remove()
    found = logits.gather(1, answers)
    return float((found[:, 0] - found[:, 1]).mean())


def test_their_reading_is_ours_where_nothing_is_padded_and_values_have_no_bias() -> None:
    lm, prompts = build("gpt2"), random_prompts(6)
    longest = max(len(p.ids) for p in prompts)
    kept = type(prompts)(tuple(p for p in prompts if len(p.ids) == longest), prompts.meta)
    with torch.no_grad():
        for block in lm.model.transformer.h:
            block.attn.c_attn.bias.zero_()
    end = kept[0].ids[0]
    assert all(p.ids[0] == end for p in kept) or len(kept) == 1
    answers = torch.tensor([[p.target_ids[0], p.foil_ids[0]] for p in kept])
    theirs = as_published(lm.model, [p.ids[1:] for p in kept], answers, (0, 2), end)
    units = [Unit("both", (Place(0, (0, 2)),))]
    ours = Engine(lm, kept, rows_of(kept), Heads(), batch_size=4).measure(units, Zero()).values
    assert theirs == pytest.approx(float((ours["z_target"] - ours["z_foil"]).mean()), abs=1e-5)


@pytest.fixture(scope="session")
def lab() -> Path:
    """Their checkout."""
    if not (given := os.environ.get("TINYLAB")):
        pytest.skip("TINYLAB=DIR names no checkout of the Tiny Ablation Lab")
    return Path(given) / "lab" / "data"


@pytest.fixture(scope="session")
def medium() -> str:
    """GPT-2 Medium, where it is on disk."""
    from huggingface_hub import try_to_load_from_cache

    if given := os.environ.get("TINYLAB_MODEL"):
        return given
    found = try_to_load_from_cache("openai-community/gpt2-medium", "config.json")
    if not isinstance(found, str):
        pytest.skip("GPT-2 Medium is not in the hub's cache (TINYLAB_MODEL=DIR names it)")
    return str(Path(found).parent)


def side(lab: Path, condition: str) -> tuple[Path, list[dict[str, str]]]:
    """A condition's corpus, and its training rows."""
    name = f"{CORPORA[condition]}_single_token_v1_balanced"
    path = lab / "corpora" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = json.loads((lab / "splits" / f"{name}.split.json").read_text())["train"]
    return path, [rows[i] for i in chosen]


@pytest.mark.soak
@pytest.mark.weights
@pytest.mark.parametrize("condition", CORPORA)
def test_gpt2_mediums_published_logit_differences(lab: Path, medium: str, condition: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(medium), AutoTokenizer.from_pretrained(medium)
    rows = side(lab, condition)[1]
    ids = [tokenizer(row["clean"], add_special_tokens=False)["input_ids"] for row in rows]
    answers = torch.tensor([[tokenizer.encode(row[key])[0] for key in ("target", "foil")] for row in rows])
    found = [as_published(model, ids, answers, heads, tokenizer.eos_token_id) for heads in ((), *HEADS)]
    assert found == pytest.approx(PUBLISHED[condition], abs=WITHIN), (condition, found)


@pytest.mark.soak
@pytest.mark.weights
@pytest.mark.parametrize("condition", CORPORA)
def test_read_where_the_answer_is_the_trio_still_raises_the_difference(
    lab: Path, medium: str, condition: str, cli: Cli
) -> None:
    corpus, _ = side(lab, condition)
    words = (f"behaviour={corpus}", f"model={medium}", "tracking=off", "behaviour.success_threshold=0",
             "behaviour.unusable=drop", "behaviour.multi_token=drop")  # fmt: skip
    done = cli("task=baseline", *words, timeout=1800)
    assert done.code == 0, done.out + done.err
    done = cli("task=interventions", "intervention=head_groups", "intervention.groups=[[L0H2,L0H4,L0H7]]", "layer=all",
               "intervention.edit=zero", *words, timeout=3600)  # fmt: skip
    assert done.code == 0, done.out + done.err
    (made,) = cli.artifacts("interventions")
    summary = pd.read_parquet(made / "summary.parquet").set_index("unit")
    (trio,) = (row for unit, row in summary.iterrows() if str(unit).count("H") == 3 and not row.get("control"))
    assert trio["effect"] > 0, trio
