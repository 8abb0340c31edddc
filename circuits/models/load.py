"""Load a causal language model for study: on a present device, from safetensors only, frozen and in eval mode.

Nothing from a model repository is ever executed: pickled weights and remote code are refused. Everything is loaded
from a directory (a hub model's is its cached snapshot at the pinned commit), so loading itself asks no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuits.errors import Damaged, UserError
from circuits.files import fingerprint
from circuits.models.identify import inspect_model, local_files
from circuits.models.modules import module_at
from circuits.models.sites import Dims, Family, dims_of, family_of, fp16_problem, site_width
from circuits.models.weights import check_vocabulary, read_object
from circuits.words import reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LM:
    """A Hugging Face (vision-)language model with what hooks need to know about it. Made by load_model or wrap."""

    name: str
    model: nn.Module
    tokenizer: Any
    dims: Dims
    family: Family
    device: torch.device
    dtype: torch.dtype
    processor: Any = None
    """Of a vision-language model: makes ``pixel_values`` of images and places their tokens in a text."""

    def __repr__(self) -> str:
        return f"LM({self.name}: {self.dims.layers} layers of {self.dims.width}, {self.dtype}, {self.device})"


def available_devices() -> list[str]:
    """The devices present, best first: every CUDA GPU, then mps, then cpu."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def pick_device(name: str = "auto", allow_fallback: bool = False) -> torch.device:
    """The device called `name`; ``auto`` is the best present. An absent one is an error unless fallback is allowed."""
    present = available_devices()
    best = torch.device(present[0])
    if name == "auto":
        return best
    try:
        asked = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"device {name!r} is none; choices: auto {' '.join(present)}") from e
    kinds = {found.split(":")[0] for found in present}
    if str(asked) in present or (asked.type in kinds and not asked.index):
        return asked
    if allow_fallback:
        return best
    raise UserError(f"device {name!r} is not present; this machine has: {' '.join(present)} (auto takes the first)")


