"""``task=prefetch``: a hub model, and a hub dataset, into the Hugging Face cache while there is a network. Safe to repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.errors import UserError
from circuits.schema import BaseConfig, DataSource
from circuits.store.places import choices
from circuits.words import size

if TYPE_CHECKING:
    from circuits.models.prefetch import Fetched

READS = ("model.id", "model.revision", "data", "cluster", "user")  # of the cluster: where its nodes look for models


def run(cfg: BaseConfig) -> int:
    """Fetch what the config names of the hub, and say what is there now."""
    import sys

    from huggingface_hub.utils import disable_progress_bars

    from circuits.data.prefetch import fetch_dataset
    from circuits.models.identify import directory_of
    from circuits.models.prefetch import fetch_model

    if not sys.stderr.isatty():
        disable_progress_bars()
    from_hub = _dataset(cfg)
    if cfg.model.embedded is None and directory_of(cfg.model.id) is None:
        _show(fetch_model(cfg.model.id, cfg.model.revision, choices("model")))
    elif from_hub is None:
        raise UserError(
            f"model={cfg.model.id}: nothing to fetch, it is {'trained here' if cfg.model.embedded else 'a directory'}; name a hub "
            f"model (presets: {' '.join(name for name in choices('model') if name not in ('hf', 'tiny'))}) or a hub dataset"
        )
    if from_hub is not None:
        _show(fetch_dataset(from_hub))
    return 0


def _dataset(cfg: BaseConfig) -> str | None:
    """The name on the hub of the dataset that the config names, if it is on the hub."""
    from circuits.data.corpora import find_corpus

    if cfg.data.source is not DataSource.datasets or cfg.data.path is None:
        return None
    return find_corpus(cfg.data.source.value, cfg.data.path, cfg.data.split).hub


def _show(found: Fetched) -> None:
    from circuits.console import Rows, console

    shown, table = console(), Rows([""] * 4, texts=(0, 3))
    state = f"{size(found.new_bytes)} fetched" if found.new_bytes else "already here"
    table.add(found.name, found.commit[:12], f"{size(found.bytes)} in {found.files} files", state)
    shown.table(table)
    shown.tell(f"  {found.path}")
