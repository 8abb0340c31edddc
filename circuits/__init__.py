"""Mechanistic-interpretability experiments: a library, and the framework that runs it (``launch.py``).

For notebooks: :func:`circuits.open` gives any artifact by the config that made it.
"""

from __future__ import annotations

from typing import Any


def open(kind: str, **overrides: Any) -> Any:
    """The artifact of `kind` under a config, opened: ``circuits.open("sae", layer=3, model="gpt2", sae__k=64)``.

    Args:
        kind: the artifact's kind (``sae``, ``prompts``, ``baseline``, ``tiny``, ``tokens``).
        overrides: as on the command line; write ``__`` for the dot of ``sae.k``. A further ``outputs=`` names the store.

    Returns:
        What the kind's loader makes of the artifact's directory: an SAE, a model, a token store.

    Raises:
        UserError: the config is wrong, or the artifact does not exist (the message is the command that makes it).
    """
    from circuits.run.api import open_artifact

    return open_artifact(kind, overrides)
