"""Steering along the decoder rows of SAE features, beside the difference of means: equal lengths, own controls, either sign."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import QUICK, Cli
from edited import random_prompts
from small_models import build
from test_steering import asked, steered

from circuits.errors import UserError
from circuits.interventions import steering, study
from circuits.interventions.ask import Ask
from circuits.interventions.settings import check
from circuits.sae.modules import SAE, SAEConfig, architecture


def an_sae(width: int, d_sae: int = 24, d_out: int | None = None) -> SAE:
    sae = architecture("topk").sae(SAEConfig(width, d_sae, 4, d_out))
    g = torch.Generator().manual_seed(4)
    for p in (sae.W_enc, sae.W_dec):
        p.copy_(torch.randn(p.shape, generator=g))
    sae.W_dec[7] = 0
    return sae


def with_saes(features: object, layers: tuple[int, ...] = (1,), **given: object) -> Ask:
    lm = build("llama")
    ask = asked(lm, random_prompts(9), layers, features=features, **given)
    return replace(ask, saes={layer: an_sae(lm.dims.width) for layer in layers})


def test_a_feature_is_added_at_the_length_of_the_difference_of_means_with_controls_of_its_own() -> None:
    ask = with_saes([3, 11], (0, 1), controls=5)
    made = steered(ask)
    assert [unit.name for unit in steering.units(ask)] == ["L0.dom", "L0.F3", "L0.F11", "L1.dom", "L1.F3", "L1.F11"]
    doms = steering.directions(ask, ask_lens(ask))
    for layer in (0, 1):
        chosen, row = made.chosen[f"L{layer}.F3"], ask.saes[layer].W_dec[3]
        change = made.changes[f"L{layer}.F3"]
        assert float(torch.nn.functional.cosine_similarity(change, row, dim=0)) == pytest.approx(
            1 if chosen.strength > 0 else -1, abs=1e-5
        )
        assert float(change.norm()) == pytest.approx(abs(chosen.strength) * doms[layer].norm, rel=1e-5)
        for kind in steering.CONTROLS:
            for i in range(5):
                control = made.changes[f"L{layer}.F3 {kind} {i}"]
                assert float(control.norm()) == pytest.approx(float(change.norm()), rel=1e-5)
                if kind == "orthogonal":
                    assert abs(float(control @ row)) < 1e-4 * float(control.norm() * row.norm())
        assert not torch.equal(made.changes[f"L{layer}.F3 random 0"], made.changes[f"L{layer}.F11 random 0"])
    assert len(made.changes) == 2 * 3 * 11


def ask_lens(ask: Ask) -> steering.Lens:
    from circuits.interventions.units.sites import Sites

    return Sites(ask.settings.site)


def test_the_sign_is_the_one_that_moves_the_prompts_that_are_not_measured() -> None:
    """With the decoder row turned round, the same change is made."""
    ask = with_saes([3])
    other = replace(ask, saes={1: an_sae(ask.lm.dims.width)})
    other.saes[1].W_dec[3] *= -2
    one, two = steered(ask), steered(other)
    assert one.chosen["L1.F3"].strength == -two.chosen["L1.F3"].strength
    torch.testing.assert_close(one.changes["L1.F3"], two.changes["L1.F3"])
    assert (
        one.chosen["L1.dom"] == steered(asked(ask.lm, random_prompts(9))).chosen["L1.dom"]
    )  # which features leave alone
    effects = [point["effect"] for point in one.chosen["L1.F3"].curve]
    assert (
        len(effects) == 8
        and one.chosen["L1.F3"].curve[effects.index(max(effects))]["strength"] == one.chosen["L1.F3"].strength
    )


def test_each_feature_has_its_row_of_evidence() -> None:
    found = study.run(with_saes([3], controls=4))
    assert found is not None
    evidence = found.metrics["steering"]
    assert [row["unit"] for row in evidence] == ["L1.dom", "L1.F3"] and {row["random_n"] for row in evidence} == {4}
    assert all(0.2 <= row["p_orthogonal"] <= 1 for row in evidence)


def test_what_has_no_direction_is_refused() -> None:
    for features, says in (([24], "24 features \\(0-23\\)"), ([7], "a decoder row of zeros")):
        with pytest.raises(UserError, match=says):
            steered(with_saes(features))
    ask = with_saes([3])
    with pytest.raises(UserError, match="a transcoder writes to another site"):
        steered(replace(ask, saes={1: an_sae(ask.lm.dims.width, d_out=ask.lm.dims.width)}))
    for bad in ([[1, 2]], ["a"], [-1], [True]):
        assert any(line.startswith("features=") for line in check(replace(ask.settings, features=bad), (1,)))


def test_from_the_command_line(warm: Cli) -> None:
    words = ("behaviour=ioi", "behaviour.n_samples=12", "behaviour.n_test=4", "behaviour.success_threshold=0", QUICK,
             "tracking=off", "cluster.workers=0")  # fmt: skip
    sae = ("sae.steps=20", "sae.heldout_sequences=16", "sae.block_rows=4096", "sae.baselines=false")
    assert warm("task=baseline", *words).code == 0
    steer = ("task=interventions", "intervention=steer", "intervention.controls=3", "intervention.generate=4",
             "intervention.features=[5,9]", "layer=1", *words)  # fmt: skip
    missing = warm(*steer, *sae)
    assert missing.code == 2 and "task=sae" in missing.err
    assert warm("task=sae", "layer=1", *sae, "tracking=off", QUICK).code == 0
    done = warm(*steer, *sae)
    assert done.code == 0, done.out + done.err
    (made,) = warm.artifacts("interventions")
    rows = pd.read_parquet(made / "steering.parquet").set_index("unit")
    assert list(rows.index) == ["L1.dom", "L1.F5", "L1.F9"]
    page = next(warm.outputs.glob("runs/*/interventions-*/report.html")).read_text()
    assert "L1.F5" in page and "L1.F9" in page
    other = warm(*steer, *sae, "intervention.site=mlp_out")
    assert other.code == 2 and "features are directions of sae.site=resid_post" in other.errors[0]
    unread = warm("task=interventions", "intervention=steer", "layer=1", *words, "sae.steps=20")
    assert unread.code == 2 and "sae.steps=20: task=interventions does not read it" in unread.errors[0]
