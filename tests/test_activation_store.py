"""Capturing into files and reading them shuffled: known answers on small random models, kills, shards, number formats."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from small_models import LAYERS, VOCAB, build

from circuits.activations import rows as row_index
from circuits.activations.capture import ON_DISK, Plan, capture
from circuits.activations.pieces import Pieces
from circuits.activations.reservoir import Reservoir
from circuits.activations.samples import StreamSamples, count_sequences
from circuits.activations.store import ActivationStore
from circuits.data.npy import GrowingNpy
from circuits.errors import Damaged, NonFinite, UserError
from circuits.files import write_json
from circuits.model_input import ModelInput, padded
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.models.sites import site_width

LENGTHS = [3, 9, 5, 12, 2, 7, 7, 10, 4, 6, 11, 8, 3, 12, 5, 9, 2, 6, 10, 7]


class Sentences:
    """A token source of fixed random sequences of the lengths above, over and over."""

    name, context = "sentences", 12

    def block(self, index: int, n: int) -> ModelInput:
        rows = []
        for number in range(index * n, (index + 1) * n):
            generator = torch.Generator().manual_seed(number)
            rows.append(torch.randint(1, VOCAB, (LENGTHS[number % len(LENGTHS)],), generator=generator).tolist())
        return padded(rows, list(range(index * n, (index + 1) * n)))

    def heldout(self, n: int) -> ModelInput:
        raise NotImplementedError

    def passes(self, index: int, n: int) -> float:
        return 0.0


@pytest.fixture(scope="module")
def lm() -> LM:
    return build("qwen2")


SAMPLES = StreamSamples(Sentences(), 20)
PLAN = Plan(batch_size=3, save_every=12)


def pieces_of(partial: Path, lm: LM, key: tuple[str, int], plan: Plan = PLAN) -> Pieces:
    return Pieces(partial, ON_DISK[plan.dtype], site_width(lm.dims, key[0]))


def publish(partial: Path, out: Path, lm: LM, key: tuple[str, int], plan: Plan = PLAN) -> ActivationStore:
    """What the task does with finished pieces."""
    pieces = pieces_of(partial, lm, key, plan)
    assert pieces.missing(len(SAMPLES)) == 0
    out.mkdir(parents=True)
    pieces.write(out)
    row_index.write(out / "rows.parquet", SAMPLES, plan, set(pieces.dropped))
    facts = {"site": key[0], "layer": key[1], "width": pieces.width, "dtype": plan.dtype, "n_rows": pieces.rows}
    write_json(out / "meta.json", facts)
    return ActivationStore(out)


def captured(folder: Path, lm: LM, key: tuple[str, int], plan: Plan = PLAN) -> ActivationStore:
    """One (site, layer), captured alone and published."""
    capture(lm, SAMPLES, {key: folder / "partial"}, plan)
    return publish(folder / "partial", folder / "out", lm, key, plan)


def alone(lm: LM, number: int, key: tuple[str, int]) -> np.ndarray:
    """A sample's activations from a forward pass of its own."""
    tokens = SAMPLES.window(number, number + 1)
    return forward(lm, tokens, capture=[key]).sites[key].flatten(2)[0].numpy()


# -- what is captured --------------------------------------------------------------------------------------------


