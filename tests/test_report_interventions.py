"""The section of interventions: what is drawn and said of each kind of study, from artifacts made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page

from circuits.report import ArtifactRef, Element, ReportInput, build
from circuits.report.sections.interventions_maps import Panel, limit, shade
from circuits.report.sections.interventions_records import chance, shape
from circuits.state import State

EDITS = ("zero", "mean")


def row(unit: str, effect: float, edit: str = "zero", **more: Any) -> dict[str, Any]:
    """One row of a summary; an effect of NaN has no interval and no q."""
    sure = abs(effect) > 1
    undefined = math.isnan(effect)
    found = {
        "unit": unit, "edit": edit, "layer": None, "item": None, "positions": "all", "group": "", "control": "", "of": "",
        "n": 20, "clusters": 20, "effect": effect, "low": effect - 0.5, "high": effect + 0.5, "p": 0.001 if sure else 0.4,
        "q": math.nan if undefined else 0.002 if sure else 0.45, "q_by": math.nan if undefined else 0.01 if sure else 1.0,
        "bound": 0.9, "detectable": 0.75, "verdict": "effect" if sure else "none" if abs(effect) < 0.2 else "open",
        "abs_effect": abs(effect), "kl": 0.125, "top1_error": 0.15, "p_drop": 0.0625, "flip": 0.35, "direct": effect / 2,
        "direct_frozen": effect / 4, "recovery": math.nan,
    }  # fmt: skip
    return found | more


def heads(layers: int = 4, width: int = 4, edits: Sequence[str] = EDITS, seed: int = 0) -> list[dict[str, Any]]:
    """Every head under every edit: L1.H2 is the strongest."""
    rng = np.random.default_rng(seed)
    return [
        row(f"L{layer}.H{head}", -6.0 - e if (layer, head) == (1, 2) else float(rng.normal(0, 0.3)), edit, layer=layer, item=head)
        for e, edit in enumerate(edits)
        for layer in range(layers)
        for head in range(width)
    ]  # fmt: skip


def study(
    root: Path, kind: str, rows: Sequence[dict[str, Any]], behaviour: str = "ioi",
    tables: dict[str, Any] | None = None, **metrics: Any,
) -> Element:  # fmt: skip
    """An element whose artifact holds these rows."""
    edits = list(dict.fromkeys(str(r["edit"]) for r in rows))
    key = f"{abs(hash((kind, behaviour, len(rows)))):012x}"[:12]
    label = f"interventions/{behaviour}-tiny-{kind}-{'+'.join(edits)}-{key}"
    path = root / label
    path.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path / "summary.parquet")
    for name, table in (tables or {}).items():
        pd.DataFrame(table).to_parquet(path / f"{name}.parquet")
    base = {"difference": 8.81, "pair_acc": 0.95, "top1_error": 0.05, "ece": 0.031, "ece_multiclass": 0.047}
    agreement = [{"a": a, "b": b, "rho": 0.8, "p": 0.004, "n": 16} for a in edits for b in edits if a < b]
    given = {
        "n": 20, "units": 16, "controls": 0, "edits": edits, "layers": [0, 1, 2, 3], "compared": "logit_diff",
        "base": dict.fromkeys(edits, base), "agreement": agreement, "left_out": {},
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(given | metrics))
    (path / "manifest.json").write_text(json.dumps({"key": key, "kind": "interventions", "version": 1}))
    config = {"intervention": {"units": kind, "site": "resid_post"}, "model": {"id": "tiny"}}
    ref = ArtifactRef("interventions", key, path, None, label)
    return Element(0, "000", [], {"behaviour": behaviour}, State.done, artifacts=[ref], config=config)


def page(out: Path, *elements: Element) -> Page:
    """The page of these elements."""
    numbered = [dataclasses.replace(e, index=i, name=f"{i:03d}") for i, e in enumerate(elements)]
    report = ReportInput("study", "What do edits change?", "study-1", "launch.py", "launch.py", numbered, "2026-11-20")
    return Page(build(report, out))


def test_the_first_screen_answers_a_head_study(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store", "heads", heads()))
    assert (
        "ioi-tiny: strongest L1.H2 (mean) -7.00 [-7.50, -6.50] logits; of 16 heads × 2 edits, 2 with an effect"
        in found.text
    )
    assert "L1.H2 mean -7.00 ± 0.50 0.002 0.010 effect – 35.0% 0.125 0.062 15.0% 20" in found.text
    assert any(told.startswith("L1.H2, zero: -6.00 [-6.50, -5.50] logits, q 0.002, n 20") for told in found.hover)
    assert "deterministic, without seeds" in found.text and "Above 0 the edit favours the target" in found.text
    csv = pd.read_csv(tmp_path / "figures" / "interventions-0.csv")
    assert len(csv) == 32 and csv["effect"].min() == -7


def test_open_verdicts_say_what_could_have_been_seen(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store", "heads", [row("L0.H0", -0.5, layer=0, item=0)]))
    assert "-0.50 ± 0.50 0.450 1.000 open 0.75" in found.text and "0 equivalent to none, 1 open" in found.text


def test_total_direct_and_repairs_stand_side_by_side(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store", "heads", heads()))
    # total, then direct, repair by the norm (direct − frozen) and by later layers (total − direct) of each edit
    assert "L1.H2 -6.00* -7.00* -3.00 -1.50 -3.00 -3.50 -1.75 -3.50" in found.text
    assert "zero 1 +0.80 (p 0.004)" in found.text
    assert "ioi-tiny zero, mean 8.81 95.0% 5.0% 0.031 0.047 none" in found.text


def test_undefined_cells_are_hatched_and_never_zero(tmp_path: Path) -> None:
    rows = heads(edits=("zero",))
    rows[0]["effect"] = rows[0]["low"] = rows[0]["high"] = rows[0]["q"] = math.nan
    left = {"zero": ["ioi-0003", "ioi-0007"]}
    found = page(tmp_path, study(tmp_path / "store", "heads", rows[:-1], left_out=left))
    svg = (tmp_path / "figures" / "interventions-0.svg").read_text()
    assert "hatched: not measured" in svg and "url(#h" in svg
    assert not [told for told in found.hover if told.startswith(("L0.H0", "L3.H3"))]
    assert "1 undefined" in found.text and "L0.H0 – +" not in found.text.replace("L0.H0 –", "", 1)
    assert "2: ioi-0003 ioi-0007" in found.text


def test_positions_sites_and_one_layer(tmp_path: Path) -> None:
    cells = [
        row(f"L{layer} @{at}", 4.0 * layer, layer=layer, item=0, positions=str(at), recovery=0.25 * layer)
        for layer in range(3)
        for at in (-3, -2, -1)
    ]
    found = page(tmp_path / "a", study(tmp_path / "s1", "positions", cells))
    assert "strongest L2 @-3 +8.00" in found.text and "of 9 layer-position cells" in found.text
    assert any("recovery 0.500" in told for told in found.hover)
    assert "−3" in (tmp_path / "a" / "figures" / "interventions-0.svg").read_text()
    sites = [row(f"L{layer}", 4.0 * layer, layer=layer, item=0, recovery=0.25 * layer) for layer in range(3)]
    found = page(tmp_path / "b", study(tmp_path / "s2", "sites", sites))
    assert {"interventions-0-effect.svg", "interventions-0-recovery.svg"} <= {
        f.name for f in (tmp_path / "b" / "figures").iterdir()
    }
    assert "No interval was saved." in found.text
    found = page(tmp_path / "c", study(tmp_path / "s3", "sites", sites[:1]))
    assert "of 1 site, 0 with an effect" in found.text


def test_one_prompt_has_no_intervals(tmp_path: Path) -> None:
    rows = [r | {"low": math.nan, "high": math.nan, "n": 1} for r in heads(layers=1, edits=("zero",))]
    rows[0]["effect"] = -3.0
    found = page(tmp_path, study(tmp_path / "store", "heads", rows, n=1))
    assert "strongest L0.H0 -3.00 logits" in found.text and "(n = 1 prompt)" in found.text
    assert not re.search(r"\bnan\b", found.text + " ".join(found.hover))


def features() -> list[dict[str, Any]]:
    """Two features with ten controls each."""
    rows = []
    for name, effect in (("L1.F7", -3.0), ("L1.F9", 0.1)):
        controls = [round(0.1 * i - 0.45, 2) for i in range(10)]
        null: dict[str, Any] = {
            "null_n": 10,
            "null_mean": 0.0,
            "null_low": -0.4,
            "null_high": 0.4,
            "percentile": 0.0,
            "p_null": 1 / 11,
        }
        rows.append(row(name, effect, layer=1, item=7, **null, smallest_p=1 / 11))
        rows += [
            row(f"random {i} of {name}", v, control="matched", of=name, verdict="", q=math.nan)
            for i, v in enumerate(controls)
        ]
    return rows


def test_units_stand_among_their_controls(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store", "features", features()))
    assert any("controls +0.00 [-0.40, +0.40], p 0.091" in told for told in found.hover)
    assert "of 2 feature groups, 1 with an effect" in found.text and "no less than 0.091 with so few" in found.text
    csv = pd.read_csv(tmp_path / "figures" / "interventions-0-0-null-0.csv")
    assert csv["role"].value_counts().to_dict() == {"control": 20, "observed": 2}
    assert "random 0" not in found.text, "controls are in no table of units"


def groups() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two heads, their pair, random pairs; synergy and Shapley values."""
    rows = [row("L0.H2", -1.5, layer=0, item=2), row("L3.H1", -1.5, layer=3, item=1)]
    null: dict[str, Any] = {
        "null_n": 3,
        "null_mean": 0.0,
        "null_low": -0.1,
        "null_high": 0.1,
        "percentile": 0.0,
        "p_null": 0.25,
    }
    rows += [row("L0.H2+L3.H1", -5.0, **null)]
    rows += [row(f"random {i} of 1 at L0, 1 at L3", 0.1 * i, control="random", of="1 at L0, 1 at L3") for i in range(3)]
    synergy = {
        "unit": ["L0.H2+L3.H1"], "edit": ["zero"], "size": [2], "joint": [-5.0], "sum": [-3.0], "synergy": [-2.0], "low": [-2.5],
        "high": [-1.5], "p": [0.01], "q": [0.01], "additivity": [5 / 3], "extra": [3.5], "super_additive": [True],
    }  # fmt: skip
    shapley = {
        "layer": [0, 3], "item": [2, 1], "edit": ["zero"] * 2, "shapley": [-2.5, -2.5], "low": [-3.0, -3.0], "high": [-2.0, -2.0],
        "alone": [-1.5, -1.5], "orders": [6, 6],
    }  # fmt: skip
    return rows, {"groups": synergy, "shapley": shapley}


