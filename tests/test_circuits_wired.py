"""A model wired by hand: scores tell the edges that are there from those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import VOCAB
from test_circuits import batch
from torch import Tensor

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import connected
from circuits.attribution.methods.base import Task
from circuits.attribution.nodes import Nodes
from circuits.attribution.study import method


def wired(seed: int = 0) -> tuple[object, np.ndarray]:
    """A Llama in which every writer has eight dimensions of the stream for itself, and every reader sees only the writers that it
    is wired to; with the wiring ``[writers, readers]``."""
    import transformers as hf

    from circuits.models.load import wrap

    layers, heads, size = 2, 2, 8
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(
            hf.LlamaConfig(
                vocab_size=VOCAB, hidden_size=56, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                head_dim=16, intermediate_size=64, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=0,
                eos_token_id=0, pad_token_id=0,
            )
        )  # fmt: skip
        nodes = Nodes(layers, heads, heads)
        truth = nodes.mask & (torch.rand(nodes.mask.shape) < 0.5).numpy()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "norm" not in name:
                    p.copy_(torch.randn(p.shape) * p.shape[-1] ** -0.5 * 2)
            model.model.embed_tokens.weight[:, size:] = 0

            def own(weight: Tensor, u: int) -> None:
                keep = torch.zeros(56)
                keep[u * size : (u + 1) * size] = 1
                weight.mul_(keep[:, None])

            def sees(weight: Tensor, v: int) -> None:
                weight.mul_(torch.from_numpy(truth[:, v]).repeat_interleave(size)[None])

            for i, block in enumerate(model.model.layers):
                for h in range(heads):
                    own(block.self_attn.o_proj.weight[:, h * 16 : (h + 1) * 16], nodes.writer(i, h))
                    for part in "qkv":
                        projection = getattr(block.self_attn, f"{part}_proj")
                        sees(projection.weight[h * 16 : (h + 1) * 16], nodes.slots(i, part).start + h)
                own(block.mlp.down_proj.weight, nodes.writer(i))
                for projection in (block.mlp.gate_proj, block.mlp.up_proj):
                    sees(projection.weight, nodes.slots(i, "mlp").start)
            sees(model.lm_head.weight, len(nodes.readers) - 1)
    return wrap(model), truth


@pytest.mark.parametrize("name", ["eap_ig_inputs", "eap", "relp"])
def test_the_edges_of_a_model_wired_by_hand_are_told_from_the_others(name: str) -> None:
    from scipy.stats import mannwhitneyu

    lm, truth = wired()
    anatomy, b = Anatomy(lm), batch(8)  # type: ignore[arg-type]
    sizes = method(name).scores(Task(anatomy, b)).abs().mean(0).detach().numpy()
    nodes = anatomy.nodes
    alive = connected(truth, nodes)  # what is wired, and lies on a way from the input to the logits
    inside, outside = sizes[alive], sizes[nodes.mask & ~truth]
    auroc = mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))
    assert auroc >= 0.95, auroc
