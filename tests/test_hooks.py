"""Capture, edits, early stop and restart on random models of every family, against the models' own outputs."""

from __future__ import annotations

import pytest
import torch
from small_models import LAYERS, MODELS, VOCAB, build, every_site, rows

from circuits.errors import NonFinite, UserError
from circuits.model_input import ModelInput, position_ids
from circuits.models.hooks import Edit, check_finite, finite_rows, forward, make_prefix
from circuits.models.load import LM
from circuits.models.modules import module_at
from circuits.models.positions import last_positions
from circuits.models.sites import hook_name, site_width, sites_of


@pytest.fixture(scope="module", params=MODELS)
def lm(request) -> LM:
    return build(request.param)


def native(lm: LM, ids: torch.Tensor, mask: torch.Tensor, **kwargs):
    with torch.no_grad():
        return lm.model(
            input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False, **kwargs
        )


# What a site is


def test_every_site_has_the_width_of_dims_and_a_hook_name(lm):
    ids, mask = rows(7, 5)
    sites = forward(lm, ModelInput(ids, mask), capture=every_site(lm)).sites
    assert set(sites) == {(site, layer) for site in sites_of(lm.dims) for layer in range(LAYERS)}
    for (site, layer), tensor in sites.items():
        assert tensor.flatten(2).shape == (2, 7, site_width(lm.dims, site))
        assert hook_name(site, layer).startswith(f"blocks.{layer}.")
    assert sites["head_z", 0].shape == (2, 7, lm.dims.heads, lm.dims.head_dim)


def test_residual_stream_equals_output_hidden_states(lm):
    ids, mask = rows(7, 7)
    hidden = native(lm, ids, mask, output_hidden_states=True).hidden_states
    sites = forward(lm, ModelInput(ids, mask), capture=every_site(lm)).sites
    for layer in range(LAYERS):
        assert torch.equal(sites["resid_pre", layer], hidden[layer])
    for layer in range(LAYERS - 1):
        assert torch.equal(sites["resid_post", layer], hidden[layer + 1])
    normed = module_at(lm.model, lm.family.final_norm)(sites["resid_post", LAYERS - 1])
    assert torch.equal(normed, hidden[-1])


def test_the_sites_of_a_block_add_up(lm):
    ids, mask = rows(7, 5)
    s = forward(lm, ModelInput(ids, mask), capture=every_site(lm)).sites
    for layer in range(LAYERS):
        pre, attention, mlp, post = (s[site, layer] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        if lm.dims.parallel:
            assert torch.equal(post, mlp + attention + pre)
            continue
        assert torch.equal(s["resid_mid", layer], pre + attention)
        assert torch.equal(post, s["resid_mid", layer] + mlp)


# Edits


def test_an_identity_edit_at_every_site_leaves_logits_bit_equal(lm):
    ids, mask = rows(7, 5)
    plain = native(lm, ids, mask).logits
    sham = [Edit(site, layer, lambda x: x) for site in sites_of(lm.dims) for layer in range(LAYERS)]
    assert torch.equal(forward(lm, ModelInput(ids, mask), edits=sham, logits="all").logits, plain)
    assert torch.equal(
        forward(lm, ModelInput(ids, mask), edits=sham, capture=every_site(lm), logits="all").logits, plain
    )
    assert torch.equal(forward(lm, ModelInput(ids, mask), edits=sham, detach=False, logits="all").logits, plain)


def test_an_edit_reaches_everything_computed_from_the_site(lm):
    ids, mask = rows(7, 7)
    before = forward(lm, ModelInput(ids, mask), capture=every_site(lm)).sites
    for site in sites_of(lm.dims):
        shift = [Edit(site, 1, lambda x: x + 1.0)]
        after = forward(lm, ModelInput(ids, mask), capture=every_site(lm), edits=shift).sites
        assert torch.equal(after[site, 1], before[site, 1] + 1.0)
        if site == "attn_out" and not lm.dims.parallel:
            torch.testing.assert_close(after["resid_mid", 1], before["resid_mid", 1] + 1.0)
        if site == "resid_mid":  # both branches: the MLP's input and the stream that it is added to
            torch.testing.assert_close(after["resid_post", 1], before["resid_mid", 1] + 1.0 + after["mlp_out", 1])
        assert not torch.equal(after["resid_post", 1], before["resid_post", 1])
        assert torch.equal(after["resid_pre", 0], before["resid_pre", 0])


def test_zeroing_a_head_equals_zeroing_its_rows_of_the_output_projection(lm):
    ids, mask = rows(7, 5)
    head, layer, width = 2, 1, lm.dims.head_dim

    def zero(z: torch.Tensor) -> torch.Tensor:
        z[:, :, head] = 0  # in place, as people write it
        return z

    edited = forward(lm, ModelInput(ids, mask), edits=[Edit("head_z", layer, zero)], logits="all").logits
    weight = module_at(module_at(lm.model, lm.family.blocks)[layer], lm.family.taps["head_z"].module).weight
    part = (slice(head * width, (head + 1) * width), slice(None))  # GPT-2's Conv1D stores [in, out]
    part = part if lm.model.config.model_type == "gpt2" else part[::-1]
    kept = weight[part].clone()
    try:
        weight[part] = 0
        expected = native(lm, ids, mask).logits
    finally:
        weight[part] = kept
    torch.testing.assert_close(edited, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_patching_all_positions_reproduces_the_source_and_the_last_alone_does_not(lm, layer):
    clean, mask = rows(7, 7, seed=1)
    source, _ = rows(7, 7, seed=2)
    stream = forward(lm, ModelInput(source, mask), capture=[("resid_post", layer)]).sites["resid_post", layer]
    expected = native(lm, source, mask).logits

    def last_only(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :-1], stream[:, -1:]], dim=1)

    whole = forward(
        lm, ModelInput(clean, mask), edits=[Edit("resid_post", layer, lambda _: stream)], logits="all"
    ).logits
    part = forward(lm, ModelInput(clean, mask), edits=[Edit("resid_post", layer, last_only)], logits="all").logits
    assert torch.equal(whole, expected)
    assert not torch.allclose(part, expected, atol=1e-3)


