"""The reproducibility checklist: true of a real sweep, and false of each thing that can be wanting."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import QUICK, ROOT, Cli, sharing
from test_report import Page

from circuits.run import checklist
from circuits.run.evidence import Evidence, Sweep
from circuits.state import State

Saved = dict[str, Any]


@pytest.fixture(scope="module")
def made(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, Path]:
    """A sweep of two small SAEs, and its directory."""
    cli = sharing(quick_store, tmp_path_factory.mktemp("checked"))
    words = [
        "task=sae",
        "layer=0,1",
        "sae.steps=4",
        "sae.heldout_sequences=16",
        QUICK,
        "tracking=off",
        "cluster.workers=0",
    ]
    done = cli(*words)
    assert done.code == 0, done.out + done.err
    (path,) = (cli.folder / "multirun").glob("*/*")
    return cli, path


@pytest.fixture
def saved(made: tuple[Cli, Path]) -> Saved:
    """What that sweep left, to be altered: its elements' files, and what is beside them."""
    path = made[1]
    elements = []
    for place in sorted(path.glob("0*")):
        status = json.loads((place / "status.json").read_text())
        manifests = {a["id"]: json.loads((Path(a["path"]) / "manifest.json").read_text()) for a in status["artifacts"]}
        for manifest in manifests.values():
            manifest["code"]["dirty"] = False  # whatever the checkout of whoever tests
        config = yaml.safe_load((place / "config.yaml").read_text())
        provenance = json.loads((place / "provenance.json").read_text())
        elements.append(
            {"state": "done", "config": config, "status": status, "provenance": provenance, "manifests": manifests}
        )
    locked = checklist.locked((ROOT / "requirements.lock").read_text())
    return copy.deepcopy({"elements": elements, "locked": locked, "scheduler": False, "scripts": 0})


def asked(saved: Saved) -> dict[str, checklist.Item]:
    """The items by name."""
    elements = [Evidence(f"{i:03d}", State(e["state"]), *(e[k] for k in ("config", "status", "provenance", "manifests")))
                for i, e in enumerate(saved["elements"])]  # fmt: skip
    found = checklist.items(Sweep(elements, saved["locked"], saved["scheduler"], saved["scripts"]))
    return {item.name: item for item in found}


def test_the_checklist_of_a_sweep_stands_beside_its_page_and_on_it(made: tuple[Cli, Path]) -> None:
    cli, path = made
    told = json.loads((path / "checklist.json").read_text())
    items = {item["name"]: item for item in told["items"]}
    assert told["sweep"] == path.name and told["passed"] + told["failed"] == sum(
        i["passed"] is not None for i in told["items"]
    )
    assert {name for name, item in items.items() if item["passed"] is False} <= {"code", "one_code"}, (
        "an edited checkout"
    )
    assert (
        items["model"]["reason"] == "the embedded model, trained from its seed" and items["seeds"]["reason"] == "seed 0"
    )
    assert "matmul highest (TF32 off)" in items["precision"]["reason"] and items["scheduler"]["passed"] is None
    assert "repeats bit by bit" in items["determinism"]["reason"] and "2 artifacts" in items["kept"]["reason"]
    page = Page(path / "report.html")
    assert "Reproducibility" in page.text and "Packages as locked" in page.text and "items hold" in page.text
    markdown = (path / "checklist.md").read_text()
    assert (
        markdown.startswith(f"# Reproducibility of {path.name}\n") and "- [x] **Seeds recorded**: seed 0\n" in markdown
    )
    elsewhere = cli("task=report", f"of={path.name}", "report.out=paper")
    assert elsewhere.code == 0 and json.loads((cli.folder / "paper" / "checklist.json").read_text()) == told


def test_all_of_it_holds_of_a_clean_sweep(saved: Saved) -> None:
    found = asked(saved)
    assert not [item for item in found.values() if item.passed is False]
    assert {name for name, item in found.items() if item.passed is None} == {"modules", "scheduler", "failures"}


def manifests(saved: Saved) -> list[Any]:
    """Those of all artifacts."""
    return [manifest for element in saved["elements"] for manifest in element["manifests"].values()]


