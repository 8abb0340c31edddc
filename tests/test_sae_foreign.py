"""``sae.from=``: an SAE by artifact, hash, directory of either format, or name on the hub; its content is its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from configs import plan
from conftest import QUICK, Cli
from local_hub import LocalHub, serving
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.sae import declared, formats, sparsify
from circuits.sae.modules import SAEConfig, architectures

SHORT = [QUICK, "sae.steps=20", "sae.heldout_sequences=16", "sae.block_rows=4096", "tracking=off"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_an_sae_of_the_store_is_measured_by_its_name_its_hash_and_its_exports(warm: Cli) -> None:
    assert warm("task=sae", "layer=1", "sae.k=16", *SHORT).code == 0
    (trained,) = warm.artifacts("sae")
    export = ["task=export", "layer=1", "sae.k=16", "export.format=sparsify", "export.path=out", *SHORT[:-1]]
    assert warm(*export).code == 0
    weights = load_file(warm.folder / "out" / "sae.safetensors")
    names = [f"sae/{trained.name}", trained.name.rsplit("-", 1)[1], "out"]
    elsewhere = warm("task=sae", "layer=2", f"sae.from={trained}", *[QUICK, *SHORT[2:]])
    assert elsewhere.code == 0 and elsewhere.err.count("warning: sae.from=") == 1, elsewhere.err
    assert "blocks.1.hook_resid_post" in elsewhere.err and "blocks.2.hook_resid_post" in elsewhere.err
    measured = [QUICK, *SHORT[2:]]  # it is not trained: sae.steps is not read
    done = warm("task=sae", "layer=1", f"sae.from={','.join(names)}", *measured, "cluster.workers=0")
    assert done.code == 0, done.out + done.err
    metrics = {path: json.loads((path / "metrics.json").read_text()) for path in warm.artifacts("sae")}
    metrics = {path: found for path, found in metrics.items() if "-L2-" not in path.name}
    assert len(metrics) == 3, "the SAE, what it measures as, and its copy in another format"
    assert len({m["explained_variance"] for m in metrics.values()}) == 1
    assert sorted(path.name.rsplit("-", 1)[0] for path in metrics) == ["tiny-L1-from", "tiny-L1-from", "tiny-L1-topk"]

    save_file({**weights, "W_skip": torch.zeros(2, 2)}, warm.folder / "out" / "sae.safetensors")
    for name, message in {
        "out": "sae.safetensors has the unknown tensor W_skip; a topk SAE has W_dec b_dec encoder.bias encoder.weight",
        "sae/tiny-L1-topk-000000000000": f"no such artifact in {warm.outputs}/artifacts; there are: sae/{trained.name}\n",
        "/nowhere": "no such directory\n",
        "nowhere": "no such directory, and no possible artifact or hub name",
    }.items():
        with pytest.raises(UserError) as e:
            plan("layer=1", f"sae.from={name}", base=warm.folder)
        assert len(e.value.messages) == 1 and f"{name}: {message}" in f"{e.value}\n"
    del weights["encoder.bias"]
    save_file(weights, warm.folder / "out" / "sae.safetensors")
    refused = warm("task=sae", "layer=1", "sae.from=out", *measured)
    assert refused.code == 2 and "sae.safetensors lacks the tensor encoder.bias" in refused.err, refused.err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub with a repository of two SAEs and things that nobody asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = tmp_path / "made"
    sae = architectures()["topk"].sae(SAEConfig(128, 256, k=4))
    formats.save(made / "blocks.1", sae, {})
    sparsify.save(made / "layers.1", sae)
    (made / "blocks.1" / "optimiser.pt").write_bytes(b"not wanted")
    (made / "config.json").write_text("{}")
    with serving(tmp_path / "repositories") as found:
        found.add("models", "someone/saes", COMMIT, made, "main")
        at(monkeypatch, found.address)
        yield found


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the hub's client in this process ask another hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_directory_on_the_hub_is_fetched_alone_and_pinned(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(name: str) -> Path:
        (element,) = plan("layer=0", f"sae.from={name}", base=tmp_path)
        assert element.cfg.sae.from_ is not None
        return Path(element.cfg.sae.from_)

    found = planned("someone/saes/blocks.1")
    assert found.parent.name == COMMIT and sorted(hub.sent) == ["blocks.1/cfg.json", "blocks.1/sae_weights.safetensors"]
    with pytest.raises(UserError) as e:
        planned("someone/saes/blocks.2")
    assert (
        "has no SAE in blocks.2 (cfg.json and sae_weights.safetensors); directories with one: blocks.1 layers.1"
        in str(e.value)
    )
    with pytest.raises(UserError, match=r"sae.from=someone/absent: no such directory, and no \(public\) repository"):
        planned("someone/absent")
    with pytest.raises(UserError, match="someone/saes has no branch, tag or commit v9 on the hub"):
        planned("someone/saes/blocks.1@v9")
    assert planned(f"someone/saes/layers.1@{COMMIT}").name == "layers.1"
    at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match="not in the local Hugging Face cache, and the hub was not reached") as e:
        planned("someone/others")
    assert len(e.value.messages) == 1
    hub.sent.clear()
    assert planned("someone/saes/blocks.1") == found and not hub.sent, "what is in the cache asks nobody"
    (hub_element,), (copy,) = (plan("layer=0", f"sae.from={name}") for name in ("someone/saes/blocks.1", str(found)))
    assert hub_element.keys[0].hash == copy.keys[0].hash


def test_what_is_checked_before_the_start_is_what_the_modules_hold() -> None:
    for architecture in architectures().values():
        for name, d_out in ((architecture.sae.saelens, None), (architecture.sae.saelens_transcoder, 7)):
            if name is not None:
                sae = architecture.sae(SAEConfig(12, 40, 5, d_out))
                config = {"architecture": name, "d_in": 12, "d_sae": 40, "k": 5, "d_out": d_out}
                shapes = declared.declared(config, sparsify=False).shapes
                assert dict(shapes) == {key: tuple(t.shape) for key, t in sae.state_dict().items()}
