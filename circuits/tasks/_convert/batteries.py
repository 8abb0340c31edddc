"""What the lab's batteries are here: each a preset of interventions and the words that say the rest.

============================  =========================================================================================
``heads_zero`` (H1)           ``intervention=heads``
``heads_pair_zero``,          ``intervention=head_groups`` with ``intervention.groups``
``heads_subset_zero`` (H5)
``activation_patch`` (H2)     ``intervention=patch_layers``; clean → corrupt is denoising, corrupt → clean noising
``reverse_patch`` (H6)        the same; corrupt → clean where nothing is said
``geometric_signature``       ``task=geometry``
============================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from circuits.errors import UserError, suggest
from circuits.tasks._convert.fields import View

Words = dict[str, str]
"""Overrides, by their keys."""

SITES = {"layer_resid": "resid_post", "resid_post": "resid_post", "resid_mid": "resid_mid", "resid_pre": "resid_pre",
         "attn_out": "attn_out", "mlp_out": "mlp_out", "head_out": "head_z", "head_z": "head_z"}  # fmt: skip
DIRECTIONS = {
    "clean->corrupt": "denoising",
    "corrupt->clean": "noising",
    "c2x": "denoising",
    "x2c": "noising",
    "both": "noising,denoising",
}
POSITIONS = {"last_token": "last", "last": "last", "all": "all", "subject": "factor:subject",
             "subject_span": "factor:subject"}  # fmt: skip
METHODS = ("full", "diagonal", "subspace", "per_token")


def words_of(battery: View) -> Words:
    """The words of a battery.

    Raises:
        UserError: it is of no known type, or says nothing that could be run.
    """
    kind = battery.get("type")
    if kind not in BATTERIES:
        if not isinstance(kind, str):
            raise UserError("a battery without its type; types: " + " ".join(BATTERIES))
        raise UserError(f"a battery of type {kind} is none that is known here" + suggest(kind, BATTERIES, "types"))
    return BATTERIES[kind](battery)


def _heads(battery: View) -> Words:
    words = {"task": "interventions", "intervention": "heads", **_layers(battery), **_scales(battery)}
    if (heads := battery.get("heads")) is not None:
        words["intervention.heads"] = listed(heads)
    words |= _positions(battery)
    if battery.get("random_control") is True:
        battery.note(
            "random_control", why="every head is measured here, and random ones with them: the lab drew a few a layer"
        )
        battery.drop("random_count", why="see random_control; groups of heads are held against random sets")
    elif battery.has("random_count"):
        battery.drop("random_count", why="there is no random control in this battery")
    return words


def _groups(battery: View) -> Words:
    groups = [_pair(item) for name in ("pairs", "groups") for item in battery.items(name)]
    if not groups:
        raise UserError("a battery of head groups without pairs or groups; take them from the heads that were ranked")
    layers = sorted({layer for group in groups for layer, _ in group})
    names = [f"[{','.join(f'L{layer}H{head}' for layer, head in group)}]" for group in groups]
    words = {"task": "interventions", "intervention": "head_groups", "layer": span(layers)}
    words |= {"intervention.groups": f"[{','.join(names)}]", **_scales(battery), **_positions(battery)}
    if battery.has("layers"):
        said = battery.get("layers")
        if said != "all" and set(layers) - set(said if isinstance(said, list) else [said]):
            battery.note("layers", why="the groups name their own layers")
    return words


def _pair(item: View) -> list[tuple[int, int]]:
    """The heads of a pair or a group, each with its layer."""
    value = item.value
    if isinstance(value, dict):
        layer, heads = item.get("layer"), item.get("heads")
        heads = [item.get("h1"), item.get("h2")] if heads is None else heads
        if item.has("label"):
            item.note("label", why="groups are named by their heads")
        found = [head if isinstance(head, list) else [layer, head] for head in heads]
    else:
        raise UserError(f"a group of heads is written {{layer, h1, h2}} or {{layer, heads}}, not {value}")
    if any(len(one) != 2 or not all(isinstance(number, int) for number in one) for one in found):
        raise UserError(f"a group of heads without layer or heads: {value}")
    return [(one[0], one[1]) for one in found]


def _patch(battery: View, default: str = "clean->corrupt") -> Words:
    words = {"task": "interventions", "intervention": "patch_layers", **_layers(battery)}
    site = battery.get("granularity", default="layer_resid")
    if site not in SITES:
        raise UserError(f"granularity {site} is none that is known here" + suggest(str(site), SITES))
    words["intervention.site"] = SITES[site]
    if site == "mlp_out":
        battery.note("granularity", why="the MLP's output here; the lab's mlp_out was its activation (mlp_act)")
    direction = battery.get("patch_direction", default=default)
    if direction not in DIRECTIONS:
        raise UserError(f"patch_direction {direction} is none that is known here" + suggest(str(direction), DIRECTIONS))
    words["intervention.direction"] = DIRECTIONS[direction]
    words |= _positions(battery)
    if words.get("intervention.positions") not in (None, "all"):
        why = "taken at its word; the lab patched every position (intervention.positions=all makes its numbers)"
        battery.note("positions", why=why)
    if battery.get("sham_control") is True:
        why = "nothing to run: an edit that changes nothing leaves the logits bit-equal here, and a test says so"
        battery.note("sham_control", why=why)
    return words


def _reverse_patch(battery: View) -> Words:
    return _patch(battery, "corrupt->clean")


def _geometry(battery: View) -> Words:
    words = {"task": "geometry", **_layers(battery, ("layer", "layers"))}
    if (heads := battery.get("heads")) is None:
        raise UserError("a geometric signature without heads")
    words["geometry.heads"] = listed(heads)
    for name, key in (("samples", "samples"), ("random_samples", "random_samples")):
        if (number := battery.get(name)) is not None:
            words[f"geometry.{key}"] = str(number)
    methods = battery.get("entropy_methods")
    methods = methods.split(",") if isinstance(methods, str) else methods
    if methods:
        if unknown := [method for method in methods if method not in METHODS]:
            raise UserError(f"entropy method {unknown[0]} is none that is known here" + suggest(unknown[0], METHODS))
        words["geometry.methods"] = listed(methods)
    return words


BATTERIES: dict[str, Callable[[View], Words]] = {
    "heads_zero": _heads,
    "heads_pair_zero": _groups,
    "heads_subset_zero": _groups,
    "activation_patch": _patch,
    "reverse_patch": _reverse_patch,
    "geometric_signature": _geometry,
}


# -- fields that several batteries have --------------------------------------------------------------------------


def _layers(battery: View, names: Sequence[str] = ("layers", "layer")) -> Words:
    """``layer=``: all, or those that are listed."""
    given = next((battery.get(name) for name in names if battery.has(name)), "all")
    return {"layer": given if isinstance(given, str) else span(given if isinstance(given, list) else [given])}


def _scales(battery: View) -> Words:
    """Zeroing where the only scale is 0, else scaling; several are a sweep."""
    given = battery.get("scales", default=battery.get("scale", default=0.0))
    scales = given if isinstance(given, list) else [given]
    if all(scale == 0 for scale in scales):
        return {"intervention.edit": "zero"}
    return {"intervention.edit": "scale", "intervention.scale": ",".join(f"{scale:g}" for scale in scales)}


def _positions(battery: View) -> Words:
    given = battery.get("positions")
    if given is None:
        return {}
    if isinstance(given, (list, int)) and not isinstance(given, bool):
        return {"intervention.positions": listed(given)}
    if given not in POSITIONS:
        raise UserError(f"positions {given} are none that are known here" + suggest(str(given), POSITIONS))
    if POSITIONS[given].startswith("factor:"):
        battery.note("positions", why="the prompts' factor subject; a corpus needs a field of that name")
    return {"intervention.positions": POSITIONS[given]}


def span(layers: Sequence[Any]) -> str:
    """``0``, ``9-13``, ``[0,2]``: layers as they are typed."""
    numbers = sorted(set(layers))
    if len(numbers) == 1:
        return str(numbers[0])
    if all(isinstance(n, int) for n in numbers) and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return listed(numbers)


def listed(values: Any) -> str:
    """``[2,4,7]``."""
    return f"[{','.join(str(value) for value in (values if isinstance(values, list) else [values]))}]"
