"""A legacy run: its model, its number format, its corpora and its conditions as words of this program's command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError, UserError
from circuits.store import places
from circuits.tasks._convert.batteries import Words
from circuits.tasks._convert.fields import View

DTYPES = {"float32": "fp32", "float": "fp32", "fp32": "fp32", "float16": "fp16", "half": "fp16", "fp16": "fp16",
          "bfloat16": "bf16", "bf16": "bf16"}  # fmt: skip
MODELS = {"gpt2-small": "gpt2", "mistral": "mistral-7b"}
"""What the lab called models that are presets here under another name."""
BEHAVIOURS = {
    "facts": ("facts",),
    "cf": ("cf", "counterfactual"),
    "neg": ("neg", "negation"),
    "logic": ("logic", "logical"),
}
"""A behaviour, and what a tag or a corpus of it begins with."""
FIELDS = {"clean_field": "clean", "corrupt_field": "corrupt", "target_field": "target", "foil_field": "foil"}
MEASURED = ("logit_diff", "kl_div", "acc_flip_rate", "p_drop")
SPANS = ("seq_logprob_diff", "seq_p_drop", "seq_kl_mean")
SMALL = 2  # prompts a pass where memory is low, no number is given and none is found by trying
UNREAD = {
    "seeds": "nothing random is in the measurement: it is run once and says so",
    "seed": "nothing random is in the measurement: it is run once and says so",
    "family": "read from the model's own config.json",
    "max_seq_len": "prompts are never cut here (the lab did not read it either)",
    "profiling": "time and memory of every run are in its record",
    "verify_slice": "run the line once more with model.device=cpu and another name=, then task=compare 'compare.of=[A,B]' "
    "compare.tolerance=device",
    "low_memory": "the TF32 that came with it in the lab saves no memory and changes numbers: precision=tf32 asks for it",
}
"""Fields that have no place here, and why."""


@dataclass(frozen=True)
class Asked:
    """What the command says in the place of the files."""

    device: str | None = None
    dtype: str | None = None
    low_memory: bool | None = None
    batch: int | None = None
    data: Path | None = None  # where corpora/ and splits/ are


def model(run: View, asked: Asked) -> Words:
    """Model, device and number format."""
    words = {}
    if (name := run.get("model", "name")) is not None:
        words["model"] = preset(str(name))
        if words["model"] not in places.choices("model") and "/" not in words["model"]:
            run.note("model", "name", why="no preset of this name: taken for a name on the hub")
    if revision := run.get("model", "revision"):
        words["model.revision"] = str(revision)
    dtype = str(run.get("model", "dtype", default="")).removeprefix("torch.")
    if dtype and dtype not in DTYPES:
        raise UserError(f"dtype {dtype} is none that is known here; choices: {' '.join(DTYPES)}")
    found = asked.dtype or DTYPES.get(dtype)
    if found:
        words["precision"] = found
    device = run.get("device")
    device = asked.device or (run.get("model", "device", default=device))
    if device not in (None, "auto"):
        words["model.device"] = str(device)
    return words


def low_memory(run: View, asked: Asked) -> bool:
    """Whether memory is to be saved: what the command says, else what the file does."""
    given = run.peek("model", "low_memory") is True
    return given if asked.low_memory is None else asked.low_memory


def preset(name: str) -> str:
    """The preset of a model, by its name here, on the hub, or in the lab; else the name."""
    lower = name.lower()
    ids = {choice: _id(choice) for choice in places.choices("model")}
    for choice, found in ids.items():
        if lower in (choice, found.lower(), found.lower().rpartition("/")[2]):
            return choice
    if lower in MODELS:
        return MODELS[lower]
    return f"EleutherAI/{name}" if lower.startswith("pythia-") else name


def _id(choice: str) -> str:
    found = re.search(r"^id: (\S+)", (places.CONF / "model" / f"{choice}.yaml").read_text(encoding="utf-8"), re.M)
    return found[1] if found else choice


def measuring(run: View, section: str, asked: Asked) -> Words:
    """Batch, metric, and the slice that is measured again elsewhere. `section`: of the task that measures."""
    words: Words = {}
    batch = asked.batch or run.get("batch_size")
    if low_memory(run, asked):
        batch = batch or ("auto" if section == "intervention" else SMALL)
        words |= {"intervention.low_memory": "true"} if section == "intervention" else {}
    if asked.batch is not None:
        run.get("batch_size")
    if batch:
        words[f"{section}.batch_size"] = str(batch)
    if section == "intervention" and (device := run.get("verify_slice", "device")):
        words["intervention.verify"] = str(device)
        if samples := run.get("verify_slice", "n_examples"):
            words["intervention.verify_samples"] = str(samples)
    metric = run.get("metric_span")
    if metric is not None:
        if metric not in ("first_token", "full_target"):
            raise UserError(f"metric_span {metric} is none that is known here; choices: first_token full_target")
        if section == "intervention":
            words["intervention.metric"] = metric
        else:
            run.note("metric_span", why="no answer is scored here")
    metrics = run.get("metrics") or []
    unknown = [name for name in metrics if name not in (*MEASURED, *SPANS)]
    notes = [f"{' '.join(map(str, unknown))}: not measured here"] if unknown else []
    if metric != "full_target" and (spans := [name for name in metrics if name in SPANS]):
        notes.append(f"{' '.join(spans)}: measured with metric_span full_target only")
    if "acc_flip_rate" in metrics:
        notes.append("acc_flip_rate is called top1_error here; flip is the rate of answers that turned wrong")
    if notes:
        run.note("metrics", why="; ".join(notes))
    return words


def prompts(run: View, section: str, asked: Asked, file: Path) -> Words:
    """Behaviour and split: the lab's own corpus where its files are, else the generator of that behaviour.

    Raises:
        UserError: neither is there.
    """
    corpus, tag = run.get("dataset", "id"), run.get("tag")
    for name, ours in FIELDS.items():
        if (theirs := run.get("dataset", name, default=ours)) != ours:
            run.note("dataset", name, why=f"rename the field in the corpus: {theirs} is read as {ours} only")
    split = run.get("dataset", "split")
    words: Words = {}
    path = _corpus(asked.data, file, str(corpus)) if corpus else None
    if path is not None:
        words["behaviour"] = _relative(path)
        words |= _equal_answers(run, path) | _splits(run, path, split)
    elif (behaviour := _behaviour(str(corpus or ""), str(tag or ""))) is not None:
        words["behaviour"] = behaviour
        if corpus:
            why = f"prompts of behaviour={behaviour} are drawn anew; convert.data=DIR (with corpora/ and splits/) takes its own"
            run.note("dataset", "id", why=why)
    else:
        raise UserError(
            f"no behaviour here for dataset {corpus}, tag {tag}; convert.data=DIR (with corpora/ and splits/) takes its file"
        )
    if split in ("train", "val", "test"):
        words[f"{section}.split"] = "train" if split == "train" else "test"
        if split == "val" and path is None:
            run.note("dataset", "split", why="what is drawn has no third part: the test prompts are taken")
    elif split is not None:
        run.note("dataset", "split", why="no such split here; splits: train val test")
    return words


def _equal_answers(run: View, corpus: Path) -> Words:
    """Rows whose target is their foil, of which the lab's own corpora have a few: left out, and told."""
    from circuits.data.prompt_records import read_file

    try:
        same = [record.place.rpartition("line ")[2] for record in read_file(corpus) if record.target == record.foil]
    except CircuitsError:
        return {}  # `_splits` and the run itself say what is wrong with the file
    if not same:
        return {}
    run.note("dataset", "id", why=f"target and foil are equal in line {', '.join(same)}: left out")
    return {"behaviour.unusable": "drop"}


