"""Where the code and its configuration are, whatever directory a command was typed in. Standard library only."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]  # the checkout: launch.py, conf/, circuits/, hydra_plugins/
CONF = CODE / "conf"


@lru_cache
def choices(group: str) -> tuple[str, ...]:
    """The choices of a config group, by their yaml files' names; empty when there is no such group."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@lru_cache
def keys_of(group: str, choice: str) -> tuple[str, ...]:
    """The keys at the root of a choice's yaml."""
    text = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
    return tuple(re.findall(r"^(\w+):", text, re.MULTILINE))


@lru_cache
def config_groups() -> tuple[str, ...]:
    """The config groups under conf/."""
    return tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir() and choices(path.name)))


@lru_cache
def default_choice(group: str) -> str:
    """What conf/config.yaml chooses from a group."""
    found = re.search(rf"^  - {group}: (\S+)", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "default"


#: In an element's directory: what it is, its log; in a sweep's: what that is, who runs it here.
RECORD = "element.json"
LOG = "run.log"
SWEEP = "sweep.json"
LAUNCHER = "launcher.lease"


NAME_BYTES = 120  # of a name: file systems stop at 255, and an artifact's gets a hash, a part and a suffix


def safe_name(text: str, letters: int = NAME_BYTES) -> str:
    """`text` as one name of a file: whatever somebody called a model, a file or a sweep, it stays in the directory that it is for.

    Letters of any alphabet, digits and ``. , = + -`` stay; a run of anything else (separators, spaces, signs) is ``_``. It never
    begins with a dot, which would hide it, and is cut at so many letters, and at `NAME_BYTES`.
    """
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    name = re.sub(r"^\.+", "_", name)
    return name[:letters].encode()[:NAME_BYTES].decode(errors="ignore") or "_"
