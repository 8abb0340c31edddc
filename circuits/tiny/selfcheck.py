"""Whether this machine computes what runs need: devices, memory, number formats, and a pass of a random two-layer model with
capture, edits, both data splits and a metric. Offline, in seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from circuits.errors import RunError
from circuits.models.load import DTYPES, LM, available_devices, wrap

SEQUENCES, CONTEXT, LAST = 8, 32, 5


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: all of them, and those free now."""

    device: str
    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Pass:
    """What the pass of the random model showed."""

    seconds: float
    sites: int
    layers: int
    train: int
    heldout: int
    cross_entropy: float
    """Of the next token, in nats; a model that knows nothing has about ln(vocabulary)."""
    uniform: float
    logit_difference: float


def memory() -> list[Memory]:
    """Of this host and of every accelerator in sight."""
    host = psutil.virtual_memory()
    found = [Memory("cpu", "host memory", host.total, host.available)]
    for name in available_devices():
        if name.startswith("cuda"):
            free, total = torch.cuda.mem_get_info(name)
            found.append(Memory(name, torch.cuda.get_device_name(name), total, free))
    return found


def libraries() -> dict[str, str]:
    """Versions of torch and of what it was built with; CUDA and cuDNN as they are loaded here."""
    found = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if torch.backends.cudnn.is_available() and (version := torch.backends.cudnn.version()):
        found["cuDNN"] = str(version)
    return found


def dtype_problem(name: str, device: torch.device) -> str | None:
    """Why `device` does not compute in a number format, or None: asked by a product whose result is known."""
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name(device)} only emulates bf16"
    try:
        ones = torch.ones(16, 16, dtype=DTYPES[name], device=device)
        found = (ones @ ones).float()
    except (RuntimeError, TypeError) as e:  # MPS raises TypeError for formats that it lacks
        return str(e).splitlines()[0]
    return None if bool((found == 16).all()) else f"a product of ones gave {float(found.flatten()[0])} instead of 16"


def check_pass(device: torch.device, dtype: torch.dtype) -> Pass:
    """One pass of a random model over real sentences; raises what is wrong."""
    lm = _random_model(device, dtype)
    threads, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)  # more only wait for each other on a model as small as this
    try:
        return _checked_pass(lm, device, dtype, start)
    finally:
        torch.set_num_threads(threads)


def _checked_pass(lm: LM, device: torch.device, dtype: torch.dtype, start: float) -> Pass:
    from circuits.models.hooks import Edit, forward
    from circuits.models.positions import last_positions
    from circuits.models.sites import SITES
    from circuits.tiny.source import EmbeddedSource

    source = EmbeddedSource(lm.tokenizer, seed=0, context=CONTEXT)
    train, heldout = source.block(0, SEQUENCES), source.heldout(SEQUENCES)
    if {tuple(row) for row in train.ids.tolist()} & {tuple(row) for row in heldout.ids.tolist()}:
        raise RunError("a held-out sentence is among the training sentences")
    capture = {site: range(lm.dims.layers) for site in SITES}
    plain = forward(lm, train, logits="all")
    found = forward(lm, train, capture=capture, positions=LAST, logits="all")
    sham = [Edit("resid_mid", 1, lambda x: x), Edit("head_z", 0, lambda x: x)]
    edited = forward(lm, train, edits=sham, logits="all")
    unchanged = {"capture": found.logits, "an identity edit": edited.logits}
    if plain.logits is None:
        raise RunError("the pass gave no logits")
    for what, logits in unchanged.items():
        if logits is None or not torch.equal(logits, plain.logits):
            raise RunError(f"{what} changed the logits on {device}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*found.sites.values(), plain.logits)):
        raise RunError(f"the pass gave numbers that are not finite on {device} in {dtype}")
    logits, ids, mask = plain.logits.float(), train.ids.to(device), train.mask.to(device)
    token = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    last = logits[torch.arange(len(ids), device=device), last_positions(mask, 1).index[:, 0]]
    return Pass(
        seconds=time.perf_counter() - start,
        sites=len(SITES),
        layers=lm.dims.layers,
        train=len(train),
        heldout=len(heldout),
        cross_entropy=float(-token[mask[:, 1:]].mean()),
        uniform=float(torch.tensor(float(lm.dims.vocab)).log()),
        logit_difference=float((last[:, 5] - last[:, 6]).mean()),
    )


def _random_model(device: torch.device, dtype: torch.dtype) -> LM:
    """The embedded model's architecture, two layers, untrained."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from circuits.tiny.spec import TinySpec, hf_config, vocabulary
    from circuits.tiny.tokenizer import build_tokenizer

    spec = TinySpec(layers=2, width=64, mlp=128, max_positions=CONTEXT)
    words = vocabulary()
    config = {key: value for key, value in hf_config(spec, len(words)).items() if key != "model_type"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**config))
    return wrap(model.to(device=device, dtype=dtype), build_tokenizer(words, CONTEXT), name="random")
