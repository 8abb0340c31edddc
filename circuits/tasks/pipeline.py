"""``task=pipeline pipeline=NAME``: a study of several stages, submitted at once; each element after exactly those that it needs.

A pipeline is a yaml of stages (``conf/pipeline/NAME.yaml``), each a task with overrides as on a command line::

    overrides: [model=gpt2]                     # of every stage that reads them
    stages:
      prompts: {task: prompts}
      saes:    {task: sae, overrides: ["layer=range(0,12)"]}
      heads:   {task: interventions, overrides: [intervention=heads], after: [saes]}

``sizes: {model=tiny: [sae.k=8]}`` gives further overrides with a choice (a toy is studied at the size of a toy), and ``layer=each``
is an element for each layer of the model. What is typed beside ``task=pipeline`` goes to every stage that reads it, and wins. Who
waits for whom follows from what each element reads; ``after`` adds whole stages to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.schema.fields import named_file

READS = ("*",)  # whatever one of its stages does
SECTION = "pipeline"
PRESET = "quickstart"


@dataclass
class Options:
    """Options of a pipeline, and what its yaml holds."""

    about: str = ""  # what the study asks, in a few words
    overrides: list[str] = field(default_factory=list)  # of every stage that reads them
    sizes: dict[str, list[str]] = field(default_factory=dict)  # more of them with a choice: {model=tiny: [sae.k=8]}
    stages: dict[str, Any] = field(default_factory=dict)  # by name: task, overrides, after
    path: str | None = named_file(None)  # of pipeline=file; pipeline=FILE.yaml is short for both
    from_: str | None = None  # begin with this stage
    until: str | None = None  # end with this stage
    only: list[str] = field(default_factory=list)  # these stages alone
    parallelism: Any = "aggressive"  # elements of a stage at a time: conservative (4), aggressive (all), or a number
    canary: bool = False  # one element of each stage first; the others once those have ended well


def launch(
    compose: Callable[[Sequence[str]], Any],
    lists: Sequence[Sequence[str]],
    base: Path,
    launcher: Mapping[str, Any],
) -> int:
    """Launch the study that these overrides ask for; the exit code."""
    from circuits.launch import pipeline

    return pipeline.launch(compose, lists, base, launcher)
