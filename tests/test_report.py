"""The report: one page that stands alone, says what failed, what is missing and where every number came from."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from circuits.errors import UserError
from circuits.report import ArtifactRef, Element, ReportInput, build
from circuits.report.content import Note, Part
from circuits.report.page import STATE_WORDS
from circuits.report.registry import _SECTIONS, View, section, sections
from circuits.report.words import plus_minus
from circuits.state import State

ARABIC = "ملاحظة: العاصمة <b>الرياض</b>"
HOSTILE = "<script>alert('x')</script>"


def write_sae(root: Path, layer: int, k: int, *, history: int = 60, seed: int = 0) -> ArtifactRef:
    """An artifact directory with the files that `task=sae` leaves, numbers like those of a small model."""
    rng = np.random.default_rng([seed, layer, k])
    key = rng.bytes(6).hex()
    label = f"sae/tiny-L{layer}-topk-{key}"
    path = root / label
    path.mkdir(parents=True)
    ev = 0.97 - 0.03 * (layer % 8) - 1.6 / k + rng.normal(0, 0.004)
    ce = min(0.999, ev + 0.03)
    edges = np.linspace(-5, 0, 51)
    rates = rng.normal(np.log10(k / 512) - 0.4, 0.55, 480)
    never = int(rng.integers(0, 12))
    metrics = {
        "explained_variance": ev,
        "explained_variance_ci": [ev - 0.004 - 0.05 / k, ev + 0.004 + 0.04 / k],
        "mse": 0.31 * (1 - ev),
        "l0": k - 0.3,
        "l0_ci": [k - 0.5, k],
        "dead_fraction": never / 512 + 0.01 * layer,
        "density": {
            "edges": edges.tolist(),
            "counts": np.histogram(np.clip(rates, -5, 0), edges)[0].tolist(),
            "never": never,
        },
        "n_rows": 16384,
        "n_sequences": 1024,
        "ce_clean": 1.231,
        "ce_spliced": 1.231 + 4 * (1 - ce),
        "ce_zero": 5.231,
        "ce_score": ce,
        "ce_score_ci": [ce - 0.006, min(1.0, ce + 0.006)],
        "kl": 0.04 * (1 - ce),
        "control": {"explained_variance": 0.12 + 0.02 * layer + 0.001 * k},
        "passes": 0.0,
        "steps": 1000,
        "d_in": 128,
        "d_sae": 512,
        "architecture": "topk",
        "site": "resid_post",
        "layer": layer,
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    step = np.linspace(0, 1000, history).round()
    rise = 1 - np.exp(-step / 150)
    noise = rng.normal(0, 0.004, history)
    pd.DataFrame(
        {
            "step": step,
            "loss": 0.31 * (1 - ev * rise) + 0.002 + np.abs(noise),
            "mse": 0.31 * (1 - ev * rise),
            "explained_variance": (ev + 0.6) * rise - 0.6 + noise,
            "l0": np.full(history, float(k)),
            "dead_fraction": np.zeros(history),
            "lr": np.full(history, 1e-3),
            "rows_per_s": np.full(history, 9e4),
        }
    ).to_parquet(path / "history.parquet")
    manifest = {
        "key": key,
        "kind": "sae",
        "version": 1,
        "inputs": {"model": {"key": "tiny-4c2d", "sha": "8f" * 8}},
        "created": "2026-11-20T11:02:03Z",
        "code": {"commit": "0123456789abcdef", "dirty": layer == 1},
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "threads": 1 + layer % 2},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "cfg.json").write_text("{}")
    return ArtifactRef("sae", key, path, layer, label)


def sweep(root: Path, layers: int = 4, ks: tuple[int, ...] = (16, 64), **kwargs: Any) -> ReportInput:
    """A sweep over layers and k, with one element that failed."""
    elements = []
    for index, (layer, k) in enumerate((layer, k) for layer in range(layers) for k in ks):
        name = f"{index:03d}-layer={layer},sae.k={k}"
        failed = layer == 2 and k == ks[-1]
        config = {"task": "sae", "note": ARABIC, "model": {"id": "tiny"}, "layer": layer, "sae": {"k": k, "lr": 0.001}}
        elements.append(
            Element(
                index=index,
                name=name,
                overrides=[f"layer={layer}", f"sae.k={k}"],
                swept={"layer": str(layer), "sae.k": str(k)},
                state=State.failed if failed else State.cached if layer == 0 else State.done,
                error=f"non-finite activation at layer 2, sample {HOSTILE}\nTraceback: …" if failed else None,
                log=f"multirun/2026-11-20/sae-3f2a/{name}/run.log",
                wall_s=41.3 + index,
                artifacts=[] if failed else [write_sae(root, layer, k, **kwargs)],
                config=config,
                status={"state": "done", "peak_rss_bytes": 812_000_000 + index},
                provenance={"code": {"commit": "0123456789abcdef"}, "host": "node-1", "pid": 1000 + index},
            )
        )
    return ReportInput(
        title="sae-3f2a",
        question="How much of resid_post of the tiny model do TopK SAEs explain, by layer and by k?",
        sweep_id="sae-3f2a",
        command="python launch.py task=sae 'layer=range(0,4)' sae.k=16,64 -m",
        again="python launch.py task=report of=sae-3f2a",
        elements=elements,
        created="2026-11-20 11:05",
    )


class Page(HTMLParser):
    """What the tests ask of a page: its ids, references, visible text and the texts shown on hover."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.directions: list[tuple[str | None, str]] = []
        self.hover: list[str] = []
        self.downloads: dict[str, str] = {}
        self._text: list[str] = []
        self._within: list[tuple[str, str | None]] = []
        self.feed(self.source)

    @property
    def text(self) -> str:
        """Everything a reader can see, white space collapsed."""
        return " ".join("".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self._within.append((tag, values.get("dir")))
        if name := values.get("id"):
            self.ids.append(name)
        for key in ("href", "src", "action", "data", "xlink:href", "srcset", "poster"):
            if (value := values.get(key)) is not None:
                self.references.append(value)
        self.references += [
            f"#{name}" for value in values.values() for name in re.findall(r"url\(#([^)]+)\)", value or "")
        ]
        if download := values.get("download"):
            self.downloads[download] = unquote((values["href"] or "").partition(",")[2])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._within.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop()[0] != tag:
            pass
        if tag in ("td", "th", "li", "p", "pre", "summary", "h1", "h2", "h3", "figcaption"):
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._within]
        if "style" in inside or "script" in inside:
            return
        if inside and inside[-1] == "title" and "svg" in inside:
            self.hover.append(data)
            return
        if data.strip():
            self.directions.append((self._within[-1][1] if self._within else None, data))
        self._text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportInput, Path, Page]:
    """The page of a sweep of 4 layers and 2 values, of which one element failed."""
    root = tmp_path_factory.mktemp("sweep")
    report = sweep(root / "store")
    path = build(report, root / "out")
    return report, path, Page(path)


