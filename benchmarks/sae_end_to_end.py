"""Training an SAE on a real model, end to end: text to trained SAE, beside SAELens and beside the model's forward alone.

    python benchmarks/sae_end_to_end.py [--layer 12] [--tokens 32768] [--rounds 3] [--threads N] [--cpu-time]

The model is SmolLM2-135M-Instruct (tests/real_model.py fetches it), in float32; the text is the manuals of installed libraries in
sequences of 128 tokens, the same for all. A TopK SAE (expansion 8, k = 32, batch 256) is trained on the residual stream after
a block. "ours" is the loop that ``task=sae`` runs, its shuffle buffer included. "SAELens" is its runner's own store and trainer on
its wrapper of the same model, stopped after the same block; of its settings the fastest: no mixing of the buffer, no sparsity logs,
no evaluation. "forward" is the model cut after that block, run over as many tokens and nothing else: what no trainer can beat.
"bound" is that forward and our optimiser steps alone, each on rows that are there already: what a loop without any cost of its own
would reach. Memory is kept as a run of ours keeps it, for all of them. Tokens a second in rounds, in turn; goals: ours ÷ SAELens at
least 1.05, ours ÷ forward at least 0.85.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from real_model import manuals, real_model

from circuits.activations.stream import ActivationStream
from circuits.host import keep_memory
from circuits.model_input import ModelInput
from circuits.models.load import LM, load_model
from circuits.sae.loop import Hooks, train
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

CONTEXT, BATCH, K, EXPANSION = 128, 256, 32, 8
SEQUENCES = 64  # in one forward pass
FIRST = 32  # sequences that each is given before anything is counted
CPU = torch.device("cpu")


class Source:
    """Sequences of the manuals as a token source."""

    name, context = "manuals", CONTEXT

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def block(self, index: int, n: int) -> ModelInput:
        rows = (torch.arange(n) + index * n) % len(self.ids)
        return ModelInput(self.ids[rows], torch.ones(n, CONTEXT, dtype=torch.bool), rows)

    def heldout(self, n: int) -> ModelInput:
        return self.block(0, n)

    def passes(self, index: int, n: int) -> float:
        return index * n / len(self.ids)


def sequences(tokenizer: Any, tokens: int) -> torch.Tensor:
    """As many whole sequences as `tokens` come to."""
    need, found = tokens // CONTEXT * CONTEXT, []
    for text in manuals():
        found += tokenizer(text)["input_ids"]
        if len(found) >= need:
            break
    return torch.tensor(found[:need]).view(-1, CONTEXT)


def wanted(lm: LM, ids: torch.Tensor, layer: int) -> TrainSpec:
    """The SAE that ours trains on as many tokens."""
    steps, width = ids.numel() // BATCH, lm.dims.width
    return TrainSpec(
        "topk", width, EXPANSION * width, 1e-3, BATCH, steps, k=K, layer=layer, warmup=50, decay=0.2, aux=1 / 32
    )


def streamed(lm: LM, ids: torch.Tensor, layer: int) -> ActivationStream:
    """The activations that ours trains on."""
    rows = min(16_384, ids.numel())
    return ActivationStream(
        lm, Source(ids), site="resid_post", layers=[layer], batch_size=BATCH, block_rows=rows, forward_batch=SEQUENCES
    )


def ours(lm: LM, ids: torch.Tensor, layer: int) -> Callable[[], None]:
    """The loop of ``task=sae`` on the stream."""
    spec = wanted(lm, ids, layer)

    def run() -> None:
        hooks: Any = Hooks(log=lambda *_: None, save=lambda *_: None, stopping=lambda: False)
        train(streamed(lm, ids, layer), {layer: spec}, {}, hooks, {layer: spec.steps})

    return run


def optimised(lm: LM, ids: torch.Tensor, layer: int) -> Callable[[], None]:
    """The steps of ours on the rows of one short block, again and again."""
    spec, few = wanted(lm, ids, layer), ids[:FIRST]
    found = itertools.islice(streamed(lm, few, layer).batches(), few.numel() // BATCH)
    rows = [batch.rows[layer] for batch in found]

    def run() -> None:
        trainer = Trainer(spec, CPU, torch.cat(rows))
        for step in range(spec.steps):
            trainer.train_step(rows[step % len(rows)])

    return run


def theirs(lm: LM, ids: torch.Tensor, layer: int) -> Callable[[], None]:
    """SAELens's store, mixing buffer and trainer, as its runner puts them together."""
    from datasets import Dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.sae_trainer import SAETrainer

    width, hook = lm.dims.width, f"model.layers.{layer}"
    data = Dataset.from_dict({"input_ids": ids.tolist()})
    proxy = HookedProxyLM(lm.model, lm.tokenizer, hook_names=[hook])

    def run() -> None:
        sae = TopKTrainingSAEConfig(d_in=width, d_sae=EXPANSION * width, k=K, normalize_activations="none")
        config = LanguageModelSAERunnerConfig(
            sae=sae, model_name=lm.tokenizer.name_or_path, model_class_name="AutoModelForCausalLM", hook_name=hook,
            dataset_path="manuals", streaming=False, is_dataset_tokenized=True, context_size=CONTEXT, prepend_bos=False,
            training_tokens=ids.numel(), train_batch_size_tokens=BATCH, store_batch_size_prompts=SEQUENCES,
            n_batches_in_buffer=2, activations_mixing_fraction=0.0, lr=1e-3, device="cpu", n_checkpoints=0,
            feature_sampling_window=1 << 30, checkpoint_path=None, output_path=None, verbose=False,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        runner = LanguageModelSAETrainingRunner(config, override_dataset=data, override_model=proxy)
        SAETrainer(cfg=config.to_sae_trainer_config(), sae=runner.sae, data_provider=runner.activations_store).fit()

    return run


def truncated(lm: LM, ids: torch.Tensor, layer: int) -> Callable[[], None]:
    """The model's blocks up to that layer, and no more of it, over all sequences."""
    model = lm.model.model
    every = model.layers

    @torch.inference_mode()
    def run() -> None:
        model.layers = every[: layer + 1]
        try:
            for chunk in ids.split(SEQUENCES):
                model(chunk, use_cache=False)
        finally:
            model.layers = every

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, on a machine that is not quiet"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    clock = time.process_time if given.cpu_time else time.perf_counter
    lm = load_model(str(real_model()), dtype=torch.float32, device=CPU)
    ids = sequences(lm.tokenizer, given.tokens)
    parts = {"forward": truncated, "steps": optimised, "SAELens": theirs, "ours": ours}
    runs = {name: make(lm, ids, given.layer) for name, make in parts.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for make in parts.values():  # what is done once
        with contextlib.redirect_stdout(sys.stderr):
            make(lm, ids[:FIRST], given.layer)()
    for turn in range(given.rounds):
        for i in range(len(runs)):
            name = list(runs)[(i + turn) % len(runs)]
            began = clock()
            with contextlib.redirect_stdout(sys.stderr):
                runs[name]()
            rates[name].append(ids.numel() / (clock() - began))
    report(rates, given, ids.numel())


def report(rates: dict[str, list[float]], given: argparse.Namespace, tokens: int) -> None:
    """Medians, and ratios within rounds."""
    per = "second of the processor" if given.cpu_time else "second"
    print(
        f"One TopK SAE (expansion {EXPANSION}, k = {K}, batch {BATCH}) on SmolLM2-135M-Instruct, resid_post of layer "
        f"{given.layer}, {tokens:,} tokens in float32, threads: {given.threads}; medians of {given.rounds} rounds; load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n"
    )
    print(f"| | tokens a {per} | ours ÷ it | range | goal |\n|---|---|---|---|---|")
    pairs = zip(rates["forward"], rates["steps"], strict=True)
    rates = {**rates, "bound": [1 / (1 / forward + 1 / step) for forward, step in pairs]}
    called = {
        "forward": "forward of its blocks alone",
        "steps": "our optimiser steps alone",
        "bound": "both of these: the bound",
    }
    for name, goal in (("forward", "≥ 0.85"), ("steps", ""), ("bound", ""), ("SAELens", "≥ 1.05"), ("ours", "")):
        ratios = [mine / other for mine, other in zip(rates["ours"], rates[name], strict=True)]
        compared = name not in ("steps", "ours")
        cells = [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"] if compared else ["", ""]
        print(f"| {called.get(name, name)} | {statistics.median(rates[name]):,.0f} | {' | '.join(cells)} | {goal} |")

    most, share = (
        statistics.median(mine / other for mine, other in zip(rates[name], rates[base], strict=True))
        for name, base in (("bound", "forward"), ("ours", "bound"))
    )
    print(f"\nThe steps take their time: no loop that makes them reaches more than {most:.2f} of the forward here. Ours reaches "
          f"{share:.2f} of that bound.")  # fmt: skip


if __name__ == "__main__":
    main()
