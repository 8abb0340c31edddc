"""Gradients at captured sites and through edits, against finite differences and against each other."""

from __future__ import annotations

import pytest
import torch
from small_models import MODELS, build, every_site, rows

from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM
from circuits.models.sites import sites_of


@pytest.fixture(scope="module", params=MODELS)
def lm(request) -> LM:
    return build(request.param)


@pytest.fixture(scope="module", params=MODELS)
def double(request) -> LM:
    return build(request.param, torch.float64)


def metric_of(logits: torch.Tensor) -> torch.Tensor:
    return (logits[:, 3] - logits[:, 4]).sum()


def test_gradients_agree_with_finite_differences(double):
    ids, mask = rows(6, 4)
    for site in sites_of(double.dims):
        key = (site, 1)
        result = forward(double, ModelInput(ids, mask), capture=[key], logits="last", detach=False)
        (gradient,) = torch.autograd.grad(metric_of(result.logits), result.sites[key])
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

        def at(step: float, site: str = site, direction: torch.Tensor = direction) -> float:
            edit = Edit(site, 1, lambda x: x + step * direction)
            return float(metric_of(forward(double, ModelInput(ids, mask), edits=[edit], logits="last").logits))

        step = 1e-3  # the rotary models' norms compute in float32: a smaller step would drown in their rounding
        expected = (at(step) - at(-step)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=5e-3, abs=5e-4), site


def test_one_backward_gives_the_gradient_at_all_sites_of_all_layers(lm):
    ids, mask = rows(6, 4)
    together = forward(lm, ModelInput(ids, mask), capture=every_site(lm), logits="last", detach=False)
    keys = list(together.sites)
    gradients = dict(
        zip(keys, torch.autograd.grad(metric_of(together.logits), list(together.sites.values())), strict=True)
    )
    for key in [("resid_pre", 0), ("attn_out", 1), ("head_z", 2), ("mlp_act", 0)]:
        alone = forward(lm, ModelInput(ids, mask), capture=[key], logits="last", detach=False)
        (expected,) = torch.autograd.grad(metric_of(alone.logits), alone.sites[key])
        torch.testing.assert_close(gradients[key], expected)
    # The stream's gradient is that of both its branches: direct and through the MLP.
    above = "resid_pre" if lm.dims.parallel else "resid_mid"
    through_mlp = gradients[above, 1] - gradients["resid_post", 1]
    torch.testing.assert_close(gradients["mlp_out", 1], gradients["resid_post", 1])
    assert through_mlp.abs().max() > 1e-4


@pytest.mark.parametrize("positions", [1, 3, 9])
def test_gradients_of_kept_positions_are_those_of_the_whole(lm, positions):
    ids, mask = rows(6, 4)
    keys = [(site, layer) for site in sites_of(lm.dims) for layer in (0, 2)]
    whole = forward(lm, ModelInput(ids, mask), capture=keys, logits="last", detach=False)
    part = forward(lm, ModelInput(ids, mask), capture=keys, logits="last", detach=False, positions=positions)
    torch.testing.assert_close(part.logits, whole.logits)
    full = torch.autograd.grad(metric_of(whole.logits), [whole.sites[key] for key in keys])
    some = torch.autograd.grad(metric_of(part.logits), [part.sites[key] for key in keys])
    for ours, all_positions in zip(some, full, strict=True):
        for row in range(2):
            at = part.index[row][part.valid[row]]
            torch.testing.assert_close(ours[row][part.valid[row]], all_positions[row, at], atol=1e-6, rtol=1e-4)
        assert (ours[~part.valid] == 0).all()


def test_edits_are_differentiable(lm):
    ids, mask = rows(6, 4)
    steer = torch.zeros(lm.dims.width, requires_grad=True)
    site = "resid_pre" if lm.dims.parallel else "resid_mid"
    edit = Edit(site, 1, lambda x: x + steer)
    result = forward(lm, ModelInput(ids, mask), capture=[(site, 1)], edits=[edit], logits="last", detach=False)
    by_steer, by_site = torch.autograd.grad(metric_of(result.logits), [steer, result.sites[site, 1]])
    torch.testing.assert_close(by_steer, by_site.sum((0, 1)))
    assert not forward(lm, ModelInput(ids, mask), edits=[edit], logits="last").logits.requires_grad
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lm.model.parameters())