def test_groups_show_synergy_shapley_and_their_controls(tmp_path: Path) -> None:
    rows, tables = groups()
    found = page(tmp_path, study(tmp_path / "store", "head_groups", rows, tables=tables))
    assert "L0.H2+L3.H1 zero 2 -5.00 -3.00 -2.00 ± 0.50 0.010 1.67 3.50 yes" in found.text
    assert any("L0.H2, zero: Shapley -2.50 [-3.00, -2.00], alone -1.50 logits" in told for told in found.hover)
    csv = pd.read_csv(tmp_path / "figures" / "interventions-0-0-null-0.csv")
    assert set(csv["unit"]) == {"L0.H2+L3.H1"} and (csv["role"] == "control").sum() == 3
    assert "of 3 groups of heads" in found.text


def test_a_head_given_back_is_held_against_its_zeroed_group(tmp_path: Path) -> None:
    group = "L0.H2+L3.H1"
    rows = [row(group, -4.0, "restore"), row(f"{group} keep L0.H2", -0.05, "restore", group=group)]
    rescued = {
        "unit": [group, group, f"{HOSTILE}\n"], "kept": ["L0.H2", "L3.H1", HOSTILE], "base": [8.0] * 3, "zeroed": [4.0, 4.0, 8.0],
        "restored": [7.95, 2.0, 8.0], "recovered": [0.9875, -0.5, math.nan], "rescued": [True, False, True],
    }  # fmt: skip
    found = page(tmp_path, study(tmp_path / "store", "head_groups", rows, tables={"rescues": rescued}))
    assert f"{group} L0.H2 8.00 4.00 ± 0.50 7.95 ± 0.50 98.8% yes" in found.text
    assert f"{group} L3.H1 8.00 4.00 ± 0.50 2.00 -50.0% no" in found.text, "without an interval where none was saved"
    assert f"{HOSTILE}⏎ {HOSTILE} 8.00 8.00 8.00 – nothing was lost" in found.text and HOSTILE not in found.source
    assert "Controls: the same prompts without edits, and with the whole group zeroed." in found.text