def load_model(name_or_dir: str, *, revision: str | None = None, dtype: torch.dtype, device: torch.device) -> LM:
    """Load a model directory or hub name (at `revision`) with its tokenizer."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    facts = inspect_model(name_or_dir, revision)
    if dtype is torch.float16 and (problem := fp16_problem(facts.model_type)):
        raise UserError(f"{name_or_dir}: {problem}")
    directory = local_files(facts)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below in one line, instead of as a table and a traceback
            output_loading_info=True,
        )
    except SafetensorError as e:
        raise Damaged(f"{directory}: its weights cannot be read ({e}); copy or download them again") from e
    _check_report(directory, report)
    return wrap(model.to(device), load_tokenizer(directory), name=name_or_dir, processor=load_processor(directory))


_kept: dict[tuple[Any, ...], LM] = {}  # the latest model that `kept_model` gave


def kept_model(
    name_or_dir: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> LM:
    """:func:`load_model`, but the same model asked for again in this process is not read again: for packs of elements.

    Only the latest is kept. It is known by its files (size and time), revision, number format and device. Whoever gets it
    must leave it as it was, as hooks do.
    """
    directory = local_files(inspect_model(name_or_dir, revision)).resolve()
    files = sorted((str(path.resolve()), *fingerprint(path)) for path in directory.iterdir() if path.is_file())
    known = (name_or_dir, revision, tuple(files), dtype, str(device))
    if known not in _kept:
        _kept.clear()  # first: two may not fit
        say(f"loading the model {name_or_dir} ({str(dtype).removeprefix('torch.')}, {device})")
        _kept[known] = load_model(name_or_dir, revision=revision, dtype=dtype, device=device)
    else:
        say("the model is the one that this process has in memory")
    return _kept[known]


def asked_model(
    name_or_dir: str,
    revision: str | None,
    *,
    precision: str,
    matmul: str,
    device: str,
    allow_fallback: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> LM:
    """:func:`kept_model` as a config asks for it: ``fp32 bf16 fp16`` and a device by name.

    `matmul` says for the whole process how products of float32 numbers are computed: ``highest high medium``
    (``torch.set_float32_matmul_precision``).
    """
    torch.set_float32_matmul_precision(matmul)
    chosen = pick_device(device, allow_fallback)
    return kept_model(name_or_dir, revision=revision, dtype=DTYPES[precision], device=chosen, say=say)


PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # one of them says how images are prepared


def load_processor(directory: Path) -> Any:
    """The processor of a vision-language model's directory; None of a language model.

    Raises:
        UserError: it cannot be made (its files, or a library that it needs).
    """
    if not any((directory / name).is_file() for name in PROCESSORS):
        return None
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ImportError, OSError, ValueError, TypeError) as e:
        raise UserError(f"{directory}: how its images are prepared cannot be read: {reason(e)}") from e


def wrap(model: nn.Module, tokenizer: Any = None, name: str = "", processor: Any = None) -> LM:
    """An LM around a Hugging Face language model that is already in memory (it is frozen and put in eval)."""
    config = model.config.to_dict()  # type: ignore[union-attr,operator]
    first = next(model.parameters())
    family = family_of(config["model_type"], name or "this model")
    dims, name = dims_of(config), name or config["model_type"]
    _check_sites(model, family, dims, f"{name}: family {config['model_type']} of circuits/models/sites.py")
    model.eval().requires_grad_(False)
    return LM(name, model, tokenizer, dims, family, first.device, first.dtype, processor)


def _check_sites(model: nn.Module, family: Family, dims: Dims, what: str) -> None:
    """Refuse a model whose modules are not where its family says, or not as wide as its config says."""

    def found(root: nn.Module, path: str, use: str) -> Any:
        try:
            return module_at(root, path)
        except AttributeError as e:
            raise UserError(f"{what} names {path!r} for {use}, and there is no such module") from e

    blocks = found(model, family.blocks, "the blocks")
    taps = {site: found(blocks[0], tap.module, f"{site} of a block") for site, tap in family.taps.items()}
    found(model, family.final_norm, "the final norm")
    ends = {path: found(model, path, use) for path, use in ((family.embed, "embed"), (family.lm_head, "lm_head"))}
    sizes: list[tuple[str, str, int | None, int]] = [(family.blocks, "blocks", len(blocks), dims.layers)]
    for site in ("mlp_act", "head_z"):
        read = getattr(taps[site], "in_features", getattr(taps[site], "nx", None))  # nn.Linear, GPT-2's Conv1D
        sizes.append((family.taps[site].module, f"inputs ({site})", read, site_width(dims, site)))
    for path, module in ends.items():
        sizes += [(path, "ids", module.weight.shape[0], dims.vocab), (path, "wide", module.weight.shape[1], dims.width)]
    for path, unit, has, wanted in sizes:
        if has != wanted:
            raise UserError(f"{what}: {path} has {has} {unit}, the config says {wanted}")


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would silently replace by random ones."""
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{found[0]} has another shape than config.json says" for found in sorted(report["mismatched_keys"])]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{directory}: the weights do not fit the model: {wrong[0]}{more}; save it again with save_pretrained"
        )


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in a model's directory."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_vocabulary(directory)
    # A tokenizer.json whose class is the generic one says everything itself. AutoTokenizer would override it by the
    # family's own class (for Qwen2 it does), which reads another vocabulary out of it or none, without a word.
    generic = _tokenizer_class(directory) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    loader = PreTrainedTokenizerFast if generic else AutoTokenizer
    try:
        return loader.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"{directory}: its tokenizer cannot be read ({reason(e)}); save one there with tokenizer.save_pretrained"
        ) from e


def _tokenizer_class(directory: Path) -> str | None:
    path = directory / "tokenizer_config.json"
    return read_object(path).get("tokenizer_class") if path.is_file() else None
