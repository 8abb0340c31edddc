"""The picture side of ``task=baseline``: what the model says of pictures as it is, and under controls of the stimulus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import known, write_json

if TYPE_CHECKING:
    from circuits.run.context import Context, Work


def make(context: Context, work: Work) -> None:
    """Measure agreement and both directions on the test pictures, beside their controls."""
    import pandas as pd

    from circuits.data.journal import Journal
    from circuits.data.pictures.saved import read
    from circuits.interventions import directions

    options, seed = context.cfg.baseline, context.cfg.seed
    pictures = read(context.require("prompts").path)
    lm = context.open_model()
    chosen = pictures.where("test") if any(p.split == "test" for p in pictures) else pictures.where("train")
    ways: list[str | None] = [None, *pictures.controls]
    total = 3 * len(ways) * len(pictures.languages) * -(-len(chosen) // options.batch_size)
    keeper = context.keeper({"effects": work}, "asked", "asking about pictures", "pass")
    journal = Journal(keeper, {"device": str(lm.device), "batch_size": options.batch_size}, total)
    steps, size = options.tokens, options.batch_size
    found = [
        directions.measure(lm, pictures, chosen, control=control, steps=steps, batch_size=size, journal=journal)
        for control in ways
    ]
    journal.end()
    rows = directions.described(pd.concat(found, ignore_index=True), pictures)
    with context.phase("intervals"):
        metrics = directions.summarise(rows, pictures, seed=seed, resamples=min(options.resamples, 2000))
    metrics |= {"metric": "pictures", "pair_acc": metrics["agreement"], "pair_acc_ci": metrics["agreement_ci"]}

    def write(out: Path) -> None:
        rows.to_parquet(out / "per_prompt.parquet", index=False)
        write_json(out / "metrics.json", known(metrics))

    artifact = work.commit(write)
    context.say(f"{told(metrics)}: {artifact.id}")


def told(metrics: dict[str, Any]) -> str:
    """Agreement and both directions, in a line."""
    parts = [f"agreement {metrics['agreement']:.3f}"] if metrics["agreement"] is not None else []
    for name in ("context_to_gender", "gender_to_words"):
        if (one := metrics[name]) is not None:
            parts.append(f"{name.replace('_', ' ')} {one['value']:.3f} [{one['ci'][0]:.3f}, {one['ci'][1]:.3f}]")
    if (text := metrics["text_only"]) is not None:
        parts.append(
            f"text alone {text['share']:.1%}{' FLAGGED: answerable without the picture' if text['flagged'] else ''}"
        )
    return ", ".join(parts) or "nothing was said of gender"
