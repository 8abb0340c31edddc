"""What edits cost: whole studies as shares of one plain Hugging Face forward pass for each cell (a unit on the batch of prompts).

    python benchmarks/interventions.py [--quick] [--rounds 3] [--cpu-time] [--model DIR]

Needs torch and transformers; TransformerLens and nnsight are measured beside us where they can be imported. GPT-2 at small's shape,
8 prompts of 128 tokens, the last position read, float32; then SmolLM2-135M's shape (30 layers of 9 heads, 24 prompts of 16 tokens).
Weights are random: cost does not depend on them. In each round the plain pass, our whole study and the peers' passes run in turn; a
peer's whole battery is its pass with one head zeroed, in every layer once, times the heads of a layer. Every head's effect is held
against plain hooks. Goals: every head ≤ 0.45 of (heads × plain) and ≥ 2.5 times faster than TransformerLens; a map of layers ×
positions ≤ 0.45; optimal constants ≤ 3 × the mean battery; feature groups in the middle layer ≤ 0.55; statistics of 1,024 heads on
200 prompts with 5,000 resamples < 10 s.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circuits.activations.answers import rows_of
from circuits.data.prompts import Prompt, PromptSet
from circuits.interventions.edits.base import Edit
from circuits.interventions.edits.counterfactual import Counterfactual
from circuits.interventions.edits.mean import Mean
from circuits.interventions.edits.optimal import Optimal
from circuits.interventions.edits.zero import Zero
from circuits.interventions.engine import Engine
from circuits.interventions.positions import Positions
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.interventions.units.features import Features
from circuits.interventions.units.heads import Heads
from circuits.interventions.units.sites import Sites
from circuits.models.load import LM, wrap
from circuits.models.modules import module_at
from circuits.sae.modules import SAEConfig
from circuits.sae.modules.topk import TopKSAE
from circuits.stats.many import Clustered, corrected, intervals, sign_flip

Clock = Callable[[], float]


def gpt2(layers: int = 12) -> LM:
    """GPT-2 at small's shape."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=768, n_head=12, n_positions=128, bos_token_id=0, eos_token_id=0)
    return wrap(GPT2LMHeadModel(config))


def smollm2(layers: int = 30) -> LM:
    """Llama at SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config))


def prompts(n: int, tokens: int, vocab: int) -> PromptSet:
    """Random pairs of prompts that differ from the third token on."""
    rng = np.random.default_rng(0)

    def ids(head: tuple[int, ...] = ()) -> tuple[int, ...]:
        return head + tuple(int(t) for t in rng.integers(1, vocab, tokens - len(head)))

    found = []
    for i in range(n):
        clean = ids()
        found.append(
            Prompt(f"p{i}", str(i), f"c{i}", "a", "b", "random", "test", str(i), {}, clean, ids(clean[:2]), (3,), (4,))
        )
    return PromptSet(tuple(found))


def timed(variants: dict[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each variant in each round, in rotating order; the first of them once before, to warm up."""
    names = list(variants)
    variants[names[0]]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return seconds


def plain(lm: LM, given: PromptSet, times: int) -> Callable[[], object]:
    """`times` plain passes over all prompts, with all logits, as the library runs by itself."""
    ids = torch.tensor([p.ids for p in given])

    @torch.no_grad()
    def run() -> None:
        for _ in range(times):
            lm.model(input_ids=ids, use_cache=False)

    return run


def study(
    lm: LM, given: PromptSet, lens: Lens, units: list[Unit], edit: Callable[[], Edit], batch: int, base: str = "clean"
) -> Callable[[], object]:
    """Our whole study."""
    return lambda: Engine(lm, given, rows_of(given, base=base), lens, batch_size=batch).measure(units, edit())  # type: ignore[arg-type]


def heads(lm: LM) -> list[Unit]:
    """Every head."""
    return [Unit(f"L{la}.H{h}", (Place(la, (h,)),)) for la in range(lm.dims.layers) for h in range(lm.dims.heads)]


