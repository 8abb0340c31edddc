"""What a reader needs to get the same numbers again, asked of a sweep's saved files: item by item, with a reason.

Pure: records in, items out. An item that is about something this sweep has not (a scheduler, a GPU, a gate) is neither passed nor
failed. Nothing is hashed anew here: ``task=status status.verify=true`` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuits.run.checks import QUESTIONS, canonical
from circuits.run.evidence import Sweep
from circuits.words import markdown

FILE, PAGE = "checklist.json", "checklist.md"


@dataclass(frozen=True)
class Item:
    """One question and its answer; `passed` is None where it does not arise."""

    name: str
    title: str
    passed: bool | None
    reason: str


def items(sweep: Sweep) -> list[Item]:
    """The checklist; nothing is asked of a sweep that has made nothing."""
    if not sweep.manifests:
        return []
    return [Item(name, title, *ask(sweep)) for name, title, ask in QUESTIONS]


def as_json(found: Sequence[Item], sweep: str) -> dict[str, Any]:
    """The checklist as it is saved."""
    asked = [item for item in found if item.passed is not None]
    passed = sum(bool(item.passed) for item in asked)
    return {"sweep": sweep, "passed": passed, "failed": len(asked) - passed, "items": [asdict(item) for item in found]}


def as_markdown(found: Sequence[Item], sweep: str) -> str:
    """The checklist as a list for a paper's appendix or an issue."""
    signs = {True: "- [x]", False: "- [ ]", None: "- n/a"}
    lines = [f"{signs[item.passed]} **{item.title}**: {markdown(item.reason)}" for item in found]
    return f"# Reproducibility of {markdown(sweep)}\n\n" + "\n".join(lines) + "\n"


def locked(text: str) -> dict[str, str]:
    """The versions that a lock file pins (``name==version`` lines)."""
    pairs = (line.split(";")[0].strip().split("==") for line in text.splitlines())
    return {canonical(pair[0].split("[")[0]): pair[1] for pair in pairs if len(pair) == 2}
