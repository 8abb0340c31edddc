"""Ids of artifacts that people's stores hold: a change of the code that moves one of them makes everybody's results anew.

Whoever changes an id on purpose (a kind's VERSION, a generator, the embedded model's mixture) changes it here and says why:

* All SAEs, and what reads them, when the presets' rates, warm-ups and falling k became those that find the features of known worlds
  at equal L0 (docs/sae.md, "What makes them find features"): an SAE made before was another one.
"""

from __future__ import annotations

import pytest
from configs import plan

TINY = "tiny/tiny-4x128-3310e0527ad7"
PINNED = {
    "task=sae layer=0-3": [  # README's four
        "sae/tiny-L0-topk-31df5ea8b725",
        "sae/tiny-L1-topk-b36d92dbe35e",
        "sae/tiny-L2-topk-c104aebfb073",
        "sae/tiny-L3-topk-0c4dd80c9502",
        TINY,
    ],
    "task=sae layer=2 sae=relu sae.steps=2000 data.context=64 seed=1": ["sae/tiny-L2-relu-82ffd5aec7db", TINY],
    "task=sae layer=1 sae.source=store sae.site=mlp_in sae.target_site=mlp_out activations.tokens=200000": [
        "sae/tiny-L1-topk-transcoder-4395e92f9a94",
        TINY,
        "activations/tiny-L1-mlp_in-data-8cbd8405449d",
        "activations/tiny-L1-mlp_out-data-4726ee28d444",
    ],
    "task=baseline behaviour=facts baseline.metric=full_target": [
        "baseline/facts-tiny-4d0c0ca4b1a4",
        "prompts/facts-tiny-c6785b8e0b8f",
        TINY,
    ],
    "task=activations behaviour=grammar_agreement layer=3": [
        "activations/tiny-L3-resid_post-grammar_agreement-5e1730ba4e8e",
        TINY,
        "prompts/grammar_agreement-tiny-7c97a2644ce6",
    ],
    "task=activations activations.source=data activations.site=[resid_post,mlp_out] layer=3": [
        "activations/tiny-L3-resid_post-data-54cf0784da2b",
        "activations/tiny-L3-mlp_out-data-49e6a16045ca",
        TINY,
    ],
    "task=interpret layer=2 behaviour=grammar_agreement": [
        "interpret/tiny-L2-topk-grammar_agreement-c2933c14800b",
        TINY,
        "sae/tiny-L2-topk-c104aebfb073",
        "prompts/grammar_agreement-tiny-7c97a2644ce6",
    ],
}


@pytest.mark.parametrize("line", PINNED)
def test_ids_of_artifacts_stay(line: str) -> None:
    (element,) = plan(*line.split())
    inputs = [key.id for made in element.keys.values() for key in made.inputs.values()]
    assert sorted({*(key.id for key in element.keys.values()), *inputs}) == sorted(PINNED[line])
