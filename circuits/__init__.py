"""Mechanistic-interpretability experiments: a library, and the framework that runs it (``launch.py``).

For notebooks (docs/python.md): :func:`circuits.open` gives any artifact, by its id or by the options that made it;
:func:`circuits.open_model` the model that the same options name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from circuits.models.load import LM


def open(what: str | Path, **options: Any) -> Any:
    """An artifact, opened: ``circuits.open("sae/tiny-L3-topk-9c41d2a81f3e")`` or ``circuits.open("sae", layer=3, sae__k=64)``.

    Args:
        what: the artifact's id as tables and reports show it, or its directory; or its kind (``sae``, ``activations`` …),
            which `options` then make one artifact.
        options: as on the command line; write ``__`` for the dot of ``sae.k``. ``outputs=`` names the folder that holds the
            store (default: ``outputs`` in the current directory).

    Returns:
        What the kind is in memory (docs/python.md has all kinds): ``sae``: a :class:`circuits.sae.modules.base.SAE` on the CPU;
        ``activations``: an :class:`~circuits.activations.store.ActivationStore`; ``interpret``: an
        :class:`~circuits.features.saved.Interpretation`; ``prompts``: a :class:`~circuits.data.prompts.PromptSet`; ``baseline``: a
        :class:`~circuits.stats.saved.Measurement`; ``tokens``: a :class:`~circuits.data.textstore.TextStore`; ``tiny``: an
        :class:`~circuits.models.load.LM`.

    Raises:
        UserError: the options are wrong, or the artifact does not exist (the message is the command that makes it).
    """
    from circuits.launch.api import open_artifact

    return open_artifact(what, options)


def open_model(**options: Any) -> LM:
    """The model that these options name, loaded: ``circuits.open_model(model="gpt2", precision="bf16", model__device="cuda")``.

    What :func:`circuits.models.hooks.forward` takes: the native Hugging Face model with its tokenizer, on its device, at its number
    format. `options` are those of :func:`open`; ``model=`` is a preset, a hub name or a directory (default: the embedded model).

    Raises:
        UserError: there is no such model, or the embedded one was not made yet (the message is the command that makes it).
    """
    from circuits.launch.api import open_model as opened

    return opened(options)
