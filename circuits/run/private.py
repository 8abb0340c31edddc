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
from functools import lru_cache
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # letters of a value that is hidden wherever it turns up: "true" or "0" is no secret

_PARTS = r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|KEY|CREDENTIALS?|PAT"
_NAME = re.compile(rf"(?:.*_)?(?:{_PARTS})(?:_(?:ID|VALUE|\d+))?", re.IGNORECASE)
_VALUE = r"""["']?\s*[=:]\s*)(?:(["'])(.*?)\2|([^\s"',;}\]]+))"""
# NAME=value, NAME: value and "NAME": "value": a name in capitals that ends in one of the words, or any that ends in password.
_GIVEN = re.compile(rf"(?<![\w-])((?:[\w-]+\.)*(?:\w*_(?:{_PARTS})|{_PARTS}|\w*passw(?:or)?d){_VALUE}")
_LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAKIA[A-Z0-9]{16}\b|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|\bwandb_v1_\w{20,}"
)
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._-]{16,}")

_PERSONAL = re.compile(r"\b(cluster\.mail|cluster\.[cg]pu\.account|hydra\.launcher\.account|user\.[\w.]+)=([^\s'\"]+)")

_declared: set[str] = set()
Known = tuple[tuple[str, ...], tuple[str, ...]]


def declare(names: list[str]) -> None:
    """Names of environment variables that are secrets, whatever they look like (``cluster.secrets``)."""
    _declared.update(names)


def is_secret(name: str) -> bool:
    """Whether the environment variable `name` holds a secret, by its name."""
    return name in _declared or _NAME.fullmatch(name) is not None


def hide(text: str) -> str:
    """`text` without secrets."""
    return _hide(text, _known())


@lru_cache(maxsize=1 << 13)  # the elements of a sweep are alike
def _hide(text: str, known: Known) -> str:
    values, names = known
    for value in values:
        text = text.replace(value, HIDDEN)
    patterns = [_GIVEN, *(re.compile(rf"(?<![\w-])({re.escape(name)}{_VALUE}") for name in names)]
    for pattern in patterns:
        text = pattern.sub(_without, text)
    text = _ADDRESS.sub(rf"\1:{HIDDEN}@", text)
    return _LOOKS.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", text))


def word(text: str) -> str:
    """An override, ``cluster.environment.HF_TOKEN=…``, without its value where that is a secret."""
    name, equals, _ = text.partition("=")
    last = name.rpartition(".")[2]
    return f"{name}={HIDDEN}" if equals and last.upper() == last and is_secret(last) else hide(text)


def public(value: Any) -> Any:
    """A record for a page that is passed on: without secrets, and without the personal values on a command line."""
    return _impersonal(hidden(value))


def _impersonal(value: Any) -> Any:
    if isinstance(value, str):
        return _PERSONAL.sub(rf"\1={HIDDEN}", value)
    if isinstance(value, Mapping):
        return {key: _impersonal(member) for key, member in value.items()}
    return [_impersonal(member) for member in value] if isinstance(value, (list, tuple)) else value


def hidden(value: Any) -> Any:
    """A record without secrets: every text in it, and what stands under a secret's name."""
    return _hidden(value, _known())


def _hidden(value: Any, known: Known) -> Any:
    if isinstance(value, str):
        return _hide(value, known)
    if isinstance(value, Mapping):
        return {key: _under(key, member, known) for key, member in value.items()}
    return [_hidden(member, known) for member in value] if isinstance(value, (list, tuple)) else value


def _under(name: Any, value: Any, known: Known) -> Any:
    secret = isinstance(name, str) and isinstance(value, str) and value and name.upper() == name and is_secret(name)
    return HIDDEN if secret else _hidden(value, known)


def _without(found: re.Match[str]) -> str:
    """``NAME=***``; an interpolation or a switch holds no secret itself."""
    quote, value = found[2] or "", found[3] or found[4] or ""
    if value in ("", HIDDEN, "null", "true", "false") or value.startswith("$"):
        return found[0]
    return f"{found[1]}{quote}{HIDDEN}{quote}"


def _known() -> Known:
    """The secrets in this process's environment, the longest first, and the names that are declared."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name)}
    return tuple(sorted(found, key=lambda value: (-len(value), value))), tuple(sorted(_declared))