def _splits(run: View, corpus: Path, split: Any) -> Words:
    """The split file beside a corpus, where the corpus can be split by it."""
    from circuits.data.prompt_records import read_file
    from circuits.data.splits import Given, Validation, assigned

    path = corpus.parents[1] / "splits" / f"{corpus.stem}.split.json"
    if not path.is_file():
        return {}
    validation: Validation = "only" if split == "val" else "drop" if split == "test" else "test"
    try:
        assigned(read_file(corpus), corpus, Given(path, validation))
    except CircuitsError as e:
        why = f"the split file is left out, the corpus is split by clean prompt: {str(e).splitlines()[0]}"
        run.note("dataset", "split", why=why)
        return {}
    words = {"behaviour.splits": _relative(path)}
    return words if validation == "test" else {**words, "behaviour.validation": validation}


def _corpus(data: Path | None, file: Path, name: str) -> Path | None:
    """A corpus of the lab by its id: below what the command names, or below the folders that the config is in."""
    folders = [data] if data else [up / below for up in file.resolve().parents for below in ("lab/data", "data")]
    found = (folder / "corpora" / f"{name}.jsonl" for folder in folders)
    return next((path for path in found if path.is_file()), None)


def _behaviour(corpus: str, tag: str) -> str | None:
    for text in (corpus.lower(), tag.lower()):
        for behaviour, spellings in BEHAVIOURS.items():
            if any(re.match(rf"{spelling}(?![a-z])", text) for spelling in spellings):
                return behaviour
    return next((text for text in (corpus, tag) if text in places.choices("behaviour") and text != "file"), None)


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
