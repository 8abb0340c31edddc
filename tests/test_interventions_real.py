"""Interventions on a real language model: heads against plain hooks, and a prompt file of one's own."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from edited import reference, seen
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.data.prompts import Prompt, PromptSet
from circuits.interventions.edits.counterfactual import Counterfactual
from circuits.interventions.edits.zero import Zero
from circuits.interventions.effects import effects_of
from circuits.interventions.engine import Engine
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads
from circuits.models.load import LM, load_model

PAIRS = [("Mary", "John", "store"), ("Paul", "Anna", "park"), ("Tom", "Sarah", "school"), ("Mark", "James", "beach")]


def prompts_of(lm: LM) -> PromptSet:
    """Four IOI pairs of different lengths, the other giver as the corrupt one."""
    found = []
    for i, (a, b, place) in enumerate(PAIRS):
        start = "Then, " * (i % 2) + f"When {a} and {b} went to the {place},"

        def ids(text: str) -> tuple[int, ...]:
            return tuple(lm.tokenizer(text)["input_ids"])

        clean, corrupt = f"{start} {b} gave a drink to", f"{start} {a} gave a drink to"
        found.append(
            Prompt(
                f"p{i}",
                clean,
                corrupt,
                f" {a}",
                f" {b}",
                "ioi",
                "test",
                str(i),
                {},
                ids(clean),
                ids(corrupt),
                ids(f" {a}"),
                ids(f" {b}"),
            )
        )
    assert all(len(p.target_ids) == len(p.foil_ids) == 1 and len(p.ids) == len(p.corrupt_ids or ()) for p in found)
    return PromptSet(tuple(found))


def put(x: Tensor, head: int, value: Tensor | float) -> Tensor:
    x = x.clone()
    x[:, :, head] = value
    return x


def held_against_plain_hooks(lm: LM, every: int) -> None:
    prompts = prompts_of(lm)
    heads = [(la, h) for la in range(lm.dims.layers) for h in range(lm.dims.heads)][::every]
    units = [Unit(f"L{la}.H{h}", (Place(la, (h,)),)) for la, h in heads]
    for base in ("clean", "corrupt"):
        rows = rows_of(prompts, base=base)  # type: ignore[arg-type]
        engine = Engine(lm, prompts, rows, Heads(), batch_size=8)
        found = {
            edit.name: effects_of(engine.measure(units, edit), units, edit.name, prompts, rows)
            for edit in (Zero(), Counterfactual())
        }
        for i, row in enumerate(rows):
            p, other = prompts[i], row.other or ()
            for u in range(len(units)):
                (layer, head), n = units[u].items()[0], len(row.ids)
                values = {"zero": 0.0, "counterfactual": seen(lm, other, "head_z", layer)[:, :, head]}
                for name, value in values.items():
                    z = reference(lm, row.ids, {("head_z", layer): partial(put, head=head, value=value)})[n - 1]
                    expected = float(z[p.target_ids[0]] - z[p.foil_ids[0]])
                    assert found[name].values["logit_diff"][u, i] == pytest.approx(expected, abs=1e-4), (
                        base,
                        name,
                        units[u].name,
                    )
        assert (found["zero"].base["logit_diff"] > 0).all() == (base == "clean")


@pytest.mark.soak
def test_heads_of_a_real_model_equal_plain_hooks_noising_and_denoising(real_model: Path) -> None:
    held_against_plain_hooks(load_model(str(real_model), dtype=torch.float32, device=torch.device("cpu")), every=34)


@pytest.mark.soak
def test_every_head_of_a_real_model_equals_plain_hooks_noising_and_denoising(real_model: Path) -> None:
    held_against_plain_hooks(load_model(str(real_model), dtype=torch.float32, device=torch.device("cpu")), every=1)


@pytest.mark.soak
def test_a_prompt_file_of_one_s_own_is_studied_from_the_command_line(real_model: Path, cli) -> None:  # type: ignore[no-untyped-def]
    lines = [
        {"prompt": f"When {a} and {b} went to the {place}, {b} gave a drink to", "target": f" {a}", "foil": f" {b}",
         "corrupt": f"When {a} and {b} went to the {place}, {a} gave a drink to", "group": f"{a}{b}"}
        for x, y, _ in PAIRS for a, b in ((x, y), (y, x)) for place in ("park", "store", "school")
    ]  # fmt: skip
    (cli.folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["behaviour=mine.jsonl", f"model={real_model}", "tracking=off"]
    assert cli("task=baseline", *words, timeout=900).code == 0
    done = cli(
        "task=interventions",
        *words,
        "intervention=patch_layers",
        "intervention.direction=denoising",
        "layer=0-29",
        timeout=900,
    )
    assert done.code == 0, done.out + done.err
    (path,) = cli.artifacts("interventions")
    import pandas as pd

    recovery = pd.read_parquet(path / "summary.parquet").set_index("layer")["recovery"]
    assert recovery[29] == pytest.approx(1, abs=1e-3) and recovery[0] < 0.1 and np.all(recovery.diff().dropna() > -0.2)
