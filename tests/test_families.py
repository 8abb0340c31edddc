"""Every model family by hand: what each site is, written out from the architecture's definition and its weights; sizes, presets,
refusals; images in the vision-language model; and the numbers of generation.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from prompt_sets import bpe
from small_models import IMAGE_TOKEN, IMAGE_TOKENS, LAYERS, MODELS, VOCAB, build, every_site, rows
from test_baseline import prompt_set
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from circuits.activations.scoring import score
from circuits.errors import UserError
from circuits.model_input import ModelInput
from circuits.models import sites
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM, load_model, wrap
from circuits.models.modules import module_at
from circuits.models.sites import FAMILIES, dims_of, family_of, fp16_problem, site_width, sites_of
from circuits.sae.splice import splice_losses
from circuits.store import places


@pytest.fixture(scope="module", params=MODELS)
def lm(request) -> LM:
    return build(request.param)


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


# What each site is, from the weights


def rms(x: torch.Tensor, norm: torch.nn.Module, unit: float, eps: float) -> torch.Tensor:
    """Root-mean-square norm (Zhang and Sennrich 2019); Gemma stores its gain less one."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (unit + norm.weight)


def by_hand(lm: LM, layer: int, s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sites of one block from those before them, by the architecture's definition."""
    config = lm.model.config.get_text_config()
    kind = config.model_type
    block = module_at(lm.model, lm.family.blocks)[layer]
    z = s["head_z"].flatten(-2)
    if kind == "gpt2":
        mlp = block.mlp
        return {
            "attn_out": z @ block.attn.c_proj.weight + block.attn.c_proj.bias,
            "mlp_in": F.layer_norm(s["resid_mid"], (32,), block.ln_2.weight, block.ln_2.bias, 1e-5),
            "mlp_act": F.gelu(s["mlp_in"] @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh"),
            "mlp_out": s["mlp_act"] @ mlp.c_proj.weight + mlp.c_proj.bias,
        }
    if kind == "gpt_neox":
        mlp, norm = block.mlp, block.post_attention_layernorm
        read = s["resid_pre"] if config.use_parallel_residual else s["resid_mid"]
        return {
            "attn_out": z @ block.attention.dense.weight.T + block.attention.dense.bias,
            "mlp_in": F.layer_norm(read, (32,), norm.weight, norm.bias, 1e-5),
            "mlp_act": F.gelu(s["mlp_in"] @ mlp.dense_h_to_4h.weight.T + mlp.dense_h_to_4h.bias),
            "mlp_out": s["mlp_act"] @ mlp.dense_4h_to_h.weight.T + mlp.dense_4h_to_h.bias,
        }
    gemma = kind == "gemma3_text"
    gate, up, down = (p.weight for p in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj))
    attention, mlp_out = z @ block.self_attn.o_proj.weight.T, s["mlp_act"] @ down.T
    before = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
    if gemma:  # a norm after each sublayer: what is written to the stream is its output
        attention = rms(attention, block.post_attention_layernorm, 1.0, config.rms_norm_eps)
        mlp_out = rms(mlp_out, block.post_feedforward_layernorm, 1.0, config.rms_norm_eps)
    gated = s["mlp_in"] @ gate.T
    return {
        "attn_out": attention,
        "mlp_in": rms(s["resid_mid"], before, 1.0 if gemma else 0.0, config.rms_norm_eps),
        "mlp_act": (F.gelu(gated, approximate="tanh") if gemma else F.silu(gated)) * (s["mlp_in"] @ up.T),
        "mlp_out": mlp_out,
    }


def test_every_site_is_what_the_architecture_says(lm):
    ids, mask = rows(7, 5)
    sites = forward(lm, ModelInput(ids, mask), capture=every_site(lm)).sites
    for layer in range(LAYERS):
        here = {site: sites[site, layer] for site in sites_of(lm.dims)}
        for site, expected in by_hand(lm, layer, here).items():
            torch.testing.assert_close(here[site], expected, **CLOSE, msg=lambda m, s=site: f"{s}: {m}")


def test_gpt2_agrees_with_a_forward_pass_written_from_the_paper():
    """Radford et al. 2019: pre-norm blocks of causal attention and MLP, tied unembedding; in plain numpy, float64."""
    lm = build("gpt2")
    w = {name: value.double().numpy() for name, value in lm.model.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens = rows(9)[0]
    n, sites = tokens.shape[1], {}
    x = w["transformer.wte.weight"][tokens[0]] + w["transformer.wpe.weight"][:n]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        sites["resid_pre", layer] = x
        q, k, v = np.split(linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").reshape(n, 3, 4, 8), 3, axis=1)
        scores = np.einsum("qahd,kahd->hqk", q, k) / np.sqrt(8)
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        z = np.einsum("hqk,kahd->qhd", weights / weights.sum(-1, keepdims=True), v)
        sites["head_z", layer] = z
        sites["resid_mid", layer] = x = x + linear(z.reshape(n, 32), f"{block}.attn.c_proj")
        h = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        act = h * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        sites["mlp_act", layer] = act
        sites["resid_post", layer] = x = x + linear(act, f"{block}.mlp.c_proj")
    logits = norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T
    ours = forward(lm, ModelInput(tokens, torch.ones_like(tokens).bool()), capture=list(sites), logits="all")
    np.testing.assert_allclose(ours.logits[0].numpy(), logits, atol=1e-4, rtol=1e-4)
    for key, expected in sites.items():
        np.testing.assert_allclose(ours.sites[key][0].numpy(), expected, atol=1e-4, rtol=1e-4, err_msg=str(key))


# Logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_capture_leaves_the_logits_bit_equal(lm, side):
    ids, mask = rows(7, 5, side=side)
    plain = forward(lm, ModelInput(ids, mask), logits="all").logits
    assert torch.equal(forward(lm, ModelInput(ids, mask), capture=every_site(lm), logits="all").logits, plain)
    assert torch.equal(
        forward(lm, ModelInput(ids, mask), capture=every_site(lm), positions=2, logits="all").logits, plain
    )


def test_logits_are_those_of_generation(lm):
    ids, mask = rows(8, 5, side="left")
    with torch.no_grad():
        out = lm.model.generate(
            input_ids=ids, attention_mask=mask.long(), max_new_tokens=3, do_sample=False, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    for step, expected in enumerate(out.logits):
        upto = ids.shape[1] + step
        grown = torch.cat([mask, torch.ones(2, step, dtype=torch.bool)], dim=1)
        ours = forward(lm, ModelInput(out.sequences[:, :upto], grown), logits="last").logits
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_low_precision_passes_keep_their_dtype_and_stay_near(lm):
    ids, mask = rows(7, 5)
    name = "gpt_neox sequential" if lm.family.parallel and not lm.dims.parallel else lm.model.config.model_type
    half = build(name, torch.bfloat16)
    low = forward(half, ModelInput(ids, mask), capture=every_site(lm), logits="last")
    full = forward(lm, ModelInput(ids, mask), capture=every_site(lm), logits="last")
    assert {tensor.dtype for tensor in low.sites.values()} == {torch.bfloat16}
    for key, tensor in full.sites.items():
        assert torch.nn.functional.cosine_similarity(low.sites[key].float(), tensor, dim=-1)[mask].min() > 0.9, key


@pytest.mark.parametrize("family", [name for name in MODELS if not fp16_problem(name)])
def test_float16_models_score_finite_numbers_and_differ_from_themselves_by_no_kl(family):
    half, whole = build(family, torch.float16), build(family)
    given, (ids, mask) = prompt_set((2, 1)), rows(7, 5)
    low, full = score(half, given, batch_size=4), score(whole, given, batch_size=4)
    for name, values in asdict(low).items():
        assert np.isfinite(values).all(), name
    assert np.allclose(low.logp_target, full.logp_target, atol=0.1)
    clean = forward(half, ModelInput(ids, mask), logits="all").logits
    assert clean.dtype is torch.float16
    same, zero = (splice_losses(clean, other, clean, ids, mask) for other in (clean.clone(), torch.zeros_like(clean)))
    assert same.kl.tolist() == [0.0, 0.0] and (zero.kl > 0).all() and zero.kl.isfinite().all()


# The vision-language model


def test_images_enter_the_language_tower_where_their_tokens_stand():
    lm = build("gemma3")
    ids = torch.tensor([[3, *[IMAGE_TOKEN] * IMAGE_TOKENS, 7, 9]])
    mask = torch.ones_like(ids).bool()
    kinds = (ids == IMAGE_TOKEN).long()

    def run(pixels: torch.Tensor, **more):
        inputs = {"pixel_values": pixels, "token_type_ids": kinds}
        return forward(lm, ModelInput(ids, mask, extra=inputs), capture=every_site(lm), logits="last", **more)

    one, other = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    first, second = run(one), run(other)
    with torch.no_grad():
        native = lm.model(input_ids=ids, attention_mask=mask.long(), pixel_values=one, token_type_ids=kinds)
        features = lm.model.get_image_features(one).pooler_output
    torch.testing.assert_close(first.logits, native.logits[:, -1], **CLOSE)
    assert torch.equal(first.sites["resid_pre", 0][0, 1 : 1 + IMAGE_TOKENS], features[0])
    assert torch.equal(first.sites["resid_pre", 0][0, 5:], second.sites["resid_pre", 0][0, 5:])
    assert not torch.allclose(first.sites["resid_post", 0][0, 5:], second.sites["resid_post", 0][0, 5:])
    swap = [Edit("resid_pre", 0, lambda _: second.sites["resid_pre", 0])]
    assert torch.equal(run(one, edits=swap).logits, second.logits)


# Refusals


def test_a_parallel_residual_has_no_resid_mid():
    lm = build("gpt_neox")
    ids, mask = rows(5)
    says = r"^resid_mid: this model has none: .*parallel residual\); its sites: resid_pre head_z attn_out mlp_in"
    with pytest.raises(UserError, match=says):
        forward(lm, ModelInput(ids, mask), capture=[("resid_mid", 0)])
    with pytest.raises(UserError, match=says):
        site_width(lm.dims, "resid_mid")
    assert "resid_mid" in sites_of(build("gpt_neox sequential").dims)


def test_an_unknown_family_is_refused_by_name_with_the_way_to_add_it(tmp_path):
    with pytest.raises(UserError, match=r"my-model is of model type 'mamba2', .*known types: gemma3 .*docs/models.md"):
        family_of("mamba2", "my-model")
    assert (places.CODE / "docs" / "models.md").read_text().count("FAMILIES")


def test_float16_is_refused_for_gemma_3(tmp_path):
    build("gemma3_text").model.save_pretrained(tmp_path)
    bpe(300).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"exceed float16's largest number.*bf16 or fp32") as caught:
        load_model(str(tmp_path), dtype=torch.float16, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert [name for name in FAMILIES if fp16_problem(name)] == ["gemma3_text", "gemma3"]


# Sizes


def test_sizes_are_those_of_the_weights(lm):
    blocks = module_at(lm.model, lm.family.blocks)
    assert len(blocks) == lm.dims.layers
    assert module_at(lm.model, lm.family.embed).weight.shape == (lm.dims.vocab, lm.dims.width)
    assert module_at(lm.model, lm.family.lm_head).weight.shape == (lm.dims.vocab, lm.dims.width)
    down = module_at(blocks[0], lm.family.taps["mlp_act"].module).weight
    out = module_at(blocks[0], lm.family.taps["head_z"].module).weight
    assert set(down.shape) == {lm.dims.width, site_width(lm.dims, "mlp_act")}
    assert set(out.shape) == {lm.dims.width, site_width(lm.dims, "head_z")}


@pytest.mark.parametrize(
    ("site", "module", "says"),
    [
        ("head_z", "attn.o_proj", "names 'attn.o_proj' for head_z of a block, and there is no such module"),
        ("head_z", "mlp.c_proj", r"mlp.c_proj has 128 inputs \(head_z\), the config says 32"),
        ("mlp_act", "ln_1", r"ln_1 has None inputs \(mlp_act\), the config says 128"),
    ],
)
def test_a_family_that_does_not_fit_its_model_is_refused_when_it_is_loaded(site, module, says, monkeypatch):
    wrong = replace(FAMILIES["gpt2"].taps[site], module=module)
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], taps={**FAMILIES["gpt2"].taps, site: wrong}))
    with pytest.raises(UserError, match=f"^gpt2: family gpt2 of circuits/models/sites.py.*{says}$"):
        build("gpt2")


def test_weights_of_another_width_than_the_config_are_refused():
    model = build("llama").model
    model.config.vocab_size, model.config.num_hidden_layers = VOCAB + 1, LAYERS
    with pytest.raises(UserError, match=f"model.embed_tokens has {VOCAB} ids, the config says {VOCAB + 1}$"):
        wrap(model)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sizes_left_out_of_config_json_are_what_transformers_takes(family):
    """Published configs leave sizes out (google/gemma-3-4b-it: its heads, its vocabulary); both readers must agree."""
    tower = FAMILIES[family].tower
    shape = {"hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 2, "intermediate_size": 96}
    shape = shape if family != "gpt2" else {"n_embd": 64, "n_head": 4, "n_layer": 2}
    for leave_out in (None, "num_attention_heads") if tower or family == "gemma3_text" else (None,):
        given = {key: value for key, value in shape.items() if key != leave_out}
        filled = AutoConfig.for_model(family, **({tower: given} if tower else given)).to_dict()
        assert dims_of({"model_type": family, **({tower: given} if tower else given)}) == dims_of(filled)


def test_the_published_config_of_gemma_3_4b_is_read():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    dims = dims_of({"model_type": "gemma3", "text_config": {**text, "sliding_window": 1024}, "vision_config": {}})
    assert (dims.layers, dims.width, dims.heads, dims.kv_heads, dims.head_dim) == (34, 2560, 8, 4, 256)
    assert (dims.vocab, dims.context, site_width(dims, "head_z")) == (262_208, 131_072, 2048)


# Presets


PUBLISHED = {
    "gpt2": ("gpt2", "gpt2", 12, 768),
    "gpt2-medium": ("gpt2-medium", "gpt2", 24, 1024),
    "gpt2-large": ("gpt2-large", "gpt2", 36, 1280),
    "qwen2.5-3b-instruct": ("Qwen/Qwen2.5-3B-Instruct", "qwen2", 36, 2048),
    "qwen2.5-7b-instruct": ("Qwen/Qwen2.5-7B-Instruct", "qwen2", 28, 3584),
    "qwen3-4b": ("Qwen/Qwen3-4B", "qwen3", 36, 2560),
    "mistral-7b": ("mistralai/Mistral-7B-v0.1", "mistral", 32, 4096),
    "gemma-3-4b-it": ("google/gemma-3-4b-it", "gemma3", 34, 2560),
    "pythia-160m": ("EleutherAI/pythia-160m", "gpt_neox", 12, 768),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 30, 576),
}


def test_presets_are_the_published_models():
    found = {}
    for name in set(places.choices("model")) - {"tiny", "tiny_vlm", "hf"}:
        preset = OmegaConf.load(places.CONF / "model" / f"{name}.yaml")
        found[name] = (preset.id, preset.family, preset.layers, preset.width)
        assert preset.family in FAMILIES
    assert found == PUBLISHED
    page = (places.CODE / "docs" / "models.md").read_text(encoding="utf-8")
    for name, (hub, family, layers, width) in PUBLISHED.items():
        assert f"| `model={name}` | {hub} | `{family}` | {layers} × {width} |" in page
    assert all(f"`{family}`" in page for family in FAMILIES)
    gemma = OmegaConf.load(places.CONF / "model" / "gemma-3-4b-it.yaml")
    assert gemma.sets.key9 == [0, 6, 10, 14, 18, 22, 26, 30, 33]


def test_a_family_with_llamas_names_is_the_one_line_that_the_documents_show(monkeypatch):
    page = (places.CODE / "docs" / "models.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    entry = eval(f"{{{line}}}", vars(sites))
    (family,) = entry
    monkeypatch.setitem(FAMILIES, family, entry[family])
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
    config = AutoConfig.for_model(family, **shape, vocab_size=50, max_position_embeddings=32, pad_token_id=0)
    lm = wrap(AutoModelForCausalLM.from_config(config))
    ids, mask = rows(7, 5)
    s = forward(lm, ModelInput(ids, mask), capture={site: [1] for site in sites_of(lm.dims)}, logits="all")
    written = s.sites["resid_pre", 1] + s.sites["attn_out", 1] + s.sites["mlp_out", 1]
    assert torch.equal(s.sites["resid_post", 1], written) and s.sites["mlp_act", 1].shape[-1] == 40
    assert dims_of({"model_type": family, **shape}) == dims_of(AutoConfig.for_model(family, **shape).to_dict())