def test_edits_apply_in_order_and_must_keep_the_shape(lm):
    ids, mask = rows(5)
    twice = [Edit("mlp_out", 0, lambda x: x * 0), Edit("mlp_out", 0, lambda x: x + 2)]
    assert (forward(lm, ModelInput(ids, mask), capture=[("mlp_out", 0)], edits=twice).sites["mlp_out", 0] == 2).all()
    with pytest.raises(UserError, match=r"edit at mlp_out layer 0 returned \(1, 4, 32\)"):
        forward(lm, ModelInput(ids, mask), logits="last", edits=[Edit("mlp_out", 0, lambda x: x[:, 1:])])


def test_a_capture_is_not_changed_by_a_later_edit_or_by_the_callers_tensor(lm):
    ids, mask = rows(5)
    plain = forward(lm, ModelInput(ids, mask), capture=[("resid_post", 0)]).sites["resid_post", 0]
    edit = Edit("resid_pre", 1, lambda x: x.zero_())
    assert torch.equal(
        forward(lm, ModelInput(ids, mask), capture=[("resid_post", 0)], edits=[edit], logits="last").sites[
            "resid_post", 0
        ],
        plain,
    )
    source = plain + 1
    kept = forward(
        lm, ModelInput(ids, mask), capture=[("resid_pre", 1)], edits=[Edit("resid_pre", 1, lambda _: source)]
    )
    source.zero_()
    assert torch.equal(kept.sites["resid_pre", 1], plain + 1)


def test_hooks_and_skipped_layers_are_undone_after_an_exception(lm):
    ids, mask = rows(7, 5)
    plain = native(lm, ids, mask).logits
    prefix = make_prefix(lm, ModelInput(ids, mask), 1)

    def hooks() -> list[object]:  # transformers keeps some of its own
        return [h for m in lm.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]

    before = hooks()

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("edit failed")

    with pytest.raises(RuntimeError, match="edit failed"):
        forward(
            lm,
            ModelInput(ids, mask),
            capture=[("mlp_act", 1)],
            edits=[Edit("mlp_out", 2, fail)],
            logits="last",
            prefix=prefix,
        )
    assert hooks() == before
    assert not any("forward" in module.__dict__ for module in lm.model.modules())
    assert torch.equal(native(lm, ids, mask).logits, plain)


# Padding, positions