def steered() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two directions, of which the second does no more than chance ones; texts under them."""
    rows = [row("L1.dom", 3.0, "steer", layer=1, item=0), row("L2.dom", 0.1, "steer", layer=2, item=0)]
    rows += [row(f"L1.random {i}", 0.1 * i, "steer", control="random", of="L1.dom") for i in range(3)]
    rows += [row("prompting", 9.0, "steer", control="prompting")]
    evidence = {
        "unit": ["L1.dom", "L2.dom"], "norm": [0.4, 0.5], "strength": [0.5, 4.0], "largest": [False, True], "effect": [3.0, 0.1],
        "wrong": [0.15, 0.45], "n": [20, 20], "random_n": [19, 19], "random_mean": [0.1, 0.1], "random_best": [0.2, 0.3],
        "p_random": [0.05, 0.6], "orthogonal_n": [19, 19], "orthogonal_mean": [0.0, 0.0], "orthogonal_best": [0.25, 0.05],
        "p_orthogonal": [0.05, 0.7], "prompting": [9.0, 9.0], "prompting_wrong": [0.05, 0.05], "prompting_right": [9.5, 9.5],
    }  # fmt: skip
    units = ["(none)", "L1.dom", "L2.dom", "L1.random 0", "L2.random 0", "prompting"]
    written = pd.DataFrame([{"unit": unit, "sample": f"ioi-{i:02d}"} for unit in units for i in range(12)])
    written = written.assign(text=[f"{unit} {i}" for unit, i in zip(written["unit"], written["sample"], strict=True)])
    written = written.assign(nll=np.where(written["unit"] == "L1.dom", math.log(2), 0.0), distinct_2=0.5)
    written.loc[0, "text"] = f" two\nlines {HOSTILE}"
    written.loc[12, "text"] = ""
    written.loc[written["unit"] == "prompting", ["nll", "distinct_2"]] = math.nan
    return rows, {"steering": evidence, "generations": written}


def test_steering_stands_beside_chance_directions_a_prompt_and_its_texts(tmp_path: Path) -> None:
    rows, tables = steered()
    found = page(tmp_path, study(tmp_path / "store", "steer", rows, tables=tables, direction="denoising"))
    assert (
        "L1.dom 0.4000 0.5 3.000 ± 0.500 15.0% +0.100 / +0.200 0.050 +0.000 / +0.250 0.050 +9.000 (5.0%) "
        "1.00 / 2.00 / – 0.50 / 0.50 / – 20"
    ) in found.text
    assert "L2.dom 0.5000 4* 0.100 ± 0.500 45.0% +0.100 / +0.300 0.600" in found.text
    assert "wanted: above 0" in found.text and "no less than 0.050 with so few. 1 of 2 go farther" in found.text
    assert "no better than random directions of equal norm proves nothing about representation" in found.text
    assert "prompt as it is L1.dom L1.random 0 prompted" in found.text, (
        "the best direction and a random one of its layer"
    )
    assert f"ioi-00 two⏎lines {HOSTILE} (nothing) L1.random 0 ioi-00" in found.text and HOSTILE not in found.source
    assert "ioi-09 (none) ioi-09" in found.text and "ioi-10" not in found.text
    csv = pd.read_csv(tmp_path / "figures" / "interventions-0-0-null-0.csv")
    assert (csv["role"] == "control").sum() == 3, "a prompt is no direction of equal norm"


def test_steering_without_controls_texts_or_readable_files(tmp_path: Path) -> None:
    rows, tables = steered()
    bare = {key: tables["steering"][key] for key in ("unit", "norm", "strength", "largest", "effect", "wrong", "n")}
    long = tables["generations"].assign(text="word " * 40)
    one = study(
        tmp_path / "a", "steer", rows, tables={"steering": bare | {"unit": [HOSTILE, "x\ty"]}, "generations": long}
    )
    two = study(
        tmp_path / "b", "steer", rows[:2], "other", tables={"steering": bare, "generations": long.drop(columns="text")}
    )
    (two.artifacts[0].path / "steering.parquet").write_text("no parquet")
    found = page(tmp_path, one, two)
    assert (
        f"{HOSTILE} 0.4000 0.5 3.000 15.0% – – – – – 1.00 / – / – 0.50 / – / – 20" in found.text
        and HOSTILE not in found.source
    )
    assert "none was measured. A vector" in found.text and "wanted: below 0" in found.text and "x⇥y" in found.text
    assert "steering.parquet is damaged" in found.text and "generations.parquet lacks text" in found.text
    assert "word word …" in found.text and f'title="{"word " * 40}"' in found.source
    assert not re.search(r"\bnan\b", found.text)


def test_conditions_are_compared_unit_by_unit(tmp_path: Path) -> None:
    one, two = (
        study(tmp_path / "store", "heads", heads(seed=seed), name) for seed, name in ((0, "ioi"), (1, "induction"))
    )
    found = page(tmp_path, one, two)
    assert "ioi-tiny: strongest" in found.text and "induction-tiny: strongest" in found.text
    shared = pd.read_csv(tmp_path / "figures" / "interventions-0-across-0-conditions.csv")
    assert {"unit", "ioi-tiny", "induction-tiny", "edit"} <= set(shared) and len(shared) == 32
    assert "of 10 6.2" in found.text  # 16 · (10/16)²
    ranks = pd.read_csv(tmp_path / "figures" / "interventions-0-across-0-ranks.csv")
    assert sorted(set(ranks["layer"])) == [0, 1, 2, 3] and (ranks["n"] == 4).all()


def test_studies_of_other_models_are_not_compared(tmp_path: Path) -> None:
    one, two = (
        study(tmp_path / "store", "heads", heads(seed=seed), name) for seed, name in ((0, "ioi"), (1, "induction"))
    )
    two = dataclasses.replace(two, config={**two.config, "model": {"id": "other"}})
    page(tmp_path, one, two)
    assert not list((tmp_path / "figures").glob("*conditions*"))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    rows, tables = groups()
    element = study(tmp_path / "store", "head_groups", rows, tables=tables)
    path = element.artifacts[0].path
    (path / "groups.parquet").write_text("no parquet")
    found = page(tmp_path / "a", element)
    assert "groups.parquet is damaged" in found.text and "strongest L0.H2+L3.H1" in found.text
    (path / "summary.parquet").unlink()
    assert "summary.parquet is missing" in (text := page(tmp_path / "b", element).text)
    assert "No study of interventions could be read." in text
    (path / "metrics.json").write_text("{}")
    page(tmp_path / "c", element)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("kind", ["heads", "features", "sites", "positions", "something new"])
def test_hostile_names_are_escaped(tmp_path: Path, kind: str) -> None:
    rows = [
        row(f"{HOSTILE}\x00$x^2$", -3.0, edit=HOSTILE, layer=0, item=0),
        row("ok", 1.0, edit=HOSTILE, layer=0, item=1),
    ]
    found = page(
        tmp_path, study(tmp_path / "store", kind, rows, agreement=[{"a": HOSTILE, "b": "x", "rho": None, "p": None}])
    )
    assert HOSTILE not in found.source and HOSTILE in found.text and found.tags.count("script") == 1
    assert len(found.ids) == len(set(found.ids))


def test_a_large_study_stays_small(tmp_path: Path) -> None:
    rows = heads(layers=34, width=32, edits=("zero", "mean", "resample", "counterfactual", "optimal"))
    element = study(tmp_path / "store", "heads", rows)
    found = page(tmp_path, element)
    assert len(found.source) < 5e6 and "Every head: ioi-tiny" in found.text
    assert (tmp_path / "figures" / "interventions-0.svg").stat().st_size < 2e6
    assert not [told for told in found.hover if told.startswith("L20.H3")], "cells of a large map are no targets"


def test_colours_are_centred_and_few_values_do_not_wash_out_the_rest() -> None:
    assert [shade(v, 2.0) for v in (-2.0, 0.0, 2.0, 9.0)] == [-24, 0, 24, 24]
    values = np.full((40, 40), 0.5)
    values[0, 0] = 100.0
    panel = Panel("", values, np.zeros(values.shape, dtype=bool), lambda i, j: "")
    assert limit([panel]) == (0.5, True)
    assert limit([dataclasses.replace(panel, values=values[1:])]) == (0.5, False)
    assert limit([dataclasses.replace(panel, values=np.full((1, 1), np.nan))]) == (1.0, False)


def test_words() -> None:
    assert shape("L0.H2+L0.H4+L3.H1") == "2 at L0, 1 at L3" and shape("L3.F1+F2") == ""
    assert [chance(v) for v in (None, 0.048, 0.000999, 2e-4)] == ["–", "0.048", "0.001", "2.0e-04"]
