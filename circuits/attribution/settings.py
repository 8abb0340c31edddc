"""What a study of circuits and the judgement of one are, in plain values. No torch."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from circuits.errors import suggest
from circuits.interventions.settings import Direction, Metric, Split

HERE = Path(__file__).parent
POSITIONS = ("all", "last", "spans")
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which a circuit is judged (MIB, arXiv:2504.13151)."""


class Choice(Enum):
    """How edges are chosen by their scores."""

    top_n = "top_n"  # the largest sizes
    greedy = "greedy"  # from the logits down: each edge enters only when its reader leads to them
    threshold = "threshold"  # sizes of at least attribution.threshold
    influence = "influence"  # by what share of all paths from the logits goes through an edge


class Level(Enum):
    """What the nodes of a graph are."""

    components = "components"  # heads, MLPs, embedding, logits
    features = "features"  # SAE or transcoder features at positions, errors, tokens, logits


class Features(Enum):
    """What the features of a graph are of."""

    sae = "sae"  # an SAE or transcoder of each layer
    clt = "clt"  # the cross-layer transcoder of the layers (task=clt)


class Explained(Enum):
    """Which logits a graph of features explains."""

    difference = "difference"  # target − foil
    top = "top"  # the likeliest ones, until they hold 95%, ten at most


class Reference(Enum):
    """What a feature's contribution is held against."""

    zero = "zero"  # the feature absent
    corrupt = "corrupt"  # its activation in the pair's other prompt, at the same position


FEATURE_METHODS = ("eap", "eap_ig_inputs")
"""Methods at level=features: the gradient of this run, or its mean along the way between the two inputs."""


@dataclass
class Settings:
    """Which edges are scored, how, on which prompts, and what of it is checked."""

    level: Level = Level.components  # components: heads, MLPs …; features: those of the layers' SAEs or transcoders
    method: str = "eap_ig_inputs"  # a file of circuits/attribution/methods: how edges are scored
    steps: int = 5  # points of the path, of methods that integrate
    direction: Direction = (
        Direction.noising
    )  # noising: the clean run with the corrupt one's values; denoising: the reverse
    metric: Metric = Metric.first_token  # compare the logits of the answers' first tokens, or whole answers
    positions: str = (
        "all"  # all; last: changes count at the prompt's last token only; spans: scores by stretch of the pair, too
    )
    split: Split = Split.train  # prompts that edges are scored on; task=faithfulness judges on the other ones
    samples: int | None = None  # so many of them, the first ones; null: all
    choose: Choice = Choice.top_n  # how a circuit is chosen by the scores
    edges: float = 0.05  # of the circuit: a share of all edges, or a number from 1 on
    threshold: float = 0.01  # of choose=threshold: the smallest |mean score|
    verify: int = 100  # the largest edges that are patched exactly, to see how far scores can be trusted
    verify_random: int = 100  # and random others
    verify_samples: int = 16  # on so many prompts
    bootstraps: int = 1000  # resamplings of the prompts, for the share of them in which an edge is among the chosen
    batch_size: int = 8  # prompts of a pass
    # -- level=features --
    features: Features = Features.sae  # an SAE or transcoder of each layer, or a cross-layer transcoder of them all
    logits: Explained = Explained.difference  # what a graph explains: target − foil, or the likeliest logits
    reference: Reference = Reference.zero  # contributions against the feature's absence, or the pair's other prompt
    graphs: int = 4  # prompts whose graph is drawn, the first ones; contributions are measured on all
    max_features: int = 200  # features of a graph whose own sources are traced, the most influential ones
    node_share: float = 0.8  # of all influence, held by the nodes that are kept
    edge_share: float = 0.98  # of what flows between them, held by the edges that are kept
    top_k: int = 0  # edges into a node that are kept at most; 0: all
    min_weight: float = 0.0  # the smallest |weight| of an edge that is kept
    last_n: int | None = None  # trace features of the last so many tokens only; null: of all
    min_explained: float = 0.3  # explained variance on these prompts below which SAEs are refused


def methods() -> list[str]:
    """The names of the methods."""
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE / "methods")]) if m.name != "base")


def integrates(method: str) -> bool:
    """Whether a method reads ``steps``; known without importing it."""
    return method in ("conductance", "eap_ig_activations", "eap_ig_inputs")


