"""What circuits cost: scores of all edges, circuits alone and bootstraps, as shares of one plain Hugging Face forward pass.

    python benchmarks/attribution.py [--quick] [--rounds 3] [--cpu-time]

Needs torch and transformers; TransformerLens and auto-circuit are measured beside us where they can be imported
(attribution_peers.py). Random weights: cost does not depend on them. GPT-2 at 6 layers of 384 (16 pairs of 32 tokens),
SmolLM2-135M's shape (24 pairs of 16 tokens). The plain pass is the library's own over the same clean prompts, all logits. Goals:
EAP, GIM, RelP ≤ 5 ×, EAP-IG with 5 steps ≤ 13 × (SmolLM2's shape ≤ 6 × for one backward pass, under 4 GB), an edge-ablated forward
≤ 3 ×, 80 × 64 tokens at 12 × 768 under 2 GB beyond the model, 1,000 bootstraps of 100 prompts × 300,000 edges under 20 s and 2 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from attribution_peers import auto_circuit, transformer_lens
from interventions import Clock, median_ratio, prompts, smollm2, timed

from circuits.attribution.ablated import ablated
from circuits.attribution.agreement import stability
from circuits.attribution.faithful import cut
from circuits.attribution.methods.base import Task
from circuits.attribution.nodes import Nodes
from circuits.attribution.passes import run
from circuits.attribution.scores import writes
from circuits.attribution.settings import Settings
from circuits.attribution.study import Ask, method, score
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.models.load import LM, wrap

ONE = ("eap", "gim", "relp")


def gpt2(layers: int, width: int, heads: int) -> LM:
    """GPT-2 of a size."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=128, bos_token_id=0, eos_token_id=0)
    return wrap(GPT2LMHeadModel(config))


def plain(lm: LM, given: PromptSet, times: int = 2) -> Callable[[], object]:
    """Plain passes over the clean prompts, with all logits."""
    ids = torch.tensor([p.ids for p in given])

    @torch.no_grad()
    def passes() -> None:
        for _ in range(times):
            lm.model(input_ids=ids, use_cache=False)

    return passes


def ours(lm: LM, given: PromptSet, name: str, batch: int) -> Callable[[], object]:
    """Scores of all edges on every prompt."""
    ask = Ask(lm, given, Settings(method=name, batch_size=batch))
    rows = ask.pairs(given)

    def scores() -> list[Tensor]:
        return [method(name).scores(Task(ask.anatomy, b)) for b in rows.batches(batch, lm.device)]

    return scores


class Peak:
    """The most resident memory while something runs, beyond what there was."""

    def __enter__(self) -> Peak:
        self.process, self.done = psutil.Process(), threading.Event()
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def gb(self) -> float:
        """Gigabytes beyond what there was."""
        return (self.most - self.before) / 1e9


def row(name: str, seconds: float, share: float, goal: float | None = None, more: str = "") -> None:
    """A line of the table."""
    verdict = "" if goal is None else f"≤ {goal:g} × {'met' if share <= goal else 'MISSED'}"
    print(f"| {name} | {seconds:.2f} | {share:.2f} × | {verdict}{more} |", flush=True)


def methods(
    title: str, lm: LM, given: PromptSet, batch: int, rounds: int, clock: Clock, goals: tuple[float, float], peers: bool
) -> None:
    """Every method beside a plain pass."""
    variants: dict[str, Callable[[], object]] = {"plain": plain(lm, given)}
    variants |= {name: ours(lm, given, name, batch) for name in (*ONE, "eap_ig_inputs")}
    found = {"TransformerLens, EAP": transformer_lens, "auto-circuit, EAP": auto_circuit} if peers else {}
    theirs = {name: run for name, make in found.items() if (run := make(lm, given)) is not None}
    variants |= theirs
    seconds = timed(variants, rounds, clock)
    print(f"| {title} | s | ÷ plain pass | goal |\n|---|---|---|---|")
    row("plain pass", statistics.median(seconds["plain"]) / 2, 1.0)
    for name in variants:
        if name != "plain":
            share = 2 * median_ratio(seconds, name, "plain")
            goal = None if name in theirs else goals[name == "eap_ig_inputs"]
            row(name, statistics.median(seconds[name]), share, goal)
    print(flush=True)


def alone(lm: LM, given: PromptSet, rounds: int, clock: Clock) -> None:
    """One forward pass with a twentieth of the edges kept."""
    ask = Ask(lm, given, Settings())
    batch = ask.pairs(given).batch(list(range(len(given))), lm.device)
    rng = np.random.default_rng(0)
    mask = (rng.random(ask.nodes.mask.shape) < 0.05) & ask.nodes.mask
    with torch.no_grad():
        values = writes(ask.anatomy, run(ask.anatomy, batch.other))

    @torch.no_grad()
    def once() -> None:
        ablated(ask.anatomy, batch.base, batch.answers, cut([mask], ask.anatomy), values)

    seconds = timed({"plain": plain(lm, given), "alone": once}, rounds, clock)
    row(
        "a circuit alone, one pass",
        statistics.median(seconds["alone"]),
        2 * median_ratio(seconds, "alone", "plain"),
        3.0,
    )


def sizes(quick: bool) -> None:
    """Memory and the bootstrap."""
    print("\n| what | s | GB beyond | goal |\n|---|---|---|---|")
    lm = gpt2(4 if quick else 12, 768, 12)
    given = prompts(16 if quick else 80, 64, lm.dims.vocab)
    ask = Ask(lm, given, Settings())
    with Peak() as peak:
        start = time.perf_counter()
        score(ask, lambda _: Keeper())
    took = time.perf_counter() - start
    verdict = "met" if peak.gb < 2 else "MISSED"
    print(
        f"| EAP-IG, {len(given)} × 64 tokens at {lm.dims.layers} × 768 | {took:.1f} | {peak.gb:.2f} | < 2 GB {verdict} |"
    )
    nodes = Nodes(58, 8, 4)
    edges = len(nodes.edges)
    values = np.random.default_rng(0).normal(size=(100, edges)).astype(np.float32)
    with Peak() as peak:
        start = time.perf_counter()
        stability(values, nodes, edges // 20, [str(i) for i in range(100)], resamples=100 if quick else 1000, seed=0)
    took = time.perf_counter() - start
    verdict = "met" if took < 20 and peak.gb < 2 else "MISSED"
    print(
        f"| 1,000 bootstraps of 100 prompts × {edges:,} edges | {took:.1f} | {peak.gb:.2f} | < 20 s, 2 GB {verdict} |",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and one round: a look, not a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall time, for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    rounds = 1 if options.quick else options.rounds
    print(
        f"float32, {rounds} rounds of {clock.__name__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    small = gpt2(6, 384, 6)
    methods("GPT-2, 6 × 384, 16 pairs of 32 tokens", small, prompts(16, 32, 50257), 16, rounds, clock, (5, 13), True)
    alone(small, prompts(16, 32, 50257), rounds, clock)
    print()
    real = smollm2(6 if options.quick else 30)
    with Peak() as peak:
        methods(
            "SmolLM2-135M's shape, 24 pairs of 16 tokens",
            real,
            prompts(24, 16, 49152),
            24,
            rounds,
            clock,
            (6, 20),
            False,
        )
    print(f"Memory beyond the model, all of this: {peak.gb:.2f} GB (< 4 GB {'met' if peak.gb < 4 else 'MISSED'})")
    sizes(options.quick)


if __name__ == "__main__":
    main()