def test_page_stands_alone(made: tuple[ReportInput, Path, Page]) -> None:
    _, path, page = made
    assert path.name == "report.html"
    assert {ref[:5] if ref.startswith("data:") else ref[:1] for ref in page.references} == {"data:", "#"}
    assert page.source.count("default-src 'none'") == 1
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in page.source and "@font-face" not in page.source


def test_ids_are_unique_and_references_arrive(made: tuple[ReportInput, Path, Page]) -> None:
    _, _, page = made
    assert len(page.ids) == len(set(page.ids))
    assert {ref[1:] for ref in page.references if ref.startswith("#")} <= set(page.ids)


def test_model_text_is_escaped_and_takes_its_own_direction(made: tuple[ReportInput, Path, Page]) -> None:
    _, _, page = made
    assert page.tags.count("script") == 1  # ours
    assert HOSTILE in page.text and HOSTILE not in page.source
    assert ("auto", ARABIC) in page.directions


def test_first_screen_answers_in_order(made: tuple[ReportInput, Path, Page]) -> None:
    report, _, page = made
    says = [
        report.question,
        "5 done, 2 cached, 1 failed",
        "Explained variance 0.",
        "Explained variance by layer",
        "artifact 0 16",
        "What failed",
        "Sparse autoencoders",
        "Provenance",
        report.again,
    ]
    places: list[int] = []
    for words in says:
        places.append(page.text.index(words, places[-1] if places else 0))
    assert places == sorted(places)


