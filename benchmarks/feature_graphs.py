"""Graphs of transcoder features: ours beside circuit-tracer's, of the same model, transcoders and prompt; their edges compared.

    python benchmarks/feature_graphs.py [--circuit-tracer PYTHON] [--rounds 3]

circuit-tracer asks for older versions of transformers and huggingface_hub than we do, so that it runs under a Python of its own
(feature_graphs_peer.py; ``CIRCUIT_TRACER_PYTHON`` says it, too)::

    python -m venv theirs && theirs/bin/pip install torch==2.13.0 circuit-tracer==0.5.0

A Qwen2 of 6 layers of 384 with random weights, ReLU transcoders of 2,048 features at every MLP, one prompt of 32 tokens: about
2,000 active features, every one of them traced, to the difference of two logits. Ours is
:class:`circuits.attribution.features.local.Local` with the rows of all features, 64 targets at a time; circuit-tracer is at the
best of 32, 64, 128 and its default of 512. It leaves features of the first token out; here it is told not to. Goal: 2,000 nodes
under 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from interventions import wrap

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.features.dictionaries import Dictionaries
from circuits.attribution.features.local import Local
from circuits.models.load import LM
from circuits.sae.modules.base import SAEConfig
from circuits.sae.modules.relu import ReLUSAE

LAYERS, WIDTH, FEATURES, TOKENS, VOCAB, BATCH = 6, 384, 2048, 32, 4096, 64
ACTIVE = 0.005
"""Of a transcoder's features at a token."""
RIGHT, WRONG = 3, 4


def model() -> LM:
    """The model, in float32."""
    torch.manual_seed(0)
    config = Qwen2Config(
        num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=6, num_key_value_heads=2, intermediate_size=4 * WIDTH,
        vocab_size=VOCAB, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        initializer_range=0.1,
    )  # fmt: skip
    return wrap(Qwen2ForCausalLM(config))


def transcoders() -> Dictionaries:
    """One a layer: rows are near unit scale after a norm, so that a bias of −z leaves the share `ACTIVE` of features active."""
    found: dict[int, Any] = {}
    below = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - ACTIVE)).item()
    for layer in range(LAYERS):
        g = torch.Generator().manual_seed(layer)
        sae = ReLUSAE(SAEConfig(WIDTH, FEATURES, d_out=WIDTH))
        for name, parameter in sae.named_parameters():
            if name.startswith("W"):
                parameter.data = torch.randn(parameter.shape, generator=g) / WIDTH**0.5
        sae.b_enc.data = torch.full_like(sae.b_enc, -below)
        found[layer] = sae
    return Dictionaries(found, "mlp_in", "mlp_out")


def ours(anatomy: Anatomy, d: Dictionaries, ids: tuple[int, ...], direction: torch.Tensor, batch: int) -> Any:
    """All rows, ``[features + 1, sources]``, and the active features, ``[features, (layer, position, feature)]``."""
    local = Local(anatomy, d, ids, copies=batch)
    active = [
        (la, int(p), int(f))
        for la in d.layers
        for p, f in zip(*(local.active[la].position, local.active[la].feature), strict=True)
    ]
    rows = local.feature_rows(*(list(column) for column in zip(*active, strict=True)))
    return torch.cat([rows, local.logit_rows(direction[None])]).numpy(), active


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--circuit-tracer", default=os.environ.get("CIRCUIT_TRACER_PYTHON"), help="a Python that has it"
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lm, d = model(), transcoders()
    ids = tuple(torch.randint(1, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(9)).tolist())
    head = lm.model.get_output_embeddings().weight.detach()  # type: ignore[operator]
    direction, anatomy = head[RIGHT] - head[WRONG], Anatomy(lm)
    took = []
    for _ in range(given.rounds):
        start = time.perf_counter()
        rows, active = ours(anatomy, d, ids, direction, BATCH)
        took.append(time.perf_counter() - start)
    nodes = rows.shape[1] + 1
    print(f"{nodes:,} nodes, {len(active):,} of them features, all traced; {torch.get_num_threads()} threads\n")
    print("| graph of one prompt | s | min-max | goal |\n|---|---|---|---|")
    seconds = statistics.median(took)
    print(
        f"| ours | {seconds:.1f} | {min(took):.1f}-{max(took):.1f} | < 30 {'met' if seconds < 30 else 'MISSED'} |",
        flush=True,
    )
    if given.circuit_tracer is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        lm.model.save_pretrained(folder)
        for layer in d.layers:
            sae = d.saes[layer]
            tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
            found = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(found, Path(folder) / f"layer_{layer}.safetensors")
        facts = {
            "ids": ids,
            "right": RIGHT,
            "wrong": WRONG,
            "batches": [32, BATCH, 128, 512],
            "rounds": given.rounds,
            "threads": torch.get_num_threads(),
        }
        (Path(folder) / "asked.json").write_text(json.dumps(facts))
        peer = Path(__file__).resolve().with_name("feature_graphs_peer.py")
        subprocess.run([given.circuit_tracer, str(peer), folder], check=True)
        told = json.loads((Path(folder) / "told.json").read_text())
        theirs = load_file(Path(folder) / "graph.safetensors")
    for batch, took in told["seconds"].items():
        name = f"circuit-tracer {told['version']}, {batch} at a time"
        print(f"| {name} | {statistics.median(took):.1f} | {min(took):.1f}-{max(took):.1f} | |")
    other = min(statistics.median(took) for took in told["seconds"].values())
    print()
    same = np.array_equal(np.array(active), theirs["active"])
    print(f"Ours ÷ theirs {seconds / other:.2f}. The same active features: {same}.")
    if same:
        scale = np.abs(theirs["rows"]).max()
        off = float(np.abs(rows - theirs["rows"]).max() / scale)
        print(f"Largest difference of {rows.size:,} edges, as a share of the largest edge: {off:.1e}.")


if __name__ == "__main__":
    main()