@torch.no_grad()
def wrong(lm: LM, given: PromptSet, batch: int) -> float:
    """Largest difference of a head's logit difference between our study and plain hooks, over every fifth head."""
    chosen = heads(lm)[::5]
    found = Engine(lm, given, rows_of(given), Heads(), batch_size=batch).measure(chosen, Zero())
    mine = found.values["z_target"] - found.values["z_foil"]
    ids, blocks, worst = torch.tensor([p.ids for p in given]), module_at(lm.model, lm.family.blocks), 0.0
    for i, unit in enumerate(chosen):
        (place,), width = unit.places, lm.dims.head_dim

        def zeroed(
            _: object, args: tuple[Tensor, ...], at: int = place.items[0] * width, width: int = width
        ) -> tuple[Tensor, ...]:
            x = args[0].clone()
            x[..., at : at + width] = 0
            return (x, *args[1:])

        handle = module_at(blocks[place.layer], lm.family.taps["head_z"].module).register_forward_pre_hook(zeroed)
        logits = lm.model(input_ids=ids, use_cache=False).logits[:, -1].double()
        handle.remove()
        worst = max(worst, float((mine[i] - (logits[:, 3] - logits[:, 4])).abs().max()))
    return worst


def transformer_lens(lm: LM, given: PromptSet, llama: bool) -> Callable[[], object] | None:
    """TransformerLens's own way: a hook on ``hook_z``, one head of every layer once, all logits."""
    if importlib.util.find_spec("transformer_lens") is None:
        return None
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    dims = lm.dims
    kind = (
        {"act_fn": "silu", "normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True,
         "rotary_dim": dims.head_dim, "n_key_value_heads": dims.kv_heads, "final_rms": True}
        if llama else {"act_fn": "gelu_new", "normalization_type": "LN"}
    )  # fmt: skip
    config = HookedTransformerConfig(
        n_layers=dims.layers, d_model=dims.width, n_heads=dims.heads, d_head=dims.head_dim, d_mlp=dims.mlp_width,
        d_vocab=dims.vocab, n_ctx=256, device="cpu", **kind,
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    ids = torch.tensor([p.ids for p in given])

    def zeroed(z: Tensor, hook: object) -> Tensor:
        z[:, :, 1] = 0
        return z

    @torch.no_grad()
    def run() -> None:
        for layer in range(dims.layers):
            model.run_with_hooks(ids, return_type="logits", fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zeroed)])

    return run


def nnsight(lm: LM, given: PromptSet) -> Callable[[], object] | None:
    """nnsight around a copy of the same module: one head of every layer once."""
    if importlib.util.find_spec("nnsight") is None:
        return None
    from nnsight import NNsight, save  # type: ignore[import-not-found]

    model, width = NNsight(copy.deepcopy(lm.model)), lm.dims.head_dim  # it changes the modules that it wraps
    ids = torch.tensor([p.ids for p in given])
    tap = lm.family.taps["head_z"].module
    blocks = model
    for part in lm.family.blocks.split("."):
        blocks = getattr(blocks, part)

    def run() -> None:
        for layer in range(lm.dims.layers):
            with torch.no_grad(), model.trace(ids):
                module = blocks[layer]
                for part in tap.split("."):
                    module = getattr(module, part)
                module.input[..., width : 2 * width] = 0
                save(model.output.logits)

    try:
        run()
    except Exception as e:
        print(f"(nnsight could not run this: {type(e).__name__}: {e})", file=sys.stderr)
        return None
    return run


def row(name: str, seconds: float, cell: float, goal: float | None = None, more: str = "") -> str:
    """A line of the table."""
    verdict = "" if goal is None else f"≤ {goal} {'met' if cell <= goal else 'MISSED'}"
    return f"| {name} | {seconds:.2f} | {cell:.3f} | {verdict}{more} |"


