"""The section of cross-layer transcoders: what is explained of each layer's output, and how far features reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_metrics, load_table
from circuits.report.words import decimal, percent, plural, plus_minus

NEEDED = ("explained_variance", "explained_variance_by_layer", "l0_by_layer", "layers", "across", "n_rows")


@section("clt", order=33)
def clt(view: View) -> Part:
    """Read every cross-layer transcoder of the sweep and show it."""
    problems: list[str] = []
    blocks: list[Block] = []
    told = []
    for i, entry in enumerate(view.entries):
        m = load_metrics(entry.ref, NEEDED, problems)
        if m is None:
            continue
        told.append(_sentence(m))
        norms = ("layer", "firing_rate", "own_share", *(f"norm_L{layer}" for layer in m["layers"]))
        features = load_table(entry.ref, "features.parquet", norms, problems)
        blocks += [_figure(f"clt-{i}", entry, m), _layers(entry, m)]
        blocks += [] if features is None else [_reach(entry, m, features)]
    answer = Answer(" ".join(told) or "No cross-layer transcoder could be read.", tuple(blocks[:2]))
    return Part(
        "Cross-layer transcoders", f"{plural(len(told), 'transcoder')}.", tuple(blocks[2:]), answer, tuple(problems)
    )


def _sentence(m: dict[str, Any]) -> str:
    frozen = ", ".join(
        f"{name.replace('_', ' ')} {decimal(one['explained_variance'])}"
        for name, one in (m.get("baselines") or {}).items()
    )
    told = plus_minus(m["explained_variance"], m.get("explained_variance_ci"))
    return (
        f"Explained variance {told} in the mean of {plural(len(m['layers']), 'layer')}, with {decimal(m['l0'], 1)} active features "
        f"a row in all of them; {percent(m['across'])} of what they write goes to later layers."
        f"{f' Frozen baselines: {frozen}.' if frozen else ''}"
    )


def _figure(name: str, entry: Entry, m: dict[str, Any]) -> Figure:
    series = "cross-layer transcoder"
    frozen = (m.get("baselines") or {}).get("frozen_decoder", {}).get("explained_variance_by_layer")
    pairs = list(zip(m["layers"], m["explained_variance_by_layer"], strict=True))
    points = [Point(layer, series, value, None, f"layer {layer}: {decimal(value)}") for layer, value in pairs]
    control = [
        Point(layer, series, value, None, f"layer {layer}: frozen decoder {decimal(value)}")
        for layer, value in zip(m["layers"], frozen or [], strict=False)
    ]
    sheet, _ = by_layer(
        name, Looks([series]), points, "explained variance", control=control, names=("frozen decoder", "trained")
    )
    data = pd.DataFrame(pairs, columns=["layer", "explained_variance"])
    caption = f"n\u00a0=\u00a0{m['n_rows']:,} held-out rows. From {entry.ref.label}."
    return sheet.finish(
        title="Explained variance of each layer's output", caption=caption, alt="Explained variance by layer", data=data
    )


def _layers(entry: Entry, m: dict[str, Any]) -> Table:
    columns = (
        Column("layer", True),
        Column("explained variance", True),
        Column("L0", True, "its own active features a row"),
    )
    rows = tuple(
        (Cell(str(layer), layer), Cell(decimal(value), value), Cell(decimal(l0, 1), l0))
        for layer, value, l0 in zip(m["layers"], m["explained_variance_by_layer"], m["l0_by_layer"], strict=True)
    )
    return Table("Layer by layer", columns, rows, f"From {entry.ref.label}.")


def _reach(entry: Entry, m: dict[str, Any], features: pd.DataFrame) -> Table:
    """Of each layer's features the share of squared decoder norm at each layer, weighted by how often they fire."""
    layers = m["layers"]
    columns = (Column("features of layer", True), *(Column(f"written to {layer}", True) for layer in layers))
    rows = []
    for layer in layers:
        mine = features[features["layer"] == layer]
        squares = np.square(mine[[f"norm_L{one}" for one in layers]].to_numpy())
        weights = mine["firing_rate"].to_numpy()
        shares = squares / np.clip(squares.sum(1, keepdims=True), 1e-30, None)
        means = np.average(shares, axis=0, weights=weights) if weights.sum() else np.full(len(layers), np.nan)
        cells = [
            Cell("" if one < layer else percent(float(share)), None if one < layer else float(share))
            for one, share in zip(layers, means, strict=True)
        ]
        rows.append((Cell(str(layer), layer), *cells))
    note = f"Share of squared decoder norm, weighted by how often a feature fires. From {entry.ref.label}."
    return Table("How far features reach", columns, tuple(rows), note)