def test_rows_are_the_models_hidden_states_and_the_index_says_which_token_each_is(lm: LM, tmp_path: Path) -> None:
    store = captured(tmp_path, lm, ("resid_post", 1))
    rows = store.rows
    assert rows["row"].tolist() == list(range(sum(LENGTHS))) and rows["sample"].is_monotonic_increasing
    for number, own in rows.groupby("sample"):
        tokens = SAMPLES.window(number, number + 1)
        assert own["token_id"].tolist() == tokens.ids[0].tolist()
        assert own["position"].tolist() == list(range(LENGTHS[number]))
        assert own["from_end"].tolist() == list(range(LENGTHS[number]))[::-1]
        states = lm.model(input_ids=tokens.ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(store.float32(own["row"].to_numpy()), states[2][0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(store.norms, np.linalg.norm(store.values, axis=1), rtol=1e-6)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "head_z", "attn_out"])
def test_the_last_tokens_of_every_site_equal_a_pass_over_each_sample_alone(lm: LM, site: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, last_n=4)
    store = captured(tmp_path, lm, (site, 2), plan)
    assert store.width == {"mlp_act": 80, "head_z": 48}.get(site, 32)  # mlp_act: intermediate_size
    values, valid = store.grid(4)
    for number, length in enumerate(LENGTHS):
        wanted = alone(lm, number, (site, 2))[-4:]
        np.testing.assert_allclose(values[number][valid[number]], wanted, atol=1e-5)
        assert valid[number].tolist() == [length >= 4 - i for i in range(4)], "shorter samples lack the left"
    padded = store.rows.groupby("sample")["padded"].agg(["all", "any"])
    assert (padded["all"] == padded["any"]).all() and padded["any"].tolist() == [length < 4 for length in LENGTHS]


def test_skipped_first_tokens_are_not_among_the_last_ones_either(lm: LM, tmp_path: Path) -> None:
    store = captured(tmp_path, lm, ("mlp_out", 0), dataclasses.replace(PLAN, last_n=3, skip_first=1))
    assert store.n_rows == sum(min(3, length - 1) for length in LENGTHS)
    assert (store.rows["position"] >= 1).all()
    own = store.rows[store.rows["sample"] == 4]  # two tokens, of which one is left
    assert own["position"].tolist() == [1] and own["padded"].tolist() == [True]
    np.testing.assert_allclose(store.float32(own["row"].to_numpy()), alone(lm, 4, ("mlp_out", 0))[1:], atol=1e-5)


def test_batch_size_changes_no_value_beyond_rounding(lm: LM, tmp_path: Path) -> None:
    stores = [captured(tmp_path / str(size), lm, ("resid_post", 2), Plan(batch_size=size)) for size in (1, 3, 20)]
    for store in stores[1:]:
        np.testing.assert_allclose(store.values, stores[0].values, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_storage_in_16_bits_rounds_as_torch_does(lm: LM, dtype: str, tmp_path: Path) -> None:
    full = captured(tmp_path / "full", lm, ("mlp_act", 1))
    half = captured(tmp_path / "half", lm, ("mlp_act", 1), dataclasses.replace(PLAN, dtype=dtype))
    wanted = full.tensor().to({"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    assert torch.equal(half.tensor(), wanted)
    assert np.array_equal(half.float32(slice(3, 9)), wanted[3:9].float().numpy())
    batch = next(Reservoir(half, batch_size=half.n_rows).batches()).rows[1]
    assert torch.equal(batch.sort(dim=0).values, wanted.float().sort(dim=0).values)


# -- interruptions and shards ------------------------------------------------------------------------------------


def same_files(a: Path, b: Path) -> bool:
    return all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in ("values.npy", "norms.npy", "rows.parquet")
    )


KEYS = [("resid_post", 0), ("mlp_act", 2)]


@pytest.fixture(scope="module")
def undisturbed(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Both keys in one pass, in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    partials = {key: folder / f"partial-{key[0]}" for key in KEYS}
    capture(lm, SAMPLES, partials, PLAN)
    return {key: publish(partials[key], folder / key[0], lm, key).path for key in KEYS}


def test_layers_and_sites_in_one_pass_equal_each_alone_bit_by_bit(
    lm: LM, undisturbed: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    for key in KEYS:
        assert same_files(captured(tmp_path / key[0], lm, key).path, undisturbed[key])


@pytest.mark.parametrize("size", [2, 4, 9])
def test_shards_put_together_equal_one_process_bit_by_bit(
    lm: LM, size: int, undisturbed: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    for shard in reversed(range(size)):
        plan = dataclasses.replace(PLAN, shard=shard, world_size=size)
        capture(lm, SAMPLES, {key: tmp_path / f"partial-{key[0]}" for key in KEYS}, plan)
    for key in KEYS:
        store = publish(tmp_path / f"partial-{key[0]}", tmp_path / key[0], lm, key)
        assert same_files(store.path, undisturbed[key])


def stops_after(batches: int) -> Callable[[], bool]:
    """A `stopping` that says so from the n-th time on."""
    seen = iter(range(10_000))
    return lambda: next(seen) >= batches


@pytest.mark.parametrize("batches", range(0, 8))
def test_stopped_and_continued_even_by_another_number_of_shards_it_is_the_same(
    lm: LM, batches: int, undisturbed: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    partials = {key: tmp_path / f"partial-{key[0]}" for key in KEYS}
    assert capture(lm, SAMPLES, partials, PLAN, stopping=stops_after(batches)).stopped == (batches < 7)
    for shard in (0, 1) if batches % 2 else (0,):
        capture(lm, SAMPLES, partials, dataclasses.replace(PLAN, shard=shard, world_size=1 + batches % 2))
    for key in KEYS:
        assert same_files(publish(partials[key], tmp_path / key[0], lm, key).path, undisturbed[key])


def test_what_a_kill_left_beyond_the_journal_is_cut_off(
    lm: LM, undisturbed: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    key, partial = KEYS[0], tmp_path / "partial"
    capture(lm, SAMPLES, {key: partial}, PLAN, stopping=stops_after(4))
    piece = partial / PLAN.piece
    with (piece / "values.npy").open("ab") as values, (piece / "journal.jsonl").open("ab") as journal:
        values.write(b"\x07" * 999)
        journal.write(b'{"samples":[12,13')
    capture(lm, SAMPLES, {key: partial}, PLAN)
    assert same_files(publish(partial, tmp_path / "out", lm, key).path, undisturbed[key])


def test_values_that_went_missing_under_their_journal_are_captured_again(
    lm: LM, undisturbed: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    key, partial = KEYS[0], tmp_path / "partial"
    capture(lm, SAMPLES, {key: partial}, PLAN, stopping=stops_after(5))
    (partial / PLAN.piece / "values.npy").unlink()
    capture(lm, SAMPLES, {key: partial}, PLAN)
    assert same_files(publish(partial, tmp_path / "out", lm, key).path, undisturbed[key])


def test_nothing_is_computed_twice(lm: LM, tmp_path: Path) -> None:
    key = ("mlp_out", 1)
    assert capture(lm, SAMPLES, {key: tmp_path}, PLAN, stopping=stops_after(4)).samples == 12
    assert capture(lm, SAMPLES, {key: tmp_path}, PLAN).samples == 8
    assert capture(lm, SAMPLES, {key: tmp_path}, PLAN).samples == 0


def test_work_on_other_samples_is_refused_by_name(lm: LM, tmp_path: Path) -> None:
    class Others(Sentences):
        def block(self, index: int, n: int) -> ModelInput:
            block = super().block(index, n)
            return ModelInput(block.ids, block.mask, block.samples + 100)

    key = ("mlp_out", 1)
    capture(lm, SAMPLES, {key: tmp_path}, PLAN, stopping=stops_after(4))
    with pytest.raises(Damaged, match="sample 3 was 3 and is 103 now"):
        capture(lm, StreamSamples(Others(), 20), {key: tmp_path}, PLAN)


# -- numbers that are none ---------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(lm: LM) -> Iterator[LM]:
    """The model, but sample 3's activations overflow from layer 1 on."""
    mine = SAMPLES.window(3, 4).ids[0]
    seen: dict[str, torch.Tensor] = {}

    def look(_: object, args: object, given: dict[str, torch.Tensor]) -> None:
        ids = given["input_ids"]
        same = ids.shape[1] >= len(mine) and (ids[:, : len(mine)] == mine).all(1)
        seen["mine"] = torch.as_tensor(same).expand(len(ids))

    def overflow(_: object, args: object, out: torch.Tensor) -> torch.Tensor:
        return out.masked_fill(seen["mine"][:, None, None], torch.inf)

    handles = [
        lm.model.register_forward_pre_hook(look, with_kwargs=True),
        lm.model.model.layers[1].register_forward_hook(overflow),
    ]
    yield lm
    for handle in handles:
        handle.remove()


def test_a_non_finite_activation_stops_and_names_layer_site_and_sample(poisoned: LM, tmp_path: Path) -> None:
    keys = {("resid_post", layer): tmp_path / str(layer) for layer in range(LAYERS)}
    with pytest.raises(NonFinite, match=r"resid_post, layer 1, sample 3 of sentences.*activations.nonfinite=drop"):
        capture(poisoned, SAMPLES, keys, PLAN)


def test_dropped_samples_are_listed_and_the_same_at_every_layer_alone_or_together(poisoned: LM, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, nonfinite="drop")
    keys = {("resid_post", layer): tmp_path / str(layer) for layer in range(LAYERS)}
    capture(poisoned, SAMPLES, keys, plan)
    stores = [
        publish(keys["resid_post", layer], tmp_path / f"out{layer}", poisoned, ("resid_post", layer), plan)
        for layer in range(LAYERS)
    ]
    single = captured(tmp_path / "alone", poisoned, ("resid_post", 0), plan)
    for key, partial in keys.items():
        assert pieces_of(partial, poisoned, key).dropped == {3: [1, 2]}
    for store in stores:
        assert 3 not in set(store.rows["sample"]) and store.n_rows == sum(LENGTHS) - LENGTHS[3]
        assert np.isfinite(store.values).all() and (store.norms > 0).all()
    assert same_files(stores[0].path, single.path), "which layers a run is about changes nothing"
    np.testing.assert_allclose(stores[0].float32(slice(12, 17)), alone(poisoned, 2, ("resid_post", 0)), atol=1e-5)


def test_an_overflow_of_fp16_is_found_where_it_is_stored(lm: LM, tmp_path: Path) -> None:
    key, half = ("mlp_out", 1), dataclasses.replace(PLAN, dtype="fp16")
    hook = lm.model.model.layers[1].mlp.register_forward_hook(lambda _, args, out: out * 1e6)
    try:
        captured(tmp_path / "fp32", lm, key)
        with pytest.raises(
            NonFinite, match=r"mlp_out, layer 1, sample \d+ and 2 more .*activations.dtype=fp32 or bf16"
        ):
            capture(lm, SAMPLES, {key: tmp_path / "fp16"}, half)
    finally:
        hook.remove()


# -- counting ----------------------------------------------------------------------------------------------------


def test_as_many_sequences_are_taken_as_give_the_rows_asked_for() -> None:
    for rows in (1, 3, 4, 12, 100, 5000):
        n = count_sequences(Sentences(), rows, None, 0)
        lengths = [LENGTHS[i % len(LENGTHS)] for i in range(n)]
        assert sum(lengths) >= rows > sum(lengths[:-1])


# -- shuffled reading --------------------------------------------------------------------------------------------


def written(folder: Path, rows: int, width: int = 8, layer: int = 0) -> ActivationStore:
    """A store whose row i begins with i."""
    folder.mkdir(parents=True)
    file = GrowingNpy(folder / "values.npy", np.dtype(np.float32), (width,))
    values = np.full((rows, width), layer, np.float32)
    values[:, 0] = np.arange(rows)
    file.append(values)
    file.finish()
    write_json(
        folder / "meta.json", {"site": "mlp_out", "layer": layer, "width": width, "dtype": "fp32", "n_rows": rows}
    )
    return ActivationStore(folder)


def taken(reservoir: Reservoir, batches: int) -> list[list[int]]:
    source = reservoir.batches()
    return [next(source).rows[reservoir.layers[0]][:, 0].int().tolist() for _ in range(batches)]


def test_every_row_comes_once_an_epoch_in_another_seeded_order(tmp_path: Path) -> None:
    store = written(tmp_path / "s", 1000)
    epochs = [taken(Reservoir(store, batch_size=50, ram_bytes=20_000, seed=seed), 40) for seed in (0, 0, 1)]
    for epoch in epochs:
        for half in (epoch[:20], epoch[20:]):
            assert sorted(row for batch in half for row in batch) == list(range(1000))
        assert epoch[:20] != epoch[20:]
    assert epochs[0] == epochs[1] != epochs[2]
    first = np.array(epochs[0][0])
    assert np.ptp(first) > 200 and not np.array_equal(first, np.sort(first)), "mixed over the file, not a stretch of it"


def test_rows_beyond_the_last_whole_batch_are_left_out_and_others_the_next_time(tmp_path: Path) -> None:
    store = written(tmp_path / "s", 1007)
    batches = taken(Reservoir(store, batch_size=50, ram_bytes=10**6), 60)
    epochs = [{row for batch in batches[i : i + 20] for row in batch} for i in (0, 20, 40)]
    assert [len(epoch) for epoch in epochs] == [1000] * 3 and set.union(*epochs) > epochs[0]


@pytest.mark.parametrize("after", [1, 7, 19, 20, 33])
def test_a_saved_position_continues_with_the_very_next_batch(after: int, tmp_path: Path) -> None:
    store = written(tmp_path / "s", 1000)
    whole = taken(Reservoir(store, batch_size=50, ram_bytes=20_000), 50)
    first = Reservoir(store, batch_size=50, ram_bytes=20_000)
    assert taken(first, after) == whole[:after]
    state = json.loads(json.dumps(first.state_dict()))
    second = Reservoir(store, batch_size=50, ram_bytes=20_000)
    second.load_state_dict(state)
    assert taken(second, 10) == whole[after : after + 10]
    with pytest.raises(UserError, match=r"seed 0 \(now 5\)"):
        Reservoir(store, batch_size=50, ram_bytes=20_000, seed=5).load_state_dict(state)


def test_a_stop_is_heard_while_a_block_is_read_and_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, slow, fill = written(tmp_path / "s", 1000), threading.Event(), Reservoir._fill
    whole = taken(Reservoir(store, batch_size=50, ram_bytes=20_000), 12)

    def held(self: Reservoir, *given: Any) -> Any:
        if given[2] == 1 and not slow.wait(30):  # the second block comes from a slow disk
            raise TimeoutError
        return fill(self, *given)

    monkeypatch.setattr(Reservoir, "_fill", held)
    reservoir, got = Reservoir(store, batch_size=50, ram_bytes=20_000), []
    for batch in reservoir.batches(stopping=lambda: (slow.set() if len(got) > 3 else None, len(got) > 3)[1]):
        got.append(batch.rows[0][:, 0].int().tolist())
    assert 3 < len(got) < 12 and got == whole[: len(got)]
    monkeypatch.undo()
    again = Reservoir(store, batch_size=50, ram_bytes=20_000)
    again.load_state_dict(reservoir.state_dict())
    assert taken(again, 3) == whole[len(got) : len(got) + 3]


def test_layers_are_read_beside_one_another(tmp_path: Path) -> None:
    stores = {layer: written(tmp_path / str(layer), 500, layer=layer) for layer in (0, 3)}
    for batch, _ in zip(Reservoir(stores, batch_size=25, ram_bytes=30_000).batches(), range(30), strict=False):
        assert torch.equal(batch.rows[0][:, 0], batch.rows[3][:, 0])
        assert (batch.rows[3][:, 1:] == 3).all()
    alone, both = (Reservoir(one, batch_size=25, ram_bytes=30_000) for one in (stores[3], stores))
    assert taken(alone, 30) == taken(both, 30), "a layer's batches do not depend on which others are read"
    with pytest.raises(UserError, match="n_rows differ"):
        Reservoir({0: stores[0], 1: written(tmp_path / "short", 499, layer=1)}, batch_size=25)


def test_rows_of_two_sites_stand_side_by_side_in_the_order_of_one(tmp_path: Path) -> None:
    one, wide = written(tmp_path / "one", 500, layer=1), written(tmp_path / "wide", 500, layer=1, width=6)
    pair = Reservoir({1: (one, wide)}, batch_size=25, ram_bytes=30_000)
    assert pair.width == one.width + 6
    rows = torch.cat([batch.rows[1] for batch, _ in zip(pair.batches(), range(20), strict=False)])
    assert torch.equal(rows[:, 0], rows[:, one.width])
    assert sorted(rows[:, 0].int().tolist()) == list(range(500))
    with pytest.raises(UserError, match="are not of the same rows: their n_rows differ; make both with one task"):
        Reservoir({1: (one, written(tmp_path / "short", 499, layer=1))}, batch_size=25)
    cut = written(tmp_path / "cut", 500, layer=1)
    cut.facts["dropped"] = [{"sample": 3, "name": "3", "layers": [1]}]
    with pytest.raises(UserError, match="their samples dropped differ"):
        Reservoir({1: (one, cut)}, batch_size=25)


def test_a_batch_is_the_consumers_own_unless_it_says_otherwise(tmp_path: Path) -> None:
    store = written(tmp_path / "s", 400)
    kept = [
        batch.rows[0]
        for batch, _ in zip(Reservoir(store, batch_size=20, ram_bytes=6_400).batches(), range(20), strict=False)
    ]
    assert sorted(torch.cat(kept)[:, 0].int().tolist()) == list(range(400))
    views = Reservoir(store, batch_size=20, ram_bytes=6_400, own=False).batches()
    assert sorted(row for _ in range(20) for row in next(views).rows[0][:, 0].int().tolist()) == list(range(400))


@pytest.mark.soak
def test_a_store_ten_times_the_budget_is_read_within_it(tmp_path: Path) -> None:
    budget = 16 << 20
    written(tmp_path / "s", 10 * budget // 4096, width=1024)
    code = (
        "import sys, resource; from pathlib import Path; import torch\n"
        "from circuits.activations.store import ActivationStore; from circuits.activations.reservoir import Reservoir\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        f"store = ActivationStore(Path(sys.argv[1])); r = Reservoir(store, batch_size=256, ram_bytes={budget})\n"
        "torch.zeros(1).float(); before, rows = peak(), 0\n"
        "for batch in r.batches():\n"
        "    rows += len(batch.rows[0])\n"
        "    if rows >= store.n_rows: break\n"
        "print(peak() - before, rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, rows = map(int, done.stdout.split())
    assert rows >= 10 * budget // 4096 and grown < 2 * budget, (
        f"{grown / 1e6:.0f} MB for a budget of {budget / 1e6:.0f} MB"
    )


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    store = written(tmp_path / "s", 100)
    with pytest.raises(UserError, match="two batches of 80 have to fit twice"):
        Reservoir(store, batch_size=80, ram_bytes=1000)
    with pytest.raises(UserError, match="the store has 100 rows"):
        Reservoir(store, batch_size=101)
    with pytest.raises(Damaged, match=r"meta.json: missing; .* is no store of activations"):
        ActivationStore(tmp_path)
    with (store.path / "values.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(Damaged, match=r"values.npy: truncated"):
        ActivationStore(store.path)
    with pytest.raises(Damaged, match="ends before its rows do"):
        next(Reservoir(store, batch_size=10).batches())
