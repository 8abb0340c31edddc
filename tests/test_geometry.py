"""Geometric signatures: entropies are those of known Gaussians, the fast way is the slow one, controls are other heads."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, Cli
from prompt_sets import bpe
from small_models import LAYERS, MODELS, VOCAB, build
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.errors import NonFinite, UserError
from circuits.geometry import entropy
from circuits.geometry.controls import control_sets, how_many, smallest_p
from circuits.geometry.entropy import RIDGE, Fit
from circuits.geometry.names import METHODS, metrics_of
from circuits.geometry.passes import Passes, differing, output_entropy
from circuits.geometry.paths import paths
from circuits.geometry.signature import Measured, measure
from circuits.geometry.summary import p_values, summarise
from circuits.models.hooks import Edit, forward

SHAPES = [(12, 40), (64, 40), (40, 40), (2, 7)]


def gaussian(n: int, sigma: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(sigma.double())
    return torch.randn(n, len(sigma), generator=generator, dtype=torch.float64) @ root.T


def rows_of(n: int, width: int, seed: int = 1) -> Tensor:
    """Rows whose dimensions correlate and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator) * torch.linspace(0.1, 3, width)
    return torch.randn(n, width, generator=generator) @ mixed + torch.randn(width, generator=generator)


# -- entropies ---------------------------------------------------------------------------------------------------------


def ridged(x: Tensor) -> Tensor:
    """The slow, obvious covariance."""
    sigma = torch.cov(x.double().T)
    return sigma + RIDGE * sigma.trace() / len(sigma) * torch.eye(len(sigma), dtype=torch.float64)


def test_entropies_of_samples_with_a_known_covariance() -> None:
    sigma = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    fit = Fit.of(gaussian(40_000, sigma))
    assert entropy.full(fit) == pytest.approx(float(torch.logdet(sigma)) / 2, abs=0.02)
    assert entropy.diagonal(fit) == pytest.approx(float(sigma.diagonal().log().sum()) / 2, abs=0.02)
    flat = torch.diag(torch.tensor([9.0, 4.0, 1e-4, 1e-4]))
    value, k = entropy.subspace(Fit.of(gaussian(40_000, flat)))
    assert k == 2 and value == pytest.approx(math.log(36) / 2, abs=0.02)


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_the_fast_way_is_the_slow_one(n: int, width: int) -> None:
    x, y = rows_of(n, width), rows_of(n, width, seed=2)
    a, b = Fit.of(x), Fit.of(y)
    slow = float(torch.logdet(ridged(x))) / 2
    assert entropy.full(a) == pytest.approx(slow, rel=1e-9)
    assert entropy.per_token(torch.stack([x, y], 1)) == pytest.approx((slow + float(torch.logdet(ridged(y))) / 2) / 2)
    v = x.double().var(0)
    assert entropy.diagonal(a) == pytest.approx(float((v + RIDGE * v.mean()).log().sum()) / 2, rel=1e-9)
    held = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0).clamp(min=0)
    k = next(k for k in range(1, width + 1) if held[:k].sum() >= 0.95 * held.sum())
    expected = float((held[:k] + RIDGE * held[:k].mean()).log().sum()) / 2
    assert entropy.subspace(a) == (pytest.approx(expected, rel=1e-9), k)
    p, q, shift = ridged(x), ridged(y), (y.double().mean(0) - x.double().mean(0))
    inverse = torch.linalg.inv(q)
    kl = ((inverse @ p).trace() + shift @ inverse @ shift - width + torch.logdet(q) - torch.logdet(p)) / 2
    assert entropy.gaussian_kl(a, b) == pytest.approx(float(kl), rel=1e-6)
    assert entropy.gaussian_kl(a, a) == pytest.approx(0, abs=1e-8)


def test_kl_of_known_gaussians() -> None:
    """Unit variance, means three apart: 9/2 nats, as far as the ridge lets it."""
    x = gaussian(20_000, torch.eye(2))
    shifted = x + torch.tensor([3.0, 0.0])
    assert entropy.gaussian_kl(Fit.of(x), Fit.of(shifted)) == pytest.approx(4.5, abs=0.1)


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_scaling_by_c_adds_a_logarithm_a_dimension(n: int, width: int) -> None:
    x, c = rows_of(n, width), 2.5
    before, after = Fit.of(x), Fit.of(c * x.double())
    for measured in (entropy.full, entropy.diagonal):
        assert measured(after) - measured(before) == pytest.approx(width * math.log(c), rel=1e-6)
    (one, k), (other, same) = entropy.subspace(before), entropy.subspace(after)
    assert same == k and other - one == pytest.approx(k * math.log(c), rel=1e-6)
    together = entropy.per_token(c * x.double()[:, None]) - entropy.per_token(x[:, None])
    assert together == pytest.approx(width * math.log(c), rel=1e-5)