def check(s: Settings) -> list[str]:
    """What is wrong with the settings, one line each."""
    errors = []
    if s.method not in methods():
        errors.append(f"method={s.method}: there is none" + suggest(s.method, methods(), "methods"))
    if s.positions not in POSITIONS:
        errors.append(f"positions={s.positions}: choices: {' '.join(POSITIONS)}")
    for name, least in (("steps", 1), ("batch_size", 1), ("verify_samples", 1), ("verify", 0), ("verify_random", 0),
                        ("bootstraps", 0)):  # fmt: skip
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    if s.samples is not None and s.samples < 1:
        errors.append(f"samples={s.samples}: at least 1")
    if s.edges <= 0 or (s.edges > 1 and s.edges != int(s.edges)):
        errors.append(f"edges={s.edges:g}: a share of all edges (above 0, up to 1), or a whole number of them")
    if s.threshold <= 0:
        errors.append(f"threshold={s.threshold:g}: above 0")
    return [*errors, *(_features(s) if s.level is Level.features else [])]


def _features(s: Settings) -> list[str]:
    errors = []
    if s.method in methods() and s.method not in FEATURE_METHODS:
        errors.append(f"method={s.method}: at level=features the choices are {' '.join(FEATURE_METHODS)}")
    if s.positions != "all":
        errors.append(f"positions={s.positions}: level=features has all; last_n=5 traces the last tokens only")
    if s.metric is Metric.full_target:
        errors.append("metric=full_target: level=features explains logits of first tokens")
    for name, least in (("graphs", 0), ("max_features", 1), ("top_k", 0)):
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    for name in ("node_share", "edge_share"):
        if not 0 < (share := getattr(s, name)) <= 1:
            errors.append(f"{name}={share:g}: above 0 and up to 1")
    if s.last_n is not None and s.last_n < 1:
        errors.append(f"last_n={s.last_n}: at least 1")
    return errors


def count(edges: float, total: int) -> int:
    """How many edges `edges` means, a share up to 1 or a number."""
    return min(total, max(1, round(edges * total) if edges <= 1 else int(edges)))


class Ablation(Enum):
    """What an edge outside the circuit carries."""

    counterfactual = "counterfactual"  # what its writer adds in the pair's other run
    zero = "zero"
    mean = "mean"  # what its writer adds on average over the tokens of the prompts that are not judged
    resample = "resample"  # what its writer adds on another prompt
    optimal = (
        "optimal"  # the constant with which circuits come nearest to the model, fitted on prompts that are not judged
    )


@dataclass
class Judging:
    """How a circuit is judged: what edges outside it carry, at which sizes, beside how many random circuits."""

    ablation: Ablation = Ablation.counterfactual  # what edges outside the circuit carry
    fractions: Any = None  # shares of edges; null: MIB's .001 .002 .005 .01 .02 .05 .1 .2 .5 1
    rank: Choice = Choice.top_n  # how edges are ranked: top_n, greedy or influence
    random: int = 5  # random circuits of each size, and as many with each reader's number of edges
    minimality: int = 40  # edges of the circuit that are tested one by one, and random ones beside them; 0: none
    steps: int = 40  # gradient steps of optimal constants
    samples: int | None = None  # prompts that are judged, the first ones; null: all of the split
    batch_size: int = 8  # rows of a pass

    @property
    def shares(self) -> list[float]:
        """The shares of edges, ascending, each once."""
        given = FRACTIONS if self.fractions is None else self.fractions
        return sorted({float(x) for x in (given if isinstance(given, (list, tuple)) else [given])})


def check_judging(s: Judging) -> list[str]:
    """What is wrong with the settings, one line each."""
    errors = []
    given = s.fractions if isinstance(s.fractions, (list, tuple)) else [] if s.fractions is None else [s.fractions]
    for x in given:
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x <= 1:
            errors.append(f"fractions={x}: shares of all edges, above 0 and up to 1")
    if s.rank is Choice.threshold:
        errors.append("rank=threshold: sizes of circuits are given by fractions; choices: top_n greedy influence")
    for name, least in (("random", 0), ("minimality", 0), ("steps", 1), ("batch_size", 1)):
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    if s.samples is not None and s.samples < 2:
        errors.append(f"samples={s.samples}: at least 2")
    return errors
