"""What the SAE group refuses before anything runs, and the study that brings its own sweep."""

from __future__ import annotations

import pytest
from configs import plan
from conftest import Cli

from circuits.errors import UserError

MADE = r"d_sae=1024 \(sae.expansion=8 × width 128\)"
REFUSED = [
    (["sae=matryoshka", "sae.groups=12"], f"groups=12: {MADE} cannot be halved 11 times; at most sae.groups=11"),
    (["sae=matryoshka", "sae.groups=1"], "sae.groups=1: at least 2 nested dictionaries, or choose sae=batchtopk"),
    (["sae=topk", "sae.groups=2"], "sae.groups=2: sae=topk does not read it; sae=matryoshka does"),
    (["sae.k=600", "sae.sparsity=0.5"], f"sae.k=1200: more than {MADE}"),
    (["sae=gated", "sae.site=mlp_in", "sae.target_site=mlp_out"], "sae.target_site: sae=gated cannot be a transcoder"),
    (
        ["sae.target_site=mlp_out"],
        "sae.target_site=mlp_out: a model computes it before sae.site=resid_post, the last of a block",
    ),
    (
        ["sae.site=mlp_in", "sae.target_site=attn_out"],
        "sae.target_site=attn_out: a model computes it before sae.site=mlp_in; sites after it: mlp_act mlp_out resid_post",
    ),
    (["sae.target_site=resid_post"], "sae.target_site=resid_post: the site itself; leave it out for an SAE"),
    (["sae.accumulate=3"], "sae.accumulate=3: sae.batch_size=256 is not divisible by it"),
    (["sae.validate_every=10"], "sae.validate_every=10: sae.patience=null does not read it; sae.patience=N does"),
    (["sae=jumprelu", "sae.bandwidth=0"], "sae.bandwidth=0.0: more than 0"),
    (["sae=jumprelu", "sae.target_l0=null"], "sae.l0_coefficient \\(or sae.target_l0\\) is needed by sae=jumprelu"),
    (["sae=relu", "sae.l1=0.2"], "sae.l1=0.2: sae.target_l0=32.0 does not read it; sae.target_l0=null does"),
    (["sae=relu", "sae.target_l0=0.5"], "sae.target_l0=0.5: at least 1 active feature a row"),
    (["sae=relu", "sae.target_l0=1100"], f"sae.target_l0=1100: more than {MADE}"),
    (["sae=topk", "sae.target_l0=1100"], f"sae.target_l0=1100: more than {MADE}"),
    (
        ["sae=topk", "sae.target_l0=8", "sae.k=16"],
        "sae.k=16: sae.target_l0=8.0 does not read it; sae.target_l0=null does",
    ),
    (["sae=batchtopk", "sae.threshold_rate=2"], "sae.threshold_rate=2.0: the weight of one batch"),
    (["sae=relu", "sae.sparsity_decay=1.5"], "sae.sparsity_decay=1.5: a share between 0 and 1"),
]


@pytest.mark.parametrize(
    ("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_settings_that_cannot_be_are_one_line_each(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        plan("layer=0", *words)
    assert len(e.value.messages) == 1


def test_an_experiment_brings_its_sweep_and_the_command_line_narrows_it(cli: Cli) -> None:
    """With reuse=readonly nothing is trained: every element is named as missing."""
    done = cli("experiment=sae_frontier", "reuse=readonly")
    assert done.code == 2 and len(done.errors) == 24, done.err
    for name in ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu"):
        assert sum(f"sae/tiny-L2-{name}-" in line for line in done.errors) == 4
    done = cli("experiment=sae_frontier", "sae=topk,relu", "sae.sparsity=1", "layer=0,1", "reuse=readonly")
    assert done.code == 2 and len(done.errors) == 4, done.err
