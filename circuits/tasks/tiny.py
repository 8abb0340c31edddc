"""The embedded language model as an artifact. No task of its own: whoever needs it first trains it, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.schema import BaseConfig
from circuits.store.contents import Contents
from circuits.store.kinds import Kind, Layers, ModelDims

if TYPE_CHECKING:
    from circuits.models.load import LM
    from circuits.run.context import Context, Work

THREADS = 2  # while it is trained, whatever the task has: the model is the same whoever makes it


class Tiny(Kind):
    """The embedded model."""

    name = "tiny"
    keep = "regenerable"
    sections = ("model.embedded",)
    work = ("model.embedded.steps", "model.embedded.batch")
    inline = True

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """What the model depends on besides its config: the mixture it is trained on and the version of its training."""
        from circuits.tiny import mixture
        from circuits.tiny.spec import VERSION

        return {"mixture": contents.once("mixture", mixture.fingerprint), "training": VERSION}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-4x128``."""
        return f"tiny-{cfg.model.embedded.layers}x{cfg.model.embedded.width}" if cfg.model.embedded else "tiny"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Weights, tokenizer and its accuracy."""
        return 10 << 20, 0

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Train and publish the model."""
        import torch

        from circuits.tiny.spec import TinySpec
        from circuits.tiny.train import train

        (work,), embedded = works.values(), context.cfg.model.embedded
        spec = TinySpec(
            layers=embedded.layers,
            width=embedded.width,
            steps=embedded.steps,
            batch=embedded.batch,
            lr=embedded.lr,
            seed=embedded.seed,
        )

        def progress(done: int, total: int, metrics: dict[str, float]) -> None:
            context.show("training the embedded model", done, total, "step", **metrics)

        context.say(f"training the embedded model {work.key.id}: {spec.steps} steps")
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            trained = train(spec, progress=progress, keeper=context.keeper({"training": work}, "training"))
        finally:
            torch.set_num_threads(threads)
        shown = "  ".join(f"{name} {found.accuracy:.3f}" for name, found in trained.measured.items())
        context.say(f"accuracy on unseen draws: {shown}")
        context.say(f"made {work.commit(trained.save).id}")

    def load(self, path: Path) -> LM:
        """The model for a notebook: float32, on the best device there is."""
        import torch

        from circuits.models.load import load_model, pick_device

        return load_model(str(path), dtype=torch.float32, device=pick_device())


KIND = Tiny()