def test_nothing_depends_on_padding_side_batch_size_or_batch_order(lm):
    lengths, captured = (9, 4, 6), [("resid_post", 2), ("head_z", 1)]
    right = forward(lm, ModelInput(*rows(*lengths)), capture=captured, positions=3, logits="last")
    left = forward(lm, ModelInput(*rows(*lengths, side="left")), capture=captured, positions=3, logits="last")
    ids, mask = rows(*lengths)
    order = torch.tensor([2, 0, 1])
    shuffled = forward(lm, ModelInput(ids[order], mask[order]), capture=captured, positions=3, logits="last")
    alone = [
        forward(lm, ModelInput(ids[i : i + 1, :n], mask[i : i + 1, :n]), capture=captured, positions=3, logits="last")
        for i, n in enumerate(lengths)
    ]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(left.logits, right.logits, **close)
    torch.testing.assert_close(shuffled.logits, right.logits[order], **close)
    torch.testing.assert_close(torch.cat([r.logits for r in alone]), right.logits, **close)
    for key in captured:
        torch.testing.assert_close(left.sites[key], right.sites[key], **close)
        torch.testing.assert_close(shuffled.sites[key], right.sites[key][order], **close)
        torch.testing.assert_close(torch.cat([r.sites[key] for r in alone]), right.sites[key], **close)


def test_last_logits_are_those_of_the_last_valid_position(lm):
    ids, mask = rows(9, 4)
    everything = forward(lm, ModelInput(ids, mask), logits="all").logits
    last = forward(lm, ModelInput(ids, mask), logits="last").logits
    torch.testing.assert_close(last, torch.stack([everything[0, 8], everything[1, 3]]), atol=1e-5, rtol=1e-5)


def test_short_rows_are_left_filled_and_say_so(lm):
    ids, mask = rows(5, 2)
    full = forward(lm, ModelInput(ids, mask), capture=[("mlp_in", 1)]).sites["mlp_in", 1]
    for n in (3, 7):  # 7 is longer than the batch itself
        result = forward(lm, ModelInput(ids, mask), capture=[("mlp_in", 1)], positions=n)
        kept = result.sites["mlp_in", 1]
        assert kept.shape[:2] == result.valid.shape == result.index.shape == (2, n)
        assert result.valid.tolist() == [[i >= n - length for i in range(n)] for length in (5, 2)]
        assert result.index[1][result.valid[1]].tolist() == [0, 1]
        assert torch.equal(kept[1, -2:], full[1, :2]) and torch.equal(kept[0, -3:], full[0, 2:5])
        assert (kept[~result.valid] == 0).all()


def test_last_positions_follow_the_mask_even_with_holes():
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    kept = last_positions(mask, 2)
    assert kept.index.tolist() == [[2, 3], [3, 4]] and kept.all_valid
    assert position_ids(mask).tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 1]]


def test_what_is_kept_owns_no_more_memory_than_it_needs(lm):
    ids, mask = rows(16, 16)
    for positions in (2, None):
        for tensor in forward(lm, ModelInput(ids, mask), capture=every_site(lm), positions=positions).sites.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


# Early stop, unembedding, restart


def count_calls(module: torch.nn.Module, calls: list[str], name: str) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda *_: calls.append(name))


@pytest.mark.parametrize(("site", "ran"), [("resid_post", ["block 0", "block 1"]), ("resid_pre", ["block 0"])])
def test_no_later_layer_no_final_norm_and_no_unembedding_run_unasked(lm, site, ran):
    ids, mask = rows(7)
    calls: list[str] = []
    blocks = module_at(lm.model, lm.family.blocks)
    handles = [count_calls(block, calls, f"block {i}") for i, block in enumerate(blocks)]
    handles += [count_calls(module_at(lm.model, lm.family.final_norm), calls, "norm")]
    handles += [count_calls(module_at(lm.model, lm.family.lm_head), calls, "lm_head")]
    try:
        captured = [(site, 1), ("mlp_act", 0)]
        stopped = forward(lm, ModelInput(ids, mask), capture=captured)
        assert [call for call in calls if call != "block 1" or site == "resid_post"] == ran
        assert stopped.logits is None
        calls.clear()
        whole = forward(lm, ModelInput(ids, mask), capture=captured, logits="last")
        assert calls[-2:] == ["norm", "lm_head"] and "block 2" in calls
    finally:
        for handle in handles:
            handle.remove()
    assert all(torch.equal(stopped.sites[key], whole.sites[key]) for key in captured)