def test_failed_element_names_error_and_log(made: tuple[ReportInput, Path, Page]) -> None:
    report, _, page = made
    (failed,) = [e for e in report.elements if e.state == "failed"]
    assert f"{failed.index} · layer=2, sae.k=64 failed" in page.text
    assert f"log {failed.log}" in page.text
    assert "Traceback" not in page.text


def test_every_figure_is_three_files_and_its_data_is_in_the_page(made: tuple[ReportInput, Path, Page]) -> None:
    _, path, page = made
    files = sorted((path.parent / "figures").iterdir())
    names = {file.stem for file in files}
    assert {file.name for file in files} == {f"{name}.{kind}" for name in names for kind in ("svg", "png", "csv")}
    assert names == {
        "sae-explained-variance",
        "sae-frontier",
        "sae-ce-score",
        "sae-dead-fraction",
        "sae-density",
        "sae-train-explained-variance",
        "sae-train-loss",
    }
    assert page.downloads == {f.name: f.read_text(encoding="utf-8") for f in files if f.suffix == ".csv"}
    assert page.source.count('role="img" aria-label="') == len(names)


def test_data_of_a_figure_equals_what_was_measured(made: tuple[ReportInput, Path, Page]) -> None:
    report, path, _ = made
    table = pd.read_csv(path.parent / "figures" / "sae-explained-variance.csv").set_index("artifact")
    rows = table.to_dict("index")
    refs = {ref.label: ref for element in report.elements for ref in element.artifacts}
    assert set(table.index) == set(refs)
    for label, ref in refs.items():
        metrics = json.loads((ref.path / "metrics.json").read_text())
        row = rows[label]
        measured = [metrics["explained_variance"], *metrics["explained_variance_ci"]]
        columns = ["explained_variance", "explained_variance_ci_low", "explained_variance_ci_high"]
        assert [row[column] for column in columns] == pytest.approx(measured, rel=1e-5)
        assert row["explained_variance_untrained"] == pytest.approx(metrics["control"]["explained_variance"], rel=1e-5)
        assert row["layer"] == metrics["layer"] and row["n_rows"] == metrics["n_rows"]
    training = pd.read_csv(path.parent / "figures" / "sae-train-loss.csv")
    some = next(iter(refs.values()))
    history = pd.read_parquet(some.path / "history.parquet")
    assert training.loc[training["artifact"] == some.label, "loss"].tolist() == pytest.approx(
        history["loss"].tolist(), rel=1e-5
    )


def test_claims_carry_n_interval_control_and_artifact(made: tuple[ReportInput, Path, Page]) -> None:
    report, _, page = made
    text = page.text.replace("\u00a0", " ")
    assert "n = 16,384 held-out rows from 1,024 sequences" in text
    assert "Control: the same SAE before training, on the same rows, 0.136–0.244." in text
    for element in report.elements:
        for ref in element.artifacts:
            metrics = json.loads((ref.path / "metrics.json").read_text())
            ev, interval = metrics["explained_variance"], metrics["explained_variance_ci"]
            assert f"{plus_minus(ev, interval)}" in text
            exact = f"explained variance {ev:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]\n{ref.label}"
            assert f"layer {ref.layer}, {element.series}: {exact}" in page.hover
            assert ref.key in text


