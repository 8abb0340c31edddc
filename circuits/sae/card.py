"""The model card of an exported SAE: what it is, how well it does, how to load it. Its figures are those of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuits.sae.massive import sentence
from circuits.sae.modules import SAE
from circuits.words import markdown, markdown_code

LOADING = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("DIR")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("DIR")',
}
MEASURES = (
    ("explained variance", "explained_variance", ".4f"),
    ("L0", "l0", ".2f"),
    ("MSE", "mse", ".4g"),
    ("dead features", "dead_fraction", ".2%"),
    ("dense features (active on over 10% of rows)", "dense_fraction", ".2%"),
    ("cross-entropy score", "ce_score", ".4f"),
    ("KL(clean ‖ spliced), nats per token", "kl", ".4g"),
    ("norm ratio", "norm_ratio", ".4f"),
    ("relative bias", "relative_bias", ".4f"),
    ("largest cosine of a decoder row with another, mean", "decoder_cosine", ".4f"),
)


def text(sae: SAE, metrics: Mapping[str, Any], metadata: Mapping[str, Any], form: str, artifact: str) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    what = "skip transcoder" if sae.cfg.skip else "transcoder" if sae.cfg.d_out is not None else "sparse autoencoder"
    where = markdown_code(str(metadata.get("hook_name")))
    if sae.cfg.d_out is not None:
        where = f"from {where} to {markdown_code(str(metadata.get('hook_name_out')))}"
    corpus = markdown_code(str(metadata.get("dataset_path")))
    trained = f"for {metrics['steps']:,} steps on {corpus}" if metrics.get("steps") else "elsewhere"
    lines = [
        "---",
        f"library_name: {form}",
        "tags: [sparse-autoencoder, mechanistic-interpretability]",
        "---",
        "",
        f"# {metrics['architecture']} {what}, {markdown(str(metadata.get('model_name')))}, layer {metrics['layer']}",
        "",
        f"A {what} with {sae.cfg.d_sae:,} features, {where} (width {sae.cfg.d_in}), "
        f"trained {trained}. Artifact `{artifact}`.",
        "",
        f"Held-out text, {metrics['n_rows']:,} rows of {metrics['n_sequences']:,} sequences; 95% intervals over sequences:",
        "",
        "| measure | value | interval |",
        "|---|---|---|",
        *(_row(metrics, *measure) for measure in MEASURES if metrics.get(measure[1]) is not None),
        "",
        *_control(metrics),
        "```python",
        LOADING[form],
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(metrics: Mapping[str, Any], heading: str, name: str, form: str) -> str:
    interval = metrics.get(f"{name}_ci")
    between = "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
    return f"| {heading} | {metrics[name]:{form}} | {between} |"


def _control(metrics: Mapping[str, Any]) -> list[str]:
    control = metrics.get("control")
    found = [f"The same SAE before training explains {control['explained_variance']:.4f}."] if control else []
    for name, measured in (metrics.get("baselines") or {}).items():
        found.append(f"With a {name.replace('_', ' ')} it explains {measured['explained_variance']:.4f}.")
    if left_out := sentence(metrics):
        found.append(f"{left_out[0].upper()}{left_out[1:]}.")
    return [" ".join(found), ""] if found else []