def test_the_unembedding_sees_one_position_per_row_for_last_logits(lm):
    seen: list[torch.Size] = []
    head = module_at(lm.model, lm.family.lm_head)
    handle = head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    try:
        assert forward(lm, ModelInput(*rows(7, 5)), logits="last").logits.shape == (2, VOCAB)
    finally:
        handle.remove()
    assert seen == [(2, 1, VOCAB)]


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("side", ["right", "left"])
def test_restarting_from_a_prefix_is_bit_equal(lm, layer, side):
    ids, mask = rows(7, 4, side=side)
    later = [(site, at) for site in sites_of(lm.dims) for at in range(layer, LAYERS)]
    edits = [Edit("head_z", LAYERS - 1, lambda z: z * 0.5)]
    prefix = make_prefix(lm, ModelInput(ids, mask), layer)
    whole = forward(lm, ModelInput(ids, mask), capture=later, edits=edits, logits="all")
    restarted = forward(lm, ModelInput(ids, mask), capture=later, edits=edits, logits="all", prefix=prefix)
    assert torch.equal(restarted.logits, whole.logits)
    assert all(torch.equal(restarted.sites[key], whole.sites[key]) for key in later)


def test_a_prefix_runs_only_the_later_layers_and_one_row_serves_a_batch(lm):
    ids, mask = rows(7)
    prefix = make_prefix(lm, ModelInput(ids, mask), 2)
    calls: list[str] = []
    blocks = module_at(lm.model, lm.family.blocks)
    handles = [count_calls(module_at(block, "mlp"), calls, f"mlp {i}") for i, block in enumerate(blocks)]
    try:
        many = forward(lm, ModelInput(ids.repeat(3, 1), mask.repeat(3, 1)), logits="last", prefix=prefix).logits
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["mlp 2"]
    torch.testing.assert_close(
        many, forward(lm, ModelInput(ids, mask), logits="last").logits.repeat(3, 1), atol=1e-5, rtol=1e-5
    )


def test_a_prefix_is_left_as_it_was_when_gradients_are_taken(lm):
    ids, mask = rows(7)
    prefix = make_prefix(lm, ModelInput(ids, mask), 1)
    result = forward(lm, ModelInput(ids, mask), capture=[("resid_pre", 1)], logits="last", prefix=prefix, detach=False)
    (gradient,) = torch.autograd.grad(result.logits.sum(), result.sites["resid_pre", 1])
    assert gradient.abs().sum() > 0 and not prefix.resid.requires_grad


# Refusals


def test_non_finite_activations_are_named():
    tensor = torch.zeros(3, 4, 2)
    check_finite(tensor, "resid_post", 5, [10, 11, 12])
    tensor[1, 2, 0] = float("nan")
    tensor[2, 0, 0] = float("inf")
    assert finite_rows(tensor).tolist() == [True, False, False]
    with pytest.raises(NonFinite, match="resid_post layer 5, sample 11 and 1 more"):
        check_finite(tensor, "resid_post", 5, torch.tensor([10, 11, 12]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"capture": [("resid_pots", 0)]}, "did you mean resid_post"),
        ({"capture": [("resid_post", 3)]}, r"layer 3 is out of range: the model has 3 layers \(0-2\)"),
        ({"capture": [("resid_post", -1)]}, "layer -1 is out of range"),
        ({"edits": [Edit("mlp_out", 9, lambda x: x)], "logits": "all"}, "layer 9 is out of range"),
        ({}, "nothing was asked"),
        ({"logits": "first"}, "choices: all last"),
        ({"capture": [("resid_post", 0)], "positions": 0}, "positions=0"),
    ],
)
def test_an_impossible_request_is_refused_in_one_line(lm, request_, message):
    with pytest.raises(UserError, match=message) as caught:
        forward(lm, ModelInput(*rows(5)), **request_)
    assert "\n" not in str(caught.value)


def test_impossible_rows_are_refused(lm):
    ids, mask = rows(5, 5)
    with pytest.raises(UserError, match="needs ids and mask"):
        forward(lm, ModelInput(ids, mask[:, 1:]), logits="last")
    with pytest.raises(UserError, match="33 tokens are more than the 32 positions"):
        forward(lm, ModelInput(*rows(33)), logits="last")
    with pytest.raises(UserError, match="row 1 of the batch holds no valid token"):
        forward(lm, ModelInput(ids, mask & torch.tensor([[True], [False]])), logits="last")
    prefix = make_prefix(lm, ModelInput(ids, mask), 1)
    with pytest.raises(UserError, match=r"resid_post layer 0 lies before the prefix"):
        forward(lm, ModelInput(ids, mask), capture=[("resid_post", 0)], prefix=prefix)
    with pytest.raises(UserError, match="make it from the same rows"):
        forward(lm, ModelInput(ids[:, 1:], mask[:, 1:]), logits="last", prefix=prefix)
