"""The embedded language model as an artifact. No task of its own: whoever needs it first trains it, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.schema import BaseConfig
from circuits.schema.model import scenes_of
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
        if scenes_of(cfg.model) is not None:
            from circuits.tiny.vision import spec

            return {"scenes": contents.once("scenes", spec.fingerprint), "training": spec.VERSION}
        from circuits.tiny import mixture
        from circuits.tiny.spec import VERSION

        return {"mixture": contents.once("mixture", mixture.fingerprint), "training": VERSION}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-4x128``, ``tiny_vlm-4x64``."""
        embedded = cfg.model.embedded
        return f"{cfg.model.id}-{embedded.layers}x{embedded.width}" if embedded else "tiny"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Weights, tokenizer and its accuracy."""
        return 10 << 20, 0

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Train and publish the model."""
        import torch

        (work,), (spec, train) = works.values(), _how(context.cfg.model.embedded)

        def progress(done: int, total: int, metrics: dict[str, float]) -> None:
            context.show("training the embedded model", done, total, "step", **metrics)

        context.say(f"training the embedded model {work.key.id}: {spec.steps} steps")
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS if scenes_of(context.cfg.model) is None else 1)  # small products: two only wait
        try:
            trained = train(spec, progress=progress, keeper=context.keeper({"training": work}, "training"))
        finally:
            torch.set_num_threads(threads)
        context.say(f"accuracy on unseen draws: {trained.told()}")
        context.say(f"made {work.commit(trained.save).id}")

    def load(self, path: Path) -> LM:
        """The model for a notebook: float32, on the best device there is."""
        import torch

        from circuits.models.load import load_model, pick_device

        return load_model(str(path), dtype=torch.float32, device=pick_device())


def _how(embedded: Any) -> tuple[Any, Any]:
    """The spec of the embedded model, and what trains it."""
    given = {name: getattr(embedded, name) for name in ("layers", "width", "steps", "batch", "lr", "seed")}
    if embedded.scenes is not None:
        from circuits.tiny.vision.spec import VisionSpec
        from circuits.tiny.vision.train import train as see

        biases = {"context_bias": embedded.scenes.context_bias, "word_bias": embedded.scenes.word_bias}
        return VisionSpec(**given, **biases), see
    from circuits.tiny.spec import TinySpec
    from circuits.tiny.train import train

    return TinySpec(**given), train


KIND = Tiny()