def median_ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """The median over rounds of one variant's time as a share of another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def compare(
    title: str, lm: LM, given: PromptSet, batch: int, rounds: int, clock: Clock, llama: bool, speed_up: float
) -> None:
    """Every head zeroed: ours and the peers."""
    units, times = heads(lm), 4
    variants: dict[str, Callable[[], object]] = {
        "plain": plain(lm, given, times),
        "ours": study(lm, given, Heads(), units, Zero, batch),
    }
    for name, made in (("TransformerLens", transformer_lens(lm, given, llama)), ("nnsight", nnsight(lm, given))):
        if made is not None:
            variants[name] = made
    seconds = timed(variants, rounds, clock)
    print(f"| {title} | s | a cell ÷ plain | goal |\n|---|---|---|---|")
    print(row("plain pass", statistics.median(seconds["plain"]) / times, 1.0))
    ours = median_ratio(seconds, "ours", "plain") * times / len(units)
    print(row(f"ours, {len(units)} heads", statistics.median(seconds["ours"]), ours, 0.45))
    for name in ("TransformerLens", "nnsight"):
        if name in seconds:
            cell = median_ratio(seconds, name, "plain") * times / lm.dims.layers
            faster = statistics.median(
                (p / lm.dims.layers) / (o / len(units)) for p, o in zip(seconds[name], seconds["ours"], strict=True)
            )
            goal = f"ours is {faster:.2f} times as fast" + (
                f" (≥ {speed_up} {'met' if faster >= speed_up else 'MISSED'})" if name == "TransformerLens" else ""
            )
            print(row(f"{name}, a head a layer", statistics.median(seconds[name]), cell, None, goal))
    print(f"\nLargest difference to plain hooks: {wrong(lm, given, batch):.1e}\n", flush=True)


def studies(lm: LM, rounds: int, clock: Clock) -> None:
    """The other studies on GPT-2's shape."""
    print("| study | s | a cell ÷ plain | goal |\n|---|---|---|---|")
    given, middle, layers = prompts(8, 128, lm.dims.vocab), lm.dims.layers // 2, range(lm.dims.layers)
    places = [-1, -8, -32, -100]
    cells = [Unit(f"L{la} @{at}", (Place(la),), Positions((at,))) for la in layers for at in places]
    run = {
        "plain": plain(lm, given, 4),
        "map": study(lm, given, Sites("resid_post"), cells, Counterfactual, 8, "corrupt"),
    }
    seconds = timed(run, rounds, clock)
    cell = median_ratio(seconds, "map", "plain") * 4 / len(cells)
    print(
        row(f"layers × positions, denoising ({len(cells)} cells)", statistics.median(seconds["map"]), cell, 0.45),
        flush=True,
    )
    some, others = prompts(32, 32, lm.dims.vocab), prompts(32, 32, lm.dims.vocab)
    units = heads(lm)[::4]
    run = {
        "mean": study(lm, some, Heads(), units, lambda: Mean(others), 32),
        "optimal": study(lm, some, Heads(), units, lambda: Optimal(others), 32),
    }
    seconds = timed(run, rounds, clock)
    share = median_ratio(seconds, "optimal", "mean")
    met = f"≤ 3 {'met' if share <= 3 else 'MISSED'}"
    what, took = (
        f"optimal constants ({len(units)} heads, 32 prompts) ÷ mean battery",
        statistics.median(seconds["optimal"]),
    )
    print(f"| {what} | {took:.2f} | {share:.2f} × | {met} |", flush=True)
    torch.manual_seed(0)
    sae = TopKSAE(SAEConfig(lm.dims.width, 8 * lm.dims.width, k=32))
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape) * (0.02 if name.startswith("W") else 0.0)
    hundred = prompts(100, 24, lm.dims.vocab)
    ten = [Unit(f"g{i}", (Place(middle, tuple(range(10 * i, 10 * i + 5))),)) for i in range(10)]
    run = {
        "plain": plain(lm, hundred, 4),
        "features": study(lm, hundred, Features("resid_post", {middle: sae}), ten, Zero, 100),
    }
    seconds = timed(run, rounds, clock)
    cell = median_ratio(seconds, "features", "plain") * 4 / len(ten)
    print(row("10 feature groups × 100 prompts, middle layer", statistics.median(seconds["features"]), cell, 0.55))
    values = np.random.default_rng(0).normal(size=(1024, 200))
    start = time.perf_counter()
    found = Clustered.of(values, list(range(200)))
    intervals(found, seed=0, resamples=5000)
    corrected(sign_flip(found, seed=0, resamples=5000), "by")
    took = time.perf_counter() - start
    print(
        f"| statistics: 1,024 heads × 200 prompts × 5,000 resamples | {took:.2f} | | < 10 s {'met' if took < 10 else 'MISSED'} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers and one round: a look, not a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall time, for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    rounds, layers = (1, (4, 6)) if options.quick else (options.rounds, (12, 30))
    there = {
        name: importlib.metadata.version(name.replace("_", "-")) if importlib.util.find_spec(name) else "not installed"
        for name in ("transformer_lens", "nnsight")
    }
    listed = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in there.items())
    print(
        f"float32, {rounds} rounds of {clock.__name__}, torch {torch.__version__}, {torch.get_num_threads()} threads; {listed}\n"
    )
    small = gpt2(layers[0])
    compare("GPT-2 small's shape, 8 × 128 tokens", small, prompts(8, 128, 50257), 8, rounds, clock, False, 2.5)
    real = smollm2(layers[1])
    compare("SmolLM2-135M's shape, 24 × 16 tokens", real, prompts(24, 16, 49152), 24, rounds, clock, True, 2.5)
    studies(small, rounds, clock)


if __name__ == "__main__":
    main()
