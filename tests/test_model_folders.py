"""Folders that people name as a model and that hold none: what each is, in one line, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompt_sets import bpe, save_model

from circuits.errors import UserError
from circuits.models.identify import inspect_model


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "gpt2"}'}, "an adapter (PEFT) of gpt2"),
        ({"checkpoint-90/config.json": "{}", "checkpoint-500/config.json": "{}"}, "checkpoint-500 is the last"),
        ({"snapshots/abc/config.json": "{}", "refs/main": "abc"}, "a folder of the Hugging Face cache; its model is in it: snap"),
        ({"config.json": "{}", "global_step8/mp_rank_00.pt": "", "zero_to_fp32.py": ""}, "a DeepSpeed checkpoint"),
        ({"llama-q4.gguf": "GGUF"}, "llama-q4.gguf is a model of llama.cpp (GGUF)"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "weights in their maker's own format"),
        ({"cfg.json": "{}", "sae_weights.safetensors": ""}, "an SAE, no language model; sae.from=DIR measures one"),
        ({"readme.txt": ""}, "is no model directory: no config.json"),
    ],
)  # fmt: skip
def test_a_folder_without_a_model_is_named_as_what_it_is(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as e:
        inspect_model(str(tmp_path))
    assert message in str(e.value) and str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_a_model_with_an_adapter_beside_it_or_quantised_weights_is_refused(tmp_path: Path) -> None:
    """transformers would take the adapter's base model for the one that is in the directory."""
    save_model(tmp_path, bpe())
    inspect_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter"):
        inspect_model(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    for given, method in (({"quant_method": "gptq", "bits": 4}, "gptq"), ({"load_in_4bit": True}, "bitsandbytes")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": given}))
        with pytest.raises(UserError, match=rf"its weights are quantised \({method}\)"):
            inspect_model(str(tmp_path))