def payload(saved: Saved, change: Callable[[Any], None]) -> None:
    """Alter what decided the first artifact."""
    manifest = manifests(saved)[0]
    given = json.loads(manifest["payload"])
    change(given)
    manifest["payload"] = json.dumps(given)


ILL: dict[str, tuple[Callable[[Saved], Any], str, str]] = {
    "uncommitted": (lambda s: manifests(s)[0]["code"].update(dirty=True), "code", "made with uncommitted changes: sae/"),
    "no git": (lambda s: manifests(s)[0]["code"].update(commit=None), "code", "no commit is known"),
    "edited": (lambda s: manifests(s)[1]["code"].update(hash="f" * 64), "one_code", "2 versions of the code"),
    "upgraded": (lambda s: manifests(s)[0]["environment"]["packages"].update(torch="1.0"), "packages", "torch 1.0 (locked: "),
    "unlocked": (lambda s: s.update(locked=None), "packages", "no requirements.lock"),
    "branch": (lambda s: payload(s, lambda p: p["config"]["model"].update(id="gpt2@main")), "model", "neither a commit"),
    "unseeded": (lambda s: s["elements"][1]["config"].update(seed=None), "seeds", "no seed in the config of: 001"),
    "unnamed": (lambda s: manifests(s)[0]["inputs"]["tiny"].update(content=None), "inputs", "tiny of sae/"),
    "loose data": (lambda s: payload(s, lambda p: p["config"]["data"].update(path="hub/name")), "data", "no content hash"),
    "no driver": (lambda s: manifests(s)[0]["environment"].update(gpu=[{"name": "A100", "memory_bytes": 8, "driver": None}]),
                  "hardware", "not all of name, memory and driver"),
    "no threads": (lambda s: manifests(s)[0]["environment"].update(threads=None), "determinism", "threads are not recorded"),
    "no script": (lambda s: s.update(scheduler=True), "scheduler", "the job script is not kept"),
    "no job": (lambda s: s.update(scheduler=True, scripts=1), "scheduler", "no job id is known of: 000, 001"),
    "no peak": (lambda s: s["elements"][0]["provenance"].update(peak_rss_bytes=0), "costs", "not of: 000"),
    "killed": (lambda s: s["elements"][0].update(state="killed"), "finished", "not finished: 000 (killed)"),
    "unexplained": (lambda s: s["elements"][0].update(state="failed"), "failures", "no reason is known of: 000"),
    "gate": (lambda s: s["elements"][1].update(state="gate"), "gates", "a gate said no: 001"),
    "forced": (lambda s: manifests(s)[0].update(tainted=["baseline: 0.2 < 0.6"]), "tainted", "made past a gate: sae/"),
    "deleted": (lambda s: s["elements"][0]["manifests"].update({"sae/gone": None}), "kept", "not in the store: sae/gone"),
    "unhashed": (lambda s: manifests(s)[0]["files"].update(x={"bytes": 1}), "kept", "files without a hash: sae/"),
}  # fmt: skip


@pytest.mark.parametrize("what", ILL)
def test_what_is_wanting_fails_its_item_and_says_whose(what: str, saved: Saved) -> None:
    change, name, reason = ILL[what]
    change(saved)
    item = asked(saved)[name]
    assert item.passed is False and reason in item.reason, item


def test_a_hub_model_is_pinned_by_its_commit_and_a_gpu_is_told(saved: Saved) -> None:
    payload(saved, lambda p: p["config"]["model"].update(id=f"Qwen/Qwen3-4B@{'a1' * 20}"))
    manifests(saved)[0]["environment"]["gpu"] = [{"name": "A100", "memory_bytes": 80e9, "driver": "550.1"}]
    manifests(saved)[0]["environment"]["modules"] = ["rhel8/default-amp", "cuda/12.1"]
    found = asked(saved)
    assert found["model"].passed and "Qwen/Qwen3-4B@a1a1" in found["model"].reason
    assert found["hardware"].passed and "A100, 80 GB, driver 550.1" in found["hardware"].reason
    assert "last bits" in found["determinism"].reason and found["modules"].passed


def test_a_sweep_that_made_nothing_has_none() -> None:
    failed = Evidence("000", State.failed, {"seed": 0}, {"error": "no"})
    assert checklist.items(Sweep([failed], {})) == []
