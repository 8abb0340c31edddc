"""The graph that circuit-tracer makes, for feature_graphs.py, under a Python that has it: ``feature_graphs_peer.py FOLDER``.

FOLDER holds the model as transformers saves it, ``layer_{i}.safetensors`` and ``asked.json``; ``told.json`` and
``graph.safetensors`` are added.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class Tokenizer:
    """As much of one as circuit-tracer asks: every first token counts as special, so that none is put before it."""

    def __init__(self, first: int, vocabulary: int) -> None:
        self.all_special_ids, self.padding_side, self.vocab_size = [first], "right", vocabulary

    def decode(self, ids: Any) -> str:
        """Of no use here."""
        return str(ids)


def replaced(folder: Path) -> Any:
    """The model in TransformerLens with its transcoders."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_qwen2_weights
    from transformers import Qwen2ForCausalLM

    hf = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = hf.config
    head = c.hidden_size // c.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=c.num_attention_heads, n_key_value_heads=c.num_key_value_heads,
        d_head=head, d_mlp=c.intermediate_size, d_vocab=c.vocab_size, n_ctx=128, eps=c.rms_norm_eps, act_fn="silu", gated_mlp=True,
        normalization_type="RMS", final_rms=True, positional_embedding_type="rotary", rotary_base=10000, rotary_dim=head,
        rotary_adjacent_pairs=False, device="cpu", dtype=torch.float32, model_name="qwen2", default_prepend_bos=False,
        original_architecture="Qwen2ForCausalLM",
    )  # fmt: skip
    model = TransformerLensReplacementModel(config)
    model.load_state_dict(convert_qwen2_weights(hf, config), strict=False)
    found = {}
    for layer in range(c.num_hidden_layers):
        tensors = load_file(folder / f"layer_{layer}.safetensors")
        one = SingleLayerTranscoder(
            c.hidden_size,
            len(tensors["b_enc"]),
            torch.nn.functional.relu,
            layer,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        one.load_state_dict(tensors)
        found[layer] = one
    model._configure_replacement_model(TranscoderSet(found, "mlp.hook_in", "hook_mlp_out"))
    model.zero_positions = slice(0, 0)
    return model


def main() -> None:
    """Trace, and write."""
    from circuit_tracer.attribution.attribute import attribute

    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    torch.set_num_threads(asked["threads"])
    model = replaced(folder)
    model.tokenizer = Tokenizer(asked["ids"][0], model.cfg.d_vocab)
    ids = torch.tensor(asked["ids"])
    head = model.unembed.W_U.detach()
    direction = head[:, asked["right"]] - head[:, asked["wrong"]]
    seconds: dict[int, list[float]] = {batch: [] for batch in asked["batches"]}
    for _ in range(asked["rounds"]):
        for batch, took in seconds.items():
            start = time.perf_counter()
            graph = attribute(ids, model, attribution_targets=[("difference", 1.0, direction)], batch_size=batch)
            took.append(time.perf_counter() - start)
    n = len(graph.active_features)
    rows = torch.cat([graph.adjacency_matrix[:n, :-1], graph.adjacency_matrix[-1:, :-1]])
    save_file({"active": graph.active_features.contiguous(), "rows": rows.contiguous()}, folder / "graph.safetensors")
    (folder / "told.json").write_text(json.dumps({"seconds": seconds, "version": version("circuit-tracer")}))


if __name__ == "__main__":
    main()
