"""``python launch.py --help``: one screen, written here because Hydra's own composes every group first (seconds)."""

from __future__ import annotations

from circuits.store import places

_TEXT = """circuits: mechanistic-interpretability experiments from one command line

usage: python launch.py task=TASK [key=value …] [--cfg job | --help]

  python launch.py task=sae layer=2                                  one SAE on layer 2 of the embedded model
  python launch.py task=sae layer=all sae.k=64 sae.lr=1e-4           four SAEs from one forward pass, in one run
  python launch.py task=sae 'layer=range(0,4)' sae=topk,relu         a sweep: eight elements, worker processes, a table, a report
  python launch.py task=sae 'layer=range(10,25)' -m cluster=csd3     fifteen elements of one Slurm array job (docs/slurm.md)
  python launch.py task=sae layer=2 model=/path/or/hub-name data=text data.path=corpus.jsonl precision=bf16
  python launch.py task=status                                       all runs and sweeps; of=SWEEP for one; task=report of=SWEEP

{groups}

layer    15 · [10,12] · [0-8,14] · 10-24 · all: one run.   'layer=range(10,25)' · layer=0-8,9-16: a sweep
run      name= note= seed= reuse=cached|force|readonly outputs= multirun=
show     task=TASK --help (its options)   --cfg job (the resolved config, and where each value came from)
         -sc install=bash (tab completion: eval "$(python launch.py -sc install=bash)")
again    the same command is always safe: what is done answers from the store, what is not resumes
exit     0 done · 1 failed · 2 wrong input, nothing started · 3 a gate said no

More: README.md, docs/."""


def page() -> str:
    """The text, with the tasks and choices that there are."""
    lines = [f"{group:<12} {' '.join(places.choices(group))}" for group in _ordered()]
    return _TEXT.format(groups="\n".join(lines))


def _ordered() -> list[str]:
    first = ["task", "model", "data", "sae"]
    return first + [group for group in places.config_groups() if group not in first]
