"""A model wired by hand: scores tell the edges that are there from those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import VOCAB, build
from test_circuits import batch
from torch import Tensor

from circuits.attribution import missed, study
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import connected
from circuits.attribution.methods.base import Task
from circuits.attribution.nodes import Nodes
from circuits.attribution.passes import read
from circuits.attribution.settings import Settings
from circuits.attribution.study import method
from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM


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


def gates() -> LM:
    """Two MLPs in a row that are saturated gates: token 1 sets the first, the first sets the second, and that answers 5. Attention
    writes nothing. A gradient at a prompt with token 1 is zero before the last of them."""
    import transformers as hf

    from circuits.models.load import wrap

    width, scale = 16, 20.0
    pair = lambda i: torch.eye(width)[2 * i] - torch.eye(width)[2 * i + 1]  # noqa: E731  (its mean is 0, as a norm wants it)
    model = hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=width, n_layer=3, n_head=2, n_inner=4, activation_function="relu",
                      tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        norm = (2 * scale**2 / width) ** -0.5  # of every stream, since one direction is much larger than all others
        model.transformer.wte.weight.copy_((scale * pair(0)).expand(VOCAB, width))
        model.transformer.wte.weight[1] += 3 * pair(1)
        for i in (0, 1):  # clamp(stream, 0, 1): one ReLU less another that begins at 1
            mlp = model.transformer.h[i].mlp
            mlp.c_fc.weight[:, 0] = mlp.c_fc.weight[:, 1] = (1 if i == 0 else 3) * pair(1 + i) / (2 * norm)
            mlp.c_fc.bias[1] = -1
            mlp.c_proj.weight[0], mlp.c_proj.weight[1] = pair(2 + i), -pair(2 + i)
        model.lm_head.weight[5] = scale * pair(3)
    return wrap(model)


@pytest.mark.parametrize(("name", "edges"), [("eap", 0.01), ("eap_ig_inputs", 4)])
def test_a_deep_circuit_of_which_only_the_end_is_found_is_flagged(name: str, edges: float) -> None:
    """And one that is found as deep as it is, is not."""
    ids, others = [(2, 3, 1), (4, 2, 1), (3, 3, 1)], [(2, 3, 4), (4, 2, 6), (3, 3, 2)]
    rows = [
        Prompt(f"p{i}", f"text {i}", "", "", "", "x", "train", str(i), {}, a, b, (5,), (9,))
        for i, (a, b) in enumerate(zip(ids, others, strict=True))
    ]
    ask = study.Ask(gates(), PromptSet(tuple(rows)), Settings(method=name, edges=edges, steps=20))
    found = study.score(ask, lambda _: Keeper())
    assert found is not None and np.all(found.base - found.other > 1)
    told = missed.missed(ask, found, lambda _: Keeper())
    there = {nodes["unit"]: nodes["share"] for nodes in told["found"]}
    if name == "eap":
        kept = [
            ask.nodes.edge_names[e] for e in np.flatnonzero(study.circuit(ask, found.scores.mean(0, dtype=np.float64)))
        ]
        assert kept == ["m1->logits"] and there["m0"] == pytest.approx(1, abs=1e-3) and "m0 +100%" in told["told"]
    else:
        assert there == {} and told["told"] == "" and told["largest"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt_neox", "gpt2"])
def test_what_is_patched_beside_a_circuit_is_what_hooks_patch(family: str) -> None:
    """Two heads of a layer at once, and an MLP, against an independent way to put the other run's values in."""
    lm, b = build(family), batch(4)
    anatomy, nodes = Anatomy(lm), Anatomy(lm).nodes
    units = missed.outside(nodes, np.zeros(nodes.mask.shape, dtype=bool))
    assert len(units) == 2 * nodes.layers
    got = missed.effects(anatomy, b, units, copies=3)
    single = missed.effects(anatomy, b, units, copies=1)
    assert torch.allclose(got, single, atol=1e-5)
    last = ("resid_post", nodes.layers - 1)
    plain = read(anatomy, forward(lm, b.base, capture=[last]).sites[last], b.answers)[1]
    for i, unit in enumerate(units):
        site = "mlp_out" if unit.mlp else "attn_out"
        other = forward(lm, b.other, capture=[(site, unit.layer)]).sites[site, unit.layer]
        edit = Edit(site, unit.layer, lambda y, value=other: value)
        changed = read(anatomy, forward(lm, b.base, capture=[last], edits=[edit]).sites[last], b.answers)[1]
        assert torch.allclose(got[:, i], (changed - plain).cpu(), atol=2e-4), unit
