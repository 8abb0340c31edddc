"""Constants that cost the model least: the second-order one, its slopes, and what prompts that are left out decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from edited import every_head, random_prompts, reference, seen
from pieces import in_pieces
from small_models import build
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.data.keeper import Keeper
from circuits.interventions.edits import curvature, mean
from circuits.interventions.edits.optimal import Optimal
from circuits.interventions.engine import Engine
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads


def put(x: Tensor, head: int, value: Tensor | float) -> Tensor:
    new = x.clone()
    new[:, :, head] = value
    return new


def test_a_second_order_constant_is_the_best_where_the_answer_is_quadratic_in_it() -> None:
    """Where answers hang on a unit by a known slope, least squares over them; where they do not, its mean, or next to it."""
    generator = torch.Generator().manual_seed(0)
    g, true = torch.randn(200, 5, generator=generator).double(), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]).double()
    unit, prompts = Unit("L0.H0", (Place(0, (0,)),)), torch.arange(200) % 50
    mean = {(0, 0): torch.zeros(5)}
    found = curvature._best(g, g @ true, prompts, mean, unit)[0, 0]
    assert torch.allclose(found.double(), true, atol=0.02)
    noise = torch.randn(200, generator=generator).double()
    unsaid = curvature._best(g, noise, prompts, mean, unit)[0, 0]
    assert float(unsaid.norm()) < 0.2, "what prompts that are left out do not bear out is not followed"


def test_the_slopes_of_every_unit_are_what_moving_it_does() -> None:
    """g of a head against finite differences of the same combination of logits, with everything after it free to follow."""
    lm, prompts = build("qwen2"), random_prompts(3, lengths=1)
    engine = Engine(lm, prompts, rows_of(prompts), Heads(), batch_size=8)
    units, generator = every_head(), torch.Generator().manual_seed(1)
    values, gradients = curvature._gradients(engine, [0, 1, 2], units, generator)
    again = torch.Generator().manual_seed(1)
    p = prompts[0]
    logits = reference(lm, p.ids, {})[-1]
    chance = logits.softmax(-1)
    noise = torch.randn(3, len(chance), generator=again)[0]
    root = chance.sqrt()
    a = root * noise - chance * (root * noise).sum()
    assert torch.allclose(values[1, 2][0], seen(lm, p.ids, "head_z", 1)[0, :, 2], atol=1e-5)
    step = torch.zeros_like(values[1, 2][0])
    step[2, 0] = 1e-2
    moved = [
        reference(lm, p.ids, {("head_z", 1): lambda x, s=s: put(x, 2, x[:, :, 2] + s * step)})[-1] for s in (1, -1)
    ]
    slope = float(((moved[0] - moved[1]) @ a) / 2e-2)
    assert float(gradients[1, 2][0, 0, 2, 0]) == pytest.approx(slope, rel=0.02, abs=1e-4)


def test_fitted_constants_are_the_same_in_one_go_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prompts, units = build("llama"), random_prompts(9), every_head()
    engine = Engine(lm, random_prompts(4, seed=3), rows_of(random_prompts(4, seed=3)), Heads(), batch_size=4)
    losses, fitted = [], Optimal._fit
    monkeypatch.setattr(Optimal, "_fit", lambda self, *given: (losses.append(1), fitted(self, *given))[1])
    whole = Optimal(prompts)
    whole.fit(engine, units)
    once = len(losses)
    whole.fit(engine, units)
    assert len(losses) == once > 2, "the same units are fitted once"

    def work(keeper: Keeper[str]) -> Optimal:
        found = Optimal(prompts, keep=lambda name: keeper if name == "constants" else Keeper())
        found.fit(engine, units)
        return found

    losses.clear()
    again = in_pieces({"effects": tmp_path / "constants"}, work, (1, 2))
    assert len(losses) == once, "no pass is made twice"
    assert again.loss == whole.loss
    for mine, theirs in zip(again._constant, whole._constant, strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("over", ["all", "position"])
def test_means_are_the_same_in_one_go_and_in_pieces(over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prompts, units, passes, lens = build("llama"), random_prompts(9), every_head(), [], Heads()
    engines = [
        Engine(lm, some, rows_of(some), lens, batch_size=4) for some in (random_prompts(4, seed=s) for s in (3, 4))
    ]
    forward = mean.forward
    monkeypatch.setattr(mean, "forward", lambda *given, **more: (passes.append(1), forward(*given, **more))[1])

    def work(keeper: Keeper[str]) -> mean.Mean:
        found = mean.Mean(prompts, over, keep=lambda name: keeper)
        found.fit(engines[0], units)
        return found

    whole, once = work(Keeper()), len(passes)
    whole.fit(engines[1], units)
    assert len(passes) == once == 3, "other prompts are measured under the same means"
    other = Engine(build("gpt2"), random_prompts(4), rows_of(random_prompts(4)), Heads(), batch_size=4)
    whole.fit(other, units)
    assert len(passes) == 2 * once, "another model has means of its own"
    whole.fit(engines[0], units)
    passes.clear()
    again = in_pieces({"effects": tmp_path / "means"}, work, (1, 2))
    assert len(passes) == once, "no pass is made twice"
    assert all(torch.equal(again._means[layer], whole._means[layer]) for layer in whole._means)
