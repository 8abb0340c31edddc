"""What is never written: secrets. One rule, for configs, records, logs, statuses, W&B and reports. Standard library only.

A value is a secret

* when its name says so: ``HF_TOKEN``, ``WANDB_API_KEY``, ``db_password`` in an environment, or ``NAME=value`` in any text;
* when ``cluster.secrets`` names it;
* when it looks like a key of a known service, or stands as a password in an address;
* when this process's environment holds it under such a name: it is hidden wherever it turns up.

It is shown as ``***``. A job gets it as it gets the rest of the environment: from the shell that submits it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # letters of a value that is hidden wherever it turns up: "true" or "0" is no secret

_PARTS = r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|KEY|CREDENTIALS?|PAT"
_NAME = re.compile(rf"(?:.*_)?(?:{_PARTS})(?:_(?:ID|VALUE|\d+))?", re.IGNORECASE)
# NAME=value, NAME: value and "NAME": "value"; a name of several words in capitals, or one of the words itself.
_GIVEN = re.compile(
    rf"""(?<![\w-])((?:[\w-]+\.)*(?:[A-Za-z0-9_]*_(?:{_PARTS})|{_PARTS}|password|passwd)["']?\s*[=:]\s*)(["']?)([^\s"',;}}\]]+)"""
)
_LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAKIA[A-Z0-9]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|\bwandb_v1_\w{20,}"
)
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._-]{16,}")

_declared: set[str] = set()


def declare(names: list[str]) -> None:
    """Names of environment variables that are secrets, whatever they look like (``cluster.secrets``)."""
    _declared.update(names)


def is_secret(name: str) -> bool:
    """Whether the environment variable `name` holds a secret, by its name."""
    return name in _declared or _NAME.fullmatch(name) is not None


def hide(text: str) -> str:
    """`text` without secrets."""
    for value in _known():
        text = text.replace(value, HIDDEN)
    text = _GIVEN.sub(lambda found: f"{found[1]}{found[2]}{found[3] if _harmless(found) else HIDDEN}", text)
    text = _ADDRESS.sub(rf"\1:{HIDDEN}@", text)
    return _LOOKS.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", text))


def word(text: str) -> str:
    """An override, ``cluster.environment.HF_TOKEN=…``, without its value where that is a secret."""
    name, equals, _ = text.partition("=")
    last = name.rpartition(".")[2]
    return f"{name}={HIDDEN}" if equals and last.upper() == last and is_secret(last) else hide(text)


def hidden(value: Any) -> Any:
    """A record without secrets: every text in it, and what stands under a secret's name."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: _under(key, member) for key, member in value.items()}
    return [hidden(member) for member in value] if isinstance(value, (list, tuple)) else value


def _under(name: Any, value: Any) -> Any:
    secret = isinstance(name, str) and isinstance(value, str) and value and name.upper() == name and is_secret(name)
    return HIDDEN if secret else hidden(value)


def _harmless(found: re.Match[str]) -> bool:
    """Options of ours that only sound like secrets hold numbers and plain words; an interpolation holds no secret itself."""
    value, name = found[3], re.split(r"[\s=:\"']", found[1])[0].rpartition(".")[2]
    return value in (HIDDEN, "null", "true", "false") or value.startswith("$") or value.isdigit() or not is_secret(name)


def _known() -> list[str]:
    """The secrets in this process's environment, the longest first."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name)}
    return sorted(found, key=len, reverse=True)
