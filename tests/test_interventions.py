"""The engine for edits: equal to a slow reference on every family, exact where nothing changes, the same in any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from edited import HEADS, LAYERS, every_head, random_prompts, reference, seen
from small_models import MODELS, build
from torch import Tensor, nn

from circuits.activations.answers import rows_of
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.errors import UserError
from circuits.interventions.direct import Direct
from circuits.interventions.edits.base import Edit
from circuits.interventions.edits.counterfactual import Counterfactual
from circuits.interventions.edits.mean import Mean
from circuits.interventions.edits.optimal import Optimal
from circuits.interventions.edits.resample import Resample
from circuits.interventions.edits.restore import Restore
from circuits.interventions.edits.scale import Scale
from circuits.interventions.edits.zero import Zero
from circuits.interventions.effects import Effects, effects_of
from circuits.interventions.engine import Engine, Readings
from circuits.interventions.pairing import check_pairs, donors
from circuits.interventions.positions import ALL, DIFFERING, LAST, Positions, columns, parse
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.interventions.units.features import Features
from circuits.interventions.units.heads import Heads
from circuits.interventions.units.neurons import Neurons
from circuits.interventions.units.sites import Sites
from circuits.models.load import LM
from circuits.models.modules import module_at
from circuits.sae.modules import SAE, SAEConfig
from circuits.sae.modules.topk import TopKSAE as TopK


def measured(
    lm: LM, prompts: PromptSet, lens: Lens, units: list[Unit], edit: Edit, *, batch: int = 4, base: str = "clean",
    span: bool = False, watch: Direct | None = None, donor: tuple[tuple[int, ...] | None, ...] = (),
) -> Effects:  # fmt: skip
    rows = rows_of(prompts, base=base, span=span)  # type: ignore[arg-type]
    engine = Engine(lm, prompts, rows, lens, batch_size=batch, watch=watch, donor=donor)
    return effects_of(engine.measure(units, edit), units, edit.name, prompts, rows)


def difference(logits: Tensor, prompts: PromptSet, i: int) -> float:
    """Target − foil at the last token of prompt i."""
    p = prompts[i]
    z = logits[len(p.ids) - 1]
    return float(z[p.target_ids[0]] - z[p.foil_ids[0]])


def put(x: Tensor, head: int, value: Tensor | float) -> Tensor:
    new = x.clone()
    new[:, :, head] = value
    return new


@pytest.mark.parametrize("family", MODELS)
def test_every_kind_of_edit_of_a_head_equals_plain_hooks_on_one_prompt(family: str) -> None:
    lm, prompts = build(family), random_prompts()
    units = every_head()
    others = random_prompts(6, seed=9)
    whole = torch.cat([seen(lm, p.ids, "head_z", 1)[0] for p in others])
    donor = tuple(prompts[j].ids for j in (4, 5, 6, 3, 0, 1, 2))
    cases: list[tuple[Edit, Callable[[int], Tensor | float]]] = [
        (Zero(), lambda i: 0.0),
        (Counterfactual(), lambda i: seen(lm, prompts[i].corrupt_ids or (), "head_z", 1)[:, :, 2]),
        (Resample(), lambda i: seen(lm, donor[i], "head_z", 1)[:, :, 2]),
        (Mean(others), lambda i: whole.mean(0)[2]),
        (Scale(-1.5), lambda i: -1.5 * seen(lm, prompts[i].ids, "head_z", 1)[:, :, 2]),
    ]
    for edit, value in cases:
        equal = [i for i in range(len(prompts)) if edit.name != "resample" or len(donor[i]) == len(prompts[i].ids)]
        found = measured(lm, prompts, Heads(), units, edit, donor=donor)
        for i in equal:
            new = value(i)
            expected = reference(lm, prompts[i].ids, {("head_z", 1): lambda x, v=new: put(x, 2, v)})
            assert found.values["logit_diff"][HEADS + 2, i] == pytest.approx(difference(expected, prompts, i), abs=2e-4)


@pytest.mark.parametrize("family", MODELS)
def test_no_number_depends_on_the_batch_size(family: str) -> None:
    lm, prompts, units = (
        build(family),
        random_prompts(),
        [*every_head(), Unit("two", (Place(0, (1,)), Place(2, (0, 3))))],
    )
    one, three, all_ = (measured(lm, prompts, Heads(), units, Counterfactual(), batch=n) for n in (1, 3, 64))
    for name, values in all_.values.items():
        for other in (one, three):
            np.testing.assert_allclose(other.values[name], values, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("batch", [2, 64])
def test_a_head_whose_output_rows_are_zero_has_no_effect_at_all(family: str, batch: int) -> None:
    lm, prompts = build(family), random_prompts()
    block = module_at(lm.model, lm.family.blocks)[1]
    projection, width = module_at(block, lm.family.taps["head_z"].module), lm.dims.head_dim
    with torch.no_grad():
        rows = projection.weight if family == "gpt2" else projection.weight.T
        rows[2 * width : 3 * width] = 0
    donor = tuple(prompts[j].ids for j in (4, 5, 6, 3, 0, 1, 2))
    for edit in (Zero(), Counterfactual(), Resample(), Mean(prompts), Scale(3.0), Optimal(prompts, steps=2)):
        found = measured(lm, prompts, Heads(), every_head(), edit, batch=batch, donor=donor, watch=Direct())
        at = HEADS + 2
        for name in ("effect", "p_drop", "kl", "flip", "direct", "direct_frozen"):
            assert (found.values[name][at] == 0).all(), (edit.name, name)
        assert (found.values["top1_error"][at] == found.base["top1_error"]).all()


@pytest.mark.parametrize("family", MODELS)
def test_zeroing_a_head_is_zeroing_its_rows_of_the_output_projection(family: str) -> None:
    lm, prompts = build(family), random_prompts()
    found = measured(lm, prompts, Heads(), every_head(), Zero())
    block = module_at(lm.model, lm.family.blocks)[2]
    projection, width = module_at(block, lm.family.taps["head_z"].module), lm.dims.head_dim
    with torch.no_grad():
        rows = projection.weight if family == "gpt2" else projection.weight.T
        rows[width : 2 * width] = 0
    for i, p in enumerate(prompts):
        assert found.values["logit_diff"][2 * HEADS + 1, i] == pytest.approx(
            difference(reference(lm, p.ids, {}), prompts, i), abs=1e-4
        )


@pytest.mark.parametrize("family", MODELS)
def test_patching_all_positions_gives_the_other_prompts_logits_and_only_the_last_does_not(family: str) -> None:
    lm, prompts = build(family), random_prompts()
    for base in ("clean", "corrupt"):
        other = "corrupt" if base == "clean" else "clean"
        units = [Unit(f"L{layer}", (Place(layer),)) for layer in range(LAYERS)]
        last = [replace(unit, name=f"{unit.name} last", positions=LAST) for unit in units]
        patched = measured(lm, prompts, Sites("resid_post"), [*units, *last], Counterfactual(), base=base)
        source = measured(lm, prompts, Sites("resid_post"), [Unit("sham", ())], Zero(), base=other)
        for layer in range(LAYERS):
            np.testing.assert_allclose(patched.values["logit_diff"][layer], source.base["logit_diff"], atol=1e-5)
        assert np.abs(patched.values["logit_diff"][LAYERS] - source.base["logit_diff"]).max() > 1e-3
        np.testing.assert_allclose(
            patched.values["logit_diff"][-1], source.base["logit_diff"], atol=1e-5
        )  # nothing follows


def test_low_memory_changes_no_number_and_keeps_less() -> None:
    lm, prompts, units = build("llama"), random_prompts(), every_head()
    rows = rows_of(prompts)
    whole, low = (Engine(lm, prompts, rows, Heads(), batch_size=4, low_memory=given) for given in (False, True))
    a, b = (engine.measure(units, Counterfactual()) for engine in (whole, low))
    for name in a.values:
        assert torch.equal(a.values[name].nan_to_num(), b.values[name].nan_to_num())
    assert 0 < low.kept < whole.kept == whole.kept_whole and low.kept_whole >= low.kept * 2


def test_the_largest_batch_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.interventions import batching

    lm, prompts = build("llama"), random_prompts(20)
    engine = Engine(lm, prompts, rows_of(prompts), Heads(), batch_size=1)
    assert batching.largest_batch(engine, every_head(), Zero(), 20) == 20
    took = batching._peak

    def tight(engine: Engine, members: list[int], units: list[Unit], edit: Edit) -> int:
        if len(members) > 6:
            raise torch.OutOfMemoryError
        return took(engine, members, units, edit)

    monkeypatch.setattr(batching, "_peak", tight)
    assert batching.largest_batch(engine, every_head(), Zero(), 20) == 4


def test_a_sham_changes_nothing_at_all() -> None:
    for batch in (1, 5, 64):
        lm, prompts = build("qwen2"), random_prompts()
        units = [Unit("sham", ()), *every_head()]
        found = measured(lm, prompts, Heads(), units, Scale(1.0), batch=batch)
        for name in ("effect", "kl", "p_drop", "flip"):
            assert (found.values[name] == 0).all()


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_whole_answers_of_one_token_are_the_first_token(base: str) -> None:
    lm, units = build("mistral"), every_head()
    prompts = random_prompts()
    longer = random_prompts(answers=(2, 3))
    first = measured(lm, prompts, Heads(), units, Zero(), base=base)
    whole = measured(
        lm,
        PromptSet((*prompts, *(replace(p, id=f"long {p.id}") for p in longer))),
        Heads(),
        units,
        Zero(),
        base=base,
        span=True,
    )
    n = len(prompts)
    np.testing.assert_allclose(whole.values["seq_logprob_diff"][:, :n], first.values["logit_diff"], atol=1e-5)
    np.testing.assert_allclose(whole.values["kl"][:, :n], first.values["kl"], atol=1e-5)
    p = longer[0]
    ids = p.ids if base == "clean" else p.corrupt_ids or ()

    def total(answer: tuple[int, ...]) -> float:
        logp = reference(lm, ids + answer, {("head_z", 2): lambda x: put(x, 1, 0.0)}).log_softmax(-1)
        return sum(float(logp[len(ids) - 1 + j, token]) for j, token in enumerate(answer))

    assert whole.values["seq_logprob_diff"][2 * HEADS + 1, n] == pytest.approx(
        total(p.target_ids) - total(p.foil_ids), abs=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_is_zero_of_itself_and_finite_at_half_precision(dtype: torch.dtype) -> None:
    lm, prompts = build("gpt2", dtype), random_prompts()
    with torch.no_grad():
        lm.model.lm_head.weight *= 40  # probabilities that half precision would round to 0
    found = measured(lm, prompts, Heads(), [Unit("sham", ()), *every_head()], Zero())
    assert (found.values["kl"][0] == 0).all() and np.isfinite(found.values["kl"]).all() and found.values["kl"].max() > 0


def test_flips_are_told_from_errors() -> None:
    lm, prompts = build("llama"), random_prompts()
    top = [int(reference(lm, p.ids, {})[len(p.ids) - 1].argmax()) for p in prompts]
    right = PromptSet(
        tuple(replace(p, target_ids=(t,), foil_ids=((t + 1) % 50,)) for p, t in zip(prompts, top, strict=True))
    )
    wrong = PromptSet(
        tuple(replace(p, target_ids=((t + 1) % 50,), foil_ids=(t,)) for p, t in zip(prompts, top, strict=True))
    )
    for given, error in ((right, 0.0), (wrong, 1.0)):
        found = measured(lm, given, Heads(), every_head(), Zero())
        assert (found.base["top1_error"] == error).all()
        assert (found.values["flip"] == (found.values["top1_error"] if error == 0 else 0)).all()
    assert measured(lm, right, Heads(), every_head(), Zero()).values["flip"].max() == 1


def test_means_leave_padding_out_and_follow_positions_and_factors() -> None:
    lm, prompts = build("qwen3"), random_prompts()
    z = [seen(lm, p.ids, "head_z", 1)[0, :, 3] for p in prompts]
    expected = {
        "all": [torch.cat(z).mean(0).expand(len(p.ids), -1) for p in prompts],
        "position": [
            torch.stack([torch.stack([v[j] for v in z if len(v) > j]).mean(0) for j in range(len(p.ids))])
            for p in prompts
        ],
        "factor:half": [
            torch.cat([v for v, q in zip(z, prompts, strict=True) if q.factors == p.factors])
            .mean(0)
            .expand(len(p.ids), -1)
            for p in prompts
        ],
    }
    for over, values in expected.items():
        found = measured(lm, prompts, Heads(), every_head(), Mean(prompts, over))
        for i, p in enumerate(prompts):
            logits = reference(lm, p.ids, {("head_z", 1): lambda x, v=values[i]: put(x, 3, v)})
            assert found.values["logit_diff"][HEADS + 3, i] == pytest.approx(difference(logits, prompts, i), abs=2e-4)
    with pytest.raises(UserError, match="no such factor"):
        measured(lm, prompts, Heads(), every_head(), Mean(prompts, "factor:colour"))


def test_an_optimal_constant_costs_less_than_the_mean_where_it_was_fitted() -> None:
    lm, prompts = build("gpt2"), random_prompts(16)
    optimal = Optimal(prompts, steps=60, rows=16)
    fitted = measured(lm, prompts, Heads(), every_head(), optimal, batch=32)
    mean = measured(lm, prompts, Heads(), every_head(), Mean(prompts), batch=32)
    zero = measured(lm, prompts, Heads(), every_head(), Zero(), batch=32)
    gap = {e.edit: e.values["kl"].mean(1) for e in (fitted, mean, zero)}
    assert (gap["optimal"] < np.minimum(gap["mean"], gap["zero"])).all()


def test_a_rescue_gives_back_what_the_run_without_edits_had() -> None:
    lm, prompts = build("llama"), random_prompts()
    unit = Unit("L0.H1+L1.H2 keep L1.H2", (Place(0, (1,)),), restored=(Place(1, (2,)),))
    found = measured(lm, prompts, Heads(), [unit], Restore())
    for i, p in enumerate(prompts):
        kept = seen(lm, p.ids, "head_z", 1)[:, :, 2]
        edits = {("head_z", 0): lambda x: put(x, 1, 0.0), ("head_z", 1): lambda x, v=kept: put(x, 2, v)}
        expected = difference(reference(lm, p.ids, edits), prompts, i)
        assert found.values["logit_diff"][0, i] == pytest.approx(expected, abs=1e-4)


def test_neurons_and_positions_are_edited_where_they_are_named() -> None:
    lm, prompts = build("qwen2"), random_prompts()
    at = Positions((-2,))
    neuron = measured(lm, prompts, Neurons(), [Unit("L1.N7", (Place(1, (7,)),), at)], Zero())
    site = measured(lm, prompts, Sites("mlp_out"), [Unit("L1", (Place(1),), at)], Zero())
    for i, p in enumerate(prompts):
        place = len(p.ids) - 2

        def dead(x: Tensor, place: int = place) -> Tensor:
            x = x.clone()
            x[:, place, 7] = 0
            return x

        def gone(x: Tensor, place: int = place) -> Tensor:
            x = x.clone()
            x[:, place] = 0
            return x

        for found, edits in ((neuron, {("mlp_act", 1): dead}), (site, {("mlp_out", 1): gone})):
            expected = difference(reference(lm, p.ids, edits), prompts, i)
            assert found.values["logit_diff"][0, i] == pytest.approx(expected, abs=1e-4)


def sae_of(width: int, d_sae: int = 40, k: int = 6) -> SAE:
    generator = torch.Generator().manual_seed(4)
    sae = TopK(SAEConfig(width, d_sae, k=k))
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.3 if name.startswith("W") else 0.05)
    return sae


def test_features_are_edited_by_their_difference_and_the_rest_of_h_stays() -> None:
    lm, prompts = build("llama"), random_prompts()
    sae = sae_of(lm.dims.width)
    items = (3, 11, 20)
    found = measured(lm, prompts, Features("resid_post", {1: sae}), [Unit("g", (Place(1, items),))], Scale(-1.0))
    for i, p in enumerate(prompts):

        def inverted(x: Tensor) -> Tensor:
            a = sae.encode(x)
            return x + sum(-2 * a[..., j, None] * sae.W_dec[j] for j in items)

        expected = difference(reference(lm, p.ids, {("resid_post", 1): inverted}), prompts, i)
        assert found.values["logit_diff"][0, i] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="transcoder"):
        Features("resid_post", {1: TopK(SAEConfig(8, 16, k=2, d_out=8))})


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "gpt_neox"])
def test_where_nothing_reads_a_head_its_direct_effect_is_its_total_effect(family: str) -> None:
    lm, prompts = build(family), random_prompts()
    blocks = module_at(lm.model, lm.family.blocks)
    with torch.no_grad():  # whatever could read the last layer's heads before the logits: its MLP
        out = module_at(blocks[-1], lm.family.taps["mlp_act"].module)
        out.weight.zero_()
        if out.bias is not None:
            out.bias.zero_()
    found = measured(lm, prompts, Heads(), every_head(), Zero(), watch=Direct())
    last = slice((LAYERS - 1) * HEADS, None)
    np.testing.assert_allclose(found.values["direct"][last], found.values["effect"][last], atol=2e-4)
    assert np.abs(found.values["direct"][:HEADS] - found.values["effect"][:HEADS]).max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_the_frozen_norm_divides_by_what_it_divides_without_edits(family: str) -> None:
    from circuits.models.unembed import frozen_difference, logit_difference

    lm = build(family)
    generator = torch.Generator().manual_seed(0)
    r, change = torch.randn(5, lm.dims.width, generator=generator), torch.randn(5, lm.dims.width, generator=generator)
    target, foil = torch.arange(5), torch.arange(10, 15)
    norm = module_at(lm.model, lm.family.final_norm)
    centre = r.mean(-1, keepdim=True) if family == "gpt2" else torch.zeros(5, 1)
    eps = 1e-5 if family == "gpt2" else 1e-6
    size = ((r - centre).square().mean(-1, keepdim=True) + eps).sqrt()
    weight = norm.weight.detach() + (1 if family == "gemma3_text" else 0)
    moved = change - (change.mean(-1, keepdim=True) if family == "gpt2" else 0)
    head = module_at(lm.model, lm.family.lm_head).weight.detach()
    expected = ((moved / size * weight) * (head[target] - head[foil])).sum(-1)
    torch.testing.assert_close(frozen_difference(lm, r, change, target, foil), expected, atol=1e-4, rtol=1e-4)
    logits = norm(r) @ head.T
    plain = logits.gather(1, target[:, None]) - logits.gather(1, foil[:, None])
    torch.testing.assert_close(logit_difference(lm, r, target, foil), plain[:, 0].detach(), atol=1e-4, rtol=1e-4)


class _Stopped(BaseException):
    pass


def test_work_that_was_stopped_goes_on_with_the_same_numbers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lm, prompts, units = build("llama"), random_prompts(9), every_head()
    rows = rows_of(prompts)

    def run(stop_at: int) -> Readings:
        told: list[int] = []

        def stopping() -> bool:
            return len(told) >= stop_at

        def stop() -> None:
            raise _Stopped

        keeper = Keeper(
            {"effects": tmp_path / "kept.safetensors"}, stopping=stopping, stop=stop, tell=lambda d, n: told.append(d)
        )
        found = Engine(lm, prompts, rows, Heads(), batch_size=4).measure(units, Zero(), keeper=keeper)
        if stop_at > 1000:
            passes.append(len(told))
        return found

    passes: list[int] = []
    whole = Engine(lm, prompts, rows, Heads(), batch_size=4).measure(units, Zero())
    for stop_at in (3, 9):
        with pytest.raises(_Stopped):
            run(stop_at)
    found = run(10_000)
    for name in whole.values:
        assert torch.equal(found.values[name].nan_to_num(), whole.values[name].nan_to_num())
        assert torch.equal(found.base[name].nan_to_num(), whole.base[name].nan_to_num())


def test_donors_are_of_another_group_and_of_equal_length_where_one_is() -> None:
    prompts = PromptSet(tuple(replace(p, group="ab"[i % 2]) for i, p in enumerate(random_prompts(9, lengths=3))))
    found, without = donors(prompts, seed=0)
    assert not without and found == donors(prompts, seed=0)[0]
    for p, i in zip(prompts, found, strict=True):
        assert i is not None and prompts[i].group != p.group and len(prompts[i].ids) >= len(p.ids)
    alone = PromptSet((*prompts, replace(prompts[0], id="long", group="c", ids=(1,) * 12)))
    assert donors(alone, seed=0)[1] == ["long"]


def test_positions_are_found_by_number_words_factor_and_difference() -> None:
    p = replace(random_prompts(1)[0], ids=(1, 2, 3, 4, 5), corrupt_ids=(1, 9, 3, 4, 8), factors={"name": "cd"})
    spelt = {1: " a", 2: "b", 3: " c", 4: "d", 5: " e"}

    def pieces(ids) -> str:  # type: ignore[no-untyped-def]
        return "".join(spelt[i] for i in ids)

    cases = {"all": (0, 1, 2, 3, 4), "last": (4,), "differing": (1, 4), "factor:name": (2, 3), "text:ab": (0, 1)}
    for spec, expected in cases.items():
        assert columns(parse(spec), p, 5, pieces) == expected
    assert columns(parse([0, -2]), p, 5, pieces) == (0, 3)
    assert columns(parse(-6), p, 5, pieces) is None  # not there in so short a prompt
    assert (parse("last"), parse("all"), parse("differing")) == (LAST, ALL, DIFFERING)
    for wrong in ("first", "text:", 1.5, [], ["a"], True):
        with pytest.raises(UserError, match="choices"):
            parse(wrong)
    for spec, said in (("text:zebra", "spell"), ("factor:colour", "no factor colour; its factors: name")):
        with pytest.raises(UserError, match=said):
            columns(parse(spec), p, 5, pieces)


def test_pairs_of_unlike_lengths_are_matched_from_the_end_or_refused() -> None:
    lm = build("llama")
    prompts = PromptSet(tuple(replace(p, corrupt_ids=(p.corrupt_ids or ())[1:]) for p in random_prompts()))
    with pytest.raises(UserError, match="positions=last"):
        check_pairs(prompts, from_end=False)
    check_pairs(prompts, from_end=True)
    found = measured(lm, prompts, Sites("resid_post"), [Unit("L1", (Place(1),), LAST)], Counterfactual())
    for i, p in enumerate(prompts):
        value = seen(lm, p.corrupt_ids or (), "resid_post", 1)[:, -1]

        def patched(x: Tensor, value: Tensor = value) -> Tensor:
            x = x.clone()
            x[:, -1] = value
            return x

        expected = difference(reference(lm, p.ids, {("resid_post", 1): patched}), prompts, i)
        assert found.values["logit_diff"][0, i] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_edited_is_one_line() -> None:
    lm, prompts = build("llama"), random_prompts()
    cases = [
        ([], "nothing to edit"),
        ([Unit("L0.H9", (Place(0, (9,)),))], r"head 9 is out of range: layer 0 has 4 \(0-3\)"),
        ([Unit("L7.H0", (Place(7, (0,)),))], "layer 7 is out of range"),
        ([Unit("a", (Place(0, (0,)),)), Unit("a", (Place(0, (1,)),))], "a is named twice"),
    ]
    for units, said in cases:
        with pytest.raises(UserError, match=said):
            measured(lm, prompts, Heads(), units, Zero())
    with pytest.raises(UserError, match="begin with the same token"):
        rows_of(PromptSet(tuple(replace(p, foil_ids=p.target_ids) for p in prompts)))
    with pytest.raises(UserError, match="has no corrupt prompt"):
        rows_of(PromptSet(tuple(replace(p, corrupt_ids=None) for p in prompts)), base="corrupt")


def test_a_linear_toy_has_no_synergy() -> None:
    from circuits.interventions.groups import synergies

    lm, prompts = build("llama"), random_prompts(8)
    with torch.no_grad():  # heads of the last layer write straight into logits that no norm divides
        module_at(module_at(lm.model, lm.family.blocks)[-1], "mlp.down_proj").weight.zero_()
    lm.model.model.norm = nn.Identity()
    singles = [Unit(f"L2.H{h}", (Place(2, (h,)),)) for h in range(HEADS)]
    groups = [Unit("pair", (Place(2, (0, 1)),)), Unit("trio", (Place(2, (0, 2, 3)),))]
    found = measured(lm, prompts, Heads(), [*singles, *groups], Zero())
    table = synergies(found, cluster=[p.id for p in prompts], seed=0, resamples=200)
    assert list(table["unit"]) == ["pair", "trio"]
    np.testing.assert_allclose(table["synergy"], 0, atol=1e-4)
    np.testing.assert_allclose(table["additivity"], 1, atol=1e-3)