def test_a_series_keeps_its_colour_in_every_figure(made: tuple[ReportInput, Path, Page]) -> None:
    _, _, page = made
    figures = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    for svg in figures:
        used = set(re.findall(r"var\(--s(\d)", svg))
        assert used == {"0", "1"}
        assert not re.findall(r"(?:fill|stroke):#", svg)  # every colour follows the page's scheme


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=2)
    before = dict(mpl.rcParams)
    first, second = build(report, tmp_path / "a"), build(report, tmp_path / "b")
    assert dict(mpl.rcParams) == before
    assert first.read_bytes() == second.read_bytes()
    for file in (tmp_path / "a" / "figures").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "figures" / file.name).read_bytes(), file.name


def _damage(ref: ArtifactRef, how: str) -> str:
    """Harm one artifact; returns what the page has to say about it."""
    metrics, history, manifest = (ref.path / name for name in ("metrics.json", "history.parquet", "manifest.json"))
    values = json.loads(metrics.read_text())
    if how == "no metrics":
        metrics.unlink()
        return "metrics.json is missing"
    if how == "truncated metrics":
        metrics.write_text(metrics.read_text()[:300])
        return "metrics.json is damaged (line 1"
    if how == "not UTF-8":
        metrics.write_bytes(b"\xff\xfe{}")
        return "metrics.json cannot be read ("
    if how == "a list":
        metrics.write_text("[]")
        return "metrics.json is damaged (a JSON object is wanted, found list)"
    if how == "bad values":
        del values["kl"]
        values |= {
            "l0": "many",
            "ce_score": float("nan"),
            "ce_score_ci": [1],
            "density": {"edges": [0]},
            "control": {"explained_variance": "x"},
        }
        metrics.write_text(json.dumps(values))
        return "metrics.json: lacks kl; l0 is 'many', not a finite number; ce_score is nan, not a finite number; ce_score_ci is [1]"
    if how == "garbage history":
        history.write_bytes(b"PAR1 not a table")
        return "history.parquet is damaged ("
    if how == "no loss":
        pd.read_parquet(history).drop(columns="loss").to_parquet(history)
        return "history.parquet lacks loss"
    manifest.unlink()
    return "manifest.json is missing"


HARMS = (
    "no metrics",
    "truncated metrics",
    "not UTF-8",
    "a list",
    "bad values",
    "garbage history",
    "no loss",
    "no manifest",
)


def test_missing_and_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=5)
    refs = [ref for element in report.elements for ref in element.artifacts]
    said = {ref.label: _damage(ref, how) for ref, how in zip(refs, HARMS, strict=False)}
    page = Page(build(report, tmp_path))
    for label, words in said.items():
        assert f"{label}: {words}" in page.text
    table = pd.read_csv(io.StringIO(page.downloads["sae-explained-variance.csv"]))
    assert set(table["artifact"]) == {ref.label for ref in refs[4:]}
    assert "Not drawn, because the value is missing: " + ", ".join(ref.label for ref in refs[:4]) in page.text


def test_nothing_readable_still_makes_a_page(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1)
    for element in report.elements:
        for ref in element.artifacts:
            for file in ref.path.iterdir():
                file.unlink()
    page = Page(build(report, tmp_path))
    assert "2 SAEs made, but no explained variance could be read." in page.text
    assert not page.downloads


@pytest.mark.parametrize("elements", ["none", "failed", "waiting"])
def test_empty_report_makes_a_page(tmp_path: Path, elements: Any) -> None:
    report = sweep(tmp_path / "store", layers=1)
    kept = (
        []
        if elements == "none"
        else [dataclasses.replace(e, state=State(elements), artifacts=[]) for e in report.elements]
    )
    page = Page(build(dataclasses.replace(report, elements=kept), tmp_path))
    assert "Nothing has finished yet, so there is nothing to draw." in page.text
    expected = {
        "none": "There is no element.",
        "failed": "no reason was recorded",
        "waiting": "No element has failed so far.",
    }
    assert expected[elements] in page.text