def test_the_subspace_has_a_largest_dimension() -> None:
    assert entropy.subspace(Fit.of(torch.randn(600, 400, generator=torch.Generator().manual_seed(0))))[1] == 256
    with pytest.raises(ValueError, match="1 rows have no covariance"):
        Fit.of(torch.ones(1, 3))
    assert math.isnan(entropy.per_token(torch.ones(4, 0, 3)))


def test_output_entropy_has_its_known_values() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [0.0, 0.0, -math.inf, -math.inf]])
    assert output_entropy(logits).tolist() == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-6)


# -- paths -------------------------------------------------------------------------------------------------------------


def test_lengths_and_angles_by_hand() -> None:
    line = torch.tensor([[0.0, 0], [1, 0], [3, 0], [6, 0]])
    stairs = torch.tensor([[0.0, 0], [2, 0], [2, 2], [4, 2]])
    found = paths(torch.stack([line, stairs]), torch.ones(2, 4, dtype=torch.bool))
    assert found["step_length"].tolist() == [2, 2]
    assert found["turning_angle"].tolist() == pytest.approx([0, math.pi / 2], abs=1e-6)
    back = paths(torch.tensor([[[0.0], [1], [0]]]), torch.ones(1, 3, dtype=torch.bool))
    assert back["turning_angle"].item() == pytest.approx(math.pi)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_steps_are_counted_from_the_first_token_and_padding_takes_no_part(side: str) -> None:
    """Seven steps of length 1 … 7, in a row of ten columns."""
    path, columns = torch.tensor([0.0, 1, 3, 6, 10, 15, 21, 28]), torch.full((1, 10, 1), torch.nan)
    where = slice(0, 8) if side == "right" else slice(2, 10)
    columns[0, where, 0] = path
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, where] = True
    found = {name: values.item() for name, values in paths(columns, mask).items()}
    assert found == pytest.approx(
        {"step_length": 4, "step_length_first": 3, "step_length_rest": 6.5, "turning_angle": 0}
    )
    short = paths(torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    assert all(math.isnan(values.item()) for values in short.values())


def test_positions_are_those_that_all_prompts_have_and_at_which_they_differ() -> None:
    assert differing([(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 9, 9)]) == range(2, 3)
    assert differing([(1, 2), (1, 2, 3)]) == range(2, 2), "one begins as the other: nothing to average"


# -- controls and p-values ---------------------------------------------------------------------------------------------


def test_controls_are_other_heads_and_none_is_drawn_twice() -> None:
    drawn, every = control_sets([2, 4, 7], 16, 50, seed=3)
    assert not every and len(drawn) == len(set(drawn)) == 50 == how_many(16, 3, 50)
    assert all(len(heads) == 3 and not {2, 4, 7} & set(heads) and heads == tuple(sorted(heads)) for heads in drawn)
    assert control_sets([2, 4, 7], 16, 50, seed=3)[0] == drawn != control_sets([2, 4, 7], 16, 50, seed=4)[0]
    assert control_sets([2, 4], 6, 50, seed=0) == (list(combinations([0, 1, 3, 5], 2)), True)
    assert control_sets([2, 4], 6, 6, seed=0)[1] and not control_sets([2, 4], 6, 5, seed=0)[1]
    with pytest.raises(UserError, match="3 of 4 heads leave 1, too few to draw 3 others"):
        control_sets([0, 1, 2], 4, 5, seed=0)


def test_p_values_count_the_observed_one_and_are_at_most_1() -> None:
    drawn = np.arange(9.0)
    assert p_values(100.0, drawn) == pytest.approx({"p_lower": 1, "p_upper": 0.1, "p_two_sided": 0.2})
    assert p_values(-1.0, drawn)["p_lower"] == pytest.approx(0.1)
    assert p_values(4.0, drawn) == pytest.approx({"p_lower": 0.6, "p_upper": 0.6, "p_two_sided": 1})
    assert smallest_p(9) == (0.1, 0.2) and smallest_p(50)[1] < 0.05
    assert all(math.isnan(p) for p in p_values(math.nan, drawn).values())


def test_a_summary_subtracts_the_baseline_and_keeps_every_control() -> None:
    values = np.array([[1.0, 5], [4, 5], [2, math.nan], [0, math.nan]])
    found = summarise(["full", "subspace_k"], values, 2)
    assert found["deltas"] == {"full": 3, "subspace_k": 0} and found["baseline"]["full"] == 1
    control = found["random_control"]
    assert list(control) == ["full"], "the number of dimensions is not tested"
    assert control["full"]["values"] == [1, -1] and control["full"]["std"] == pytest.approx(math.sqrt(2))
    assert control["full"]["p_upper"] == pytest.approx(1 / 3) and control["full"]["q"] == pytest.approx(2 / 3)
    json.dumps(found, allow_nan=False)


# -- on models ---------------------------------------------------------------------------------------------------------


def prompts(n: int = 10, seed: int = 3) -> PromptSet:
    """Random prompts of 3 to 9 tokens that begin alike."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        ids = (1, *(int(t) for t in rng.integers(2, VOCAB, size=2 + i % 7)))
        found.append(Prompt(f"p{i}", "", None, "", "", "b", "train", f"g{i}", {}, ids, None, (1,), (2,)))
    return PromptSet(tuple(found))


@pytest.mark.parametrize("family", MODELS)
def test_numbers_are_those_of_one_prompt_at_a_time_whatever_padding_and_batch(family: str) -> None:
    lm, given, sets = build(family), prompts(), [(), (1, 3), (0, 2)]
    expected = naive(lm, given, sets, head_layer=1, layer=LAYERS - 1)
    for options in ({"batch_size": 4}, {"batch_size": 4, "side": "left"}, {"batch_size": 1},
                    {"batch_size": 100, "by_length": False}, {"batch_size": 3, "side": "left", "by_length": False}):  # fmt: skip
        found = measure(Passes(lm, given, 1, [1, LAYERS - 1], **options), sets)[LAYERS - 1]
        assert torch.allclose(found.values, expected.values, rtol=2e-4, atol=1e-4), options
        for name, values in found.prompts.items():
            assert torch.allclose(values, expected.prompts[name], rtol=1e-4, atol=1e-4, equal_nan=True), (name, options)


@torch.no_grad()
def naive(lm, given: PromptSet, sets: list[tuple[int, ...]], head_layer: int, layer: int) -> Measured:  # type: ignore[no-untyped-def]
    """The same without batches, padding or a prefix, by the slow formulas."""
    from circuits.model_input import padded

    names = (*metrics_of(METHODS), "subspace_k")
    values, numbers, first = [], {}, None
    for which, heads in enumerate(sets):
        streams, own = [], []
        for p in given:

            def zero(z: Tensor, heads: tuple[int, ...] = heads) -> Tensor:
                return z * torch.tensor([h not in heads for h in range(z.shape[2])])[:, None]

            out = forward(
                lm,
                padded([p.ids]),
                capture=[("resid_post", layer)],
                edits=[Edit("head_z", head_layer, zero)],
                logits="last",
            )
            x = out.sites["resid_post", layer][0].double()
            streams.append(x)
            steps = (x[1:] - x[:-1]).norm(dim=1)
            unit = (x[1:] - x[:-1]) / steps[:, None]
            logp = out.logits[0].double().log_softmax(-1)
            angles = (unit[1:] * unit[:-1]).sum(1).arccos()
            own.append([-(logp.exp() * logp).sum(), steps.mean(), steps[:5].mean(), steps[5:].mean(), angles.mean()])
        last, at = torch.stack([x[-1] for x in streams]), differing(given.sequences())
        first = Fit.of(last) if first is None else first
        mean = torch.tensor(own, dtype=torch.float64)
        for i, name in enumerate(
            ("output_entropy", "step_length", "step_length_first", "step_length_rest", "turning_angle")
        ):
            numbers.setdefault(name, []).append(mean[:, i])
        v, (inside, k) = last.var(0), entropy.subspace(Fit.of(last))
        every = [float(torch.logdet(ridged(torch.stack([x[p] for x in streams])))) / 2 for p in at]
        full = float(torch.logdet(ridged(last))) / 2
        row = [full, float((v + RIDGE * v.mean()).log().sum()) / 2, inside, np.mean(every)]
        kl = entropy.gaussian_kl(first, Fit.of(last)) if which else 0.0
        values.append([*row, mean[:, 0].mean(), kl, *mean[:, 1:].nanmean(0), k])
    own_numbers = {name: torch.stack(found[:2]) for name, found in numbers.items()}
    return Measured(names, torch.tensor(values, dtype=torch.float64), own_numbers)


def test_ablating_nothing_changes_nothing() -> None:
    found = measure(Passes(build("gpt2"), prompts(), 0, [0, 2], batch_size=4), [(), (), (1,)])
    for measured in found.values():
        kl = measured.names.index("activation_kl")
        others = [i for i in range(len(measured.names)) if i != kl]
        assert torch.equal(measured.values[0, others], measured.values[1, others])
        assert measured.values[1, kl] == pytest.approx(0, abs=1e-6) and measured.values[2, kl] > 0.01
        assert all(torch.equal(*values.nan_to_num()) for values in measured.prompts.values())


def test_only_what_is_asked_for_is_measured() -> None:
    found = measure(Passes(build("gpt2"), prompts(), 1, [1], batch_size=4, positions=False), [(), (0,)], ["diagonal"])[
        1
    ]
    assert found.names == metrics_of(["diagonal"]) and "full" not in found.names
    assert torch.isfinite(found.values).all()


def test_a_cut_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    sets, given = [(), (1,), (0,), (2,), (3,)], prompts()

    class Cut(Exception):
        pass

    def keeper(cut: bool) -> Keeper[int]:
        def stop() -> None:
            raise Cut

        place = {2: tmp_path / "sets.safetensors"}
        calls = iter(range(100))  # asked before every batch and after every set
        return Keeper(place, stopping=lambda: cut and next(calls) > 11, stop=stop, every_s=0)

    def passes() -> Passes:
        return Passes(build("llama"), given, 1, [2], batch_size=4)

    whole = measure(passes(), sets)[2]
    with pytest.raises(Cut):
        measure(passes(), sets, keeper=keeper(True))
    again = keeper(False)
    found = measure(passes(), sets, keeper=again)[2]
    assert torch.equal(found.values, whole.values)
    assert all(torch.equal(found.prompts[n].nan_to_num(), whole.prompts[n].nan_to_num()) for n in whole.prompts)


def test_what_cannot_be_measured_is_named() -> None:
    lm, given = build("gpt2"), prompts()
    with pytest.raises(UserError, match="heads of layer 2 change nothing at layer 1, below it"):
        Passes(lm, given, 2, [1], batch_size=4)
    with pytest.raises(UserError, match="3 prompts are 1 different ones: a spread needs two"):
        Passes(lm, PromptSet(given.prompts[:1] * 3), 0, [0], batch_size=4)
    with pytest.raises(UserError, match="head 4 is out of range"):
        Passes(lm, given, 0, [0], batch_size=4).run((4,))
    with torch.no_grad():
        lm.model.get_parameter("transformer.h.1.mlp.c_proj.bias").fill_(torch.inf)
    with pytest.raises(NonFinite, match="resid_post layer 1, prompt p"):
        Passes(lm, given, 0, [1], batch_size=4).run(())


# -- the command line --------------------------------------------------------------------------------------------------

SMALL = ("behaviour.n_samples=20", "behaviour.n_test=6", "tracking=off", "cluster.workers=0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "geometry.heads: name the heads that are zeroed"),
        (("geometry.heads=[]",), "geometry.heads: name the heads that are zeroed"),
        (("geometry.heads=[1,4]",), "geometry.heads=4: out of range, a layer of the model has 4 heads (0-3)"),
        (("geometry.heads=[-1]",), "geometry.heads=-1: heads are whole numbers from 0"),
        (("geometry.heads=[1,1]",), "geometry.heads: head 1 is named twice"),
        (("geometry.heads=[0,1,2]",), "geometry.heads: 3 of 4 heads leave 1, too few to draw 3 others as a control"),
        (("geometry.heads=[1]", "geometry.samples=1"), "geometry.samples=1: at least 2"),
        (("geometry.heads=[1]", "geometry.random_samples=0"), "geometry.random_samples=0: at least 1"),
        (("geometry.heads=[1]", "geometry.methods=[ful]"), "geometry.methods=ful: no such entropy; did you mean full?"),
        (("geometry.heads=[1]", "geometry.methods=[]"), "geometry.methods=[]: no entropy named"),
        (("geometry.heads=[1]", "geometry.head_layer=3"), "geometry.head_layer=3: its heads change nothing at layer=1, below it"),
        (("geometry.heads=[1]", "geometry.head_layer=9"), "geometry.head_layer=9: out of range, the model has 4 layers (0-3)"),
        (("geometry.heads=[1]", "behaviour.n_test=0", "geometry.split=test"), "geometry.split=test: 0 prompts; at least 2"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_before_anything_starts(words: tuple[str, ...], says: str, cli: Cli) -> None:
    done = cli("task=geometry", "layer=1", *words)
    assert done.code == 2 and len(done.errors) == 1 and done.errors[0].startswith(f"error: {says}"), done.err


def test_a_sweep_over_behaviours_is_measured_and_shown(warm: Cli) -> None:
    words = ("task=geometry", "layer=0", "geometry.heads=[2]", "geometry.samples=16", QUICK, *SMALL)
    done = warm(*words, "behaviour=facts,cf")
    assert done.code == 0, done.out + done.err
    assert "with 3 control sets no two-sided p can be below 0.5 (one-sided 0.25)" in done.out + done.err
    assert "16 prompts in 128 dimensions" in done.out + done.err
    made = warm.artifacts("geometry")
    assert [path.name.rsplit("-", 1)[0] for path in made] == ["cf-tiny-L0-H2", "facts-tiny-L0-H2"]
    metrics, sets = json.loads((made[1] / "metrics.json").read_text()), pd.read_parquet(made[1] / "sets.parquet")
    assert metrics["deterministic"] and metrics["n"] == 16 and metrics["few_prompts"]
    control = metrics["random_control"]
    assert control["sets"] == [[0], [1], [3]] and control["all"] and control["k"] == 1
    assert sets["role"].tolist() == ["baseline", "studied", *["control"] * 3] and sets["heads"].tolist()[1:3] == [
        "2",
        "0",
    ]
    for name in metrics_of(METHODS):
        assert metrics["deltas"][name] == pytest.approx(sets[name][1] - sets[name][0], abs=1e-9)
        assert control["metrics"][name]["values"] == pytest.approx((sets[name][2:] - sets[name][0]).tolist(), abs=1e-9)
    rows = pd.read_parquet(made[1] / "prompts.parquet")
    change = (rows["output_entropy_ablated"] - rows["output_entropy_baseline"]).mean()
    assert len(rows) == 16 and change == pytest.approx(metrics["deltas"]["output_entropy"])
    low, high = metrics["intervals"]["output_entropy"]
    assert low <= change <= high
    (page,) = [page.read_text() for page in warm.folder.glob("multirun/*/*/report.html")]
    for text in (
        "Beside random heads, layer 0",
        "All metrics, layer 0",
        "facts-tiny",
        "cf-tiny",
        "The measurement is deterministic",
    ):
        assert text in page, text
    order = warm(
        *words, "behaviour=facts", "geometry.methods=[per_token,subspace,diagonal,full]", "geometry.batch_size=5"
    )
    assert order.code == 0 and len(warm.artifacts("geometry")) == 2, (
        "neither order nor batch size makes another artifact"
    )


def test_layers_that_see_the_same_heads_share_the_passes_and_a_notebook_opens_them(warm: Cli, tmp_path: Path) -> None:
    import circuits

    folder = many_heads(tmp_path / "model")
    words = ("task=geometry", f"model={folder}", "layer=all", "geometry.heads=[6,1]", "geometry.head_layer=0",
             "geometry.random_samples=5", "behaviour=facts", *SMALL)  # fmt: skip
    done = warm(*words)
    assert done.code == 0, done.out + done.err
    assert done.out.count("control sets of as many others: 5 drawn") == 1 and len(warm.artifacts("geometry")) == 2
    found = circuits.open("geometry", outputs=warm.outputs, layer=1, model=str(folder), behaviour="facts",
                          behaviour__n_samples=20, behaviour__n_test=6, geometry__heads=[1, 6], geometry__head_layer=0,
                          geometry__random_samples=5)  # fmt: skip
    assert "heads 1, 6 of layer 0 seen at layer 1, 26 prompts" in repr(found)
    assert len(found.sets) == 7 and len(found.prompts) == 26
    assert not any({"1", "6"} & set(heads.split()) for heads in found.sets["heads"][2:])
    before = {path.name: (path / "metrics.json").read_bytes() for path in warm.artifacts("geometry")}
    shutil.rmtree(warm.artifacts("geometry")[0])
    assert warm(*words).code == 0
    assert {path.name: (path / "metrics.json").read_bytes() for path in warm.artifacts("geometry")} == before


def many_heads(folder: Path) -> Path:
    """A random GPT-2 with eight heads a layer."""
    tokenizer = bpe(3000)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        shape = {"n_layer": 2, "n_embd": 32, "n_head": 8, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
