"""What capture costs: ratios to one plain Hugging Face forward pass, and the memory that is kept.

    python benchmarks/capture.py [--quick] [--device cpu] [--rounds 15] [--cpu-time]

Needs torch and transformers only; TransformerLens and nnsight are measured beside us where they can be imported (the first
line says which were). GPT-2 at two shapes against the peers, then every model family at one shape. Models are randomly
initialised (cost does not depend on the weights), float32. Every round runs each variant once, in rotating order; a ratio is
the median over rounds of variant / plain within the same round, so that drift of the machine cancels.
Goals, for GPT-2 and for every family: all layers, last 5 positions, with logits <= 1.05 at 6 x 384; without lm_head <= 0.75 at
GPT-2-small's shape (where the unembedding is as large a part as in small real models). And never slower than TransformerLens.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, Result, forward
from circuits.models.load import LM, pick_device, wrap
from circuits.models.sites import FAMILIES, sites_of

# layers, width, heads, vocabulary; the small vocabulary keeps the unembedding from hiding what hooks cost at 6 x 384
SHAPES = {"6 x 384": (6, 384, 6, 4096), "GPT-2 small (12 x 768)": (12, 768, 12, 50257)}
PEERS = ("transformer_lens", "nnsight")
FAMILY_COLUMNS = {
    "logits": "ours: last 5, logits",
    "last logits": "ours: last 5, last logits",
    "no lm_head": "ours: last 5, no lm_head",
    "all sites, no lm_head": "ours: all sites, last 5, no lm_head",
    "one layer's heads zeroed": "ours: one layer's heads zeroed, logits",
}
BATCH, QUICK_BATCH, TOKENS, LAST = 8, 2, 128, 5
GOALS = {
    ("6 x 384", "ours: last 5, logits"): 1.05,
    ("GPT-2 small (12 x 768)", "ours: last 5, no lm_head"): 0.75,
}

AGAINST = {
    "ours: last 5, logits": "TransformerLens: last 5, logits",
    "ours: last 5, no lm_head": "TransformerLens: last 5, no unembedding",
}
Variants = dict[str, Callable[[], object]]


def build(layers: int, width: int, heads: int, vocab: int, device: torch.device) -> LM:
    """A random GPT-2 of the given shape."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocab, n_positions=TOKENS, bos_token_id=0, eos_token_id=0
    )
    return wrap(GPT2LMHeadModel(config).to(device))