def test_an_artifact_of_two_elements_is_shown_once(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1)
    first = report.elements[0]
    twin = dataclasses.replace(first, index=9, swept={"layer": "0", "sae.k": "16", "name": "x"})
    page = Page(build(dataclasses.replace(report, elements=[*report.elements, twin]), tmp_path))
    assert "1 artifact asked for by more than one element is shown once." in page.text


def test_a_gate_has_measured_and_is_still_named(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1)
    gated = dataclasses.replace(report.elements[0], state=State.gate, error="explained variance 0.62 < sae.min_r2=0.7")
    page = Page(build(dataclasses.replace(report, elements=[gated, report.elements[1]]), tmp_path))
    assert "stopped at a gate explained variance 0.62 < sae.min_r2=0.7" in page.text
    assert "The same command again" not in page.text, "it would say no again"
    assert gated.artifacts[0].label in page.downloads["sae-explained-variance.csv"]


@pytest.mark.parametrize("states", [[state, State.done] for state in State] + [list(State), [*State, State.pending]])
def test_the_counts_of_the_first_screen_add_up_to_all_elements(states: list[State], tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1)
    elements = [
        dataclasses.replace(report.elements[0], index=i, state=state, artifacts=[]) for i, state in enumerate(states)
    ]
    made = build(dataclasses.replace(report, elements=elements), tmp_path)
    page, told = Page(made), re.findall(r'<span class="state \w+">(\d+) [a-z]', made.read_text())
    assert sum(map(int, told)) == len(states), told
    named = [state for state in states if state.live or state.badly or state is State.gate]
    assert all((STATE_WORDS.get(state) or state) in page.text for state in named)


def test_two_sections_of_one_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"two sections of sae: in circuits\.report\.sections\.sae and test_report"):
        sections()
        section("sae", order=1)(lambda view: Part("", "", ()))


def test_kinds_register_their_section_and_others_are_listed(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1)
    extra = [ArtifactRef(kind, f"{kind}-key", tmp_path, None, f"{kind}/x") for kind in ("probe", "unheard-of")]
    first = dataclasses.replace(report.elements[0], artifacts=[*report.elements[0].artifacts, *extra])
    assert sections()["sae"].order == 40
    try:

        @section("probe", order=10)
        def probe(view: View) -> Part:
            return Part("Probes", f"{len(view.entries)} seen", (Note("as registered"),))

        page = Page(build(dataclasses.replace(report, elements=[first, *report.elements[1:]]), tmp_path))
    finally:
        _SECTIONS.pop("probe", None)
    order = [
        page.text.index(title) for title in ("Probes 1 seen as registered", "Sparse autoencoders", "Artifacts of kind")
    ]
    assert order == sorted(order)
    assert "unheard-of-key" in page.text


@pytest.mark.soak
def test_largest_sweep_is_legible_and_small_enough(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=34, ks=(8, 16, 32, 64, 128), history=150)
    path = build(report, tmp_path)
    page = Page(path)
    assert path.stat().st_size < 10_000_000
    assert "Figure 2 of 2, at most 18 layers each, on the same axes." in page.text
    assert "120 evenly spaced steps of each history" in page.text
    density = [pd.read_csv(io.StringIO(page.downloads[name])) for name in ("sae-density.csv", "sae-density-2.csv")]
    assert set(pd.concat(density)["layer"]) == set(range(34))
    assert set(pd.concat(density)["artifact"]) == {r.label for e in report.elements for r in e.artifacts}
    assert len(page.ids) == len(set(page.ids))


def test_page_shows_configuration_once_and_differences_in_a_table(made: tuple[ReportInput, Path, Page]) -> None:
    _, _, page = made
    assert "Resolved configuration, the same for all 8" in page.text and "sae.lr=0.001" in page.text
    assert page.text.count("sae.lr=0.001") == 1
    assert "Resolved configuration: what differs" in page.text
    assert "0123456789ab (with uncommitted changes)" in page.text