def build_family(family: str, shape: str, device: torch.device) -> LM:
    """A random model of `family` at a shape of `SHAPES`, heads of 64 (a third as many key-value heads where they are grouped)."""
    torch.manual_seed(0)
    if family == "gpt2":
        return build(*SHAPES[shape], device)
    layers, width, heads, vocab = SHAPES[shape]
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    sizes |= {
        "intermediate_size": 8 * width // 3,
        "vocab_size": vocab,
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if family != "gpt_neox":
        sizes |= {"num_key_value_heads": heads // 3, "head_dim": 64}
    tower = FAMILIES[family].tower
    config = AutoConfig.for_model(family, **({tower: sizes, "vision_config": _VISION} if tower else sizes))
    return wrap(AutoModelForCausalLM.from_config(config).to(device))


_VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
           "patch_size": 16, "model_type": "siglip_vision_model"}  # fmt: skip


def ours(lm: LM, ids: torch.Tensor, mask: torch.Tensor) -> Variants:
    """The plain pass and our variants of it."""
    layers = range(lm.dims.layers)
    positions = torch.arange(TOKENS, device=lm.device).expand_as(ids)
    attention = mask.long()
    stream = {"resid_post": layers}
    all_sites = dict.fromkeys(sites_of(lm.dims), layers)
    zero = [Edit("head_z", lm.dims.layers // 2, torch.zeros_like)]

    def plain() -> object:
        with torch.no_grad():
            return lm.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)

    return {
        "plain": plain,
        "ours: last 5, logits": lambda: forward(
            lm, ModelInput(ids, mask), capture=stream, positions=LAST, logits="all"
        ),
        "ours: last 5, last logits": lambda: forward(
            lm, ModelInput(ids, mask), capture=stream, positions=LAST, logits="last"
        ),
        "ours: last 5, no lm_head": lambda: forward(lm, ModelInput(ids, mask), capture=stream, positions=LAST),
        "ours: all positions, no lm_head": lambda: forward(lm, ModelInput(ids, mask), capture=stream),
        "ours: all sites, last 5, no lm_head": lambda: forward(
            lm, ModelInput(ids, mask), capture=all_sites, positions=LAST
        ),
        "ours: one layer's heads zeroed, logits": lambda: forward(lm, ModelInput(ids, mask), edits=zero, logits="all"),
        "ours: one layer's heads zeroed, last logits": lambda: forward(
            lm, ModelInput(ids, mask), edits=zero, logits="last"
        ),
    }


def transformer_lens(lm: LM, ids: torch.Tensor) -> Variants:
    """TransformerLens at the same shape, its cache filtered to what we capture."""
    if importlib.util.find_spec("transformer_lens") is None:
        return {}
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    dims = lm.dims
    config = HookedTransformerConfig(
        n_layers=dims.layers, d_model=dims.width, n_heads=dims.heads, d_head=dims.head_dim, d_mlp=dims.mlp_width,
        d_vocab=dims.vocab, n_ctx=TOKENS, act_fn="gelu_new", normalization_type="LN", device=str(lm.device),
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    names = {f"blocks.{layer}.hook_resid_post" for layer in range(dims.layers)}

    def run(return_type: str | None) -> object:
        with torch.no_grad():
            return model.run_with_cache(
                ids, return_type=return_type, names_filter=lambda name: name in names, pos_slice=slice(-LAST, None)
            )

    return {
        "TransformerLens: last 5, logits": lambda: run("logits"),
        "TransformerLens: last 5, no unembedding": lambda: run(None),
    }


def nnsight(lm: LM, ids: torch.Tensor) -> Variants:
    """nnsight around the same module."""
    if importlib.util.find_spec("nnsight") is None:
        return {}
    from nnsight import NNsight, save  # type: ignore[import-not-found]

    model = NNsight(lm.model)

    def run() -> object:
        with torch.no_grad(), model.trace(ids):
            kept = save([block.output[:, -LAST:] for block in model.transformer.h])
        return kept

    return {"nnsight: last 5, logits": run}


def measure(
    variants: Variants, rounds: int, clock: Callable[[], float], device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant in each round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):  # round -1 warms up
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            start = clock()
            variants[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def table(shape: str, seconds: dict[str, list[float]]) -> str:
    """A Markdown table of ratios with their quartiles over rounds."""
    lines = [f"| {shape} | ms | ratio to plain | quartiles | goal |", "|---|---|---|---|---|"]
    for name, times in seconds.items():
        ratios = [t / plain for t, plain in zip(times, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        goal = GOALS.get((shape, name))
        verdict = "" if goal is None else f"≤ {goal} {'met' if middle <= goal else 'MISSED'}"
        lines.append(
            f"| {name} | {statistics.median(times) * 1e3:.1f} | {middle:.2f} | {low:.2f}-{high:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def ratio(seconds: dict[str, list[float]], name: str, base: str = "plain") -> float:
    """The median over rounds of a variant's time as a share of another's."""
    return statistics.median(t / b for t, b in zip(seconds[name], seconds[base], strict=True))


def family_row(family: str, shape: str, seconds: dict[str, list[float]]) -> str:
    """One line of a families' table: medians of the ratios to plain, and whether the shape's goals are met."""
    found = {label: ratio(seconds, name) for label, name in FAMILY_COLUMNS.items() if name in seconds}
    goals = [(name, goal) for (where, name), goal in GOALS.items() if where == shape]
    met = [f"≤ {goal} {'met' if ratio(seconds, name) <= goal else 'MISSED'}" for name, goal in goals]
    cells = [f"{statistics.median(seconds['plain']) * 1e3:.1f}", *(f"{value:.2f}" for value in found.values()), *met]
    return f"| {family} | " + " | ".join(cells) + " |"


def families(
    shape: str, names: list[str], batch: int, rounds: int, clock: Callable[[], float], device: torch.device
) -> None:
    """The table of every family at one shape."""
    columns = [label for label, name in FAMILY_COLUMNS.items() if name in names]
    print(f"Every family, {shape}, ratios to plain, last {LAST} positions:\n")
    print("| family | plain, ms | " + " | ".join([*columns, "goal"]) + " |\n|" + "---|" * (len(columns) + 3))
    for family in FAMILIES:
        lm = build_family(family, shape, device)
        ids = torch.randint(1, lm.dims.vocab, (batch, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
        variants = {n: v for n, v in ours(lm, ids, torch.ones_like(ids, dtype=torch.bool)).items() if n in names}
        print(family_row(family, shape, measure(variants, rounds, clock, device)), flush=True)
    print()


def peers() -> str:
    """Which peers can be imported here."""
    found = {name: importlib.util.find_spec(name) is not None for name in PEERS}
    return ", ".join(
        f"{name.replace('_', '-')} {importlib.metadata.version(name.replace('_', '-')) if there else 'not installed'}"
        for name, there in found.items()
    )


def held(result: Result) -> float:
    """MB kept alive by a capture (each storage once)."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in result.sites.values()}
    return sum(storages.values()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds of a smaller batch: a look, not a measurement")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall time, for a busy machine")
    options = parser.parse_args()
    device = pick_device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    batch, rounds = (QUICK_BATCH, 5) if options.quick else (BATCH, options.rounds)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(
        f"{batch} x {TOKENS} tokens, float32, {rounds} rounds of {clock.__name__}, torch {torch.__version__}, ", end=""
    )
    print(f"{device.type} ({where}); {peers()}\n")
    for shape, sizes in SHAPES.items():
        lm = build(*sizes, device)
        ids = torch.randint(0, lm.dims.vocab, (batch, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        variants = ours(lm, ids, mask) | transformer_lens(lm, ids) | nnsight(lm, ids)
        seconds = measure(variants, rounds, clock, device)
        print(table(shape, seconds))
        for mine, theirs in AGAINST.items():
            if theirs in seconds:
                share = ratio(seconds, mine, theirs)
                print(f"\n{mine} ÷ {theirs}: {share:.2f} (goal ≤ 1 {'met' if share <= 1 else 'MISSED'})")
        sites = {site: range(lm.dims.layers) for site in sites_of(lm.dims)}
        part, whole = (
            forward(lm, ModelInput(ids, mask), capture=sites, positions=LAST),
            forward(lm, ModelInput(ids, mask), capture=sites),
        )
        print(f"\nkept, all sites: last {LAST} positions {held(part):.1f} MB, all positions {held(whole):.1f} MB\n")
    small, large = SHAPES
    families(small, ["plain", *FAMILY_COLUMNS.values()], batch, rounds, clock, device)
    families(large, ["plain", FAMILY_COLUMNS["no lm_head"]], batch, max(3, rounds // 3), clock, device)


if __name__ == "__main__":
    main()
