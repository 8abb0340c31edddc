"""A bundle opens anywhere and tells nothing of this machine: no secret, no path, no request to a network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import yaml
from conftest import ROOT, Cli
from safetensors.torch import load_file

from circuits.launch.keeping.public import Public

TOKEN = "it-is-a-token-of-no-known-form"


def test_a_study_is_taken_home(mine: Cli) -> None:
    done = mine("task=export", "export.format=bundle", "of=study", "export.path=home", "export.saes=[1]")
    assert done.code == 0, done.err
    home = mine.folder / "home"
    there = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert f", {len(there)} files → " in done.out
    first, second = (path.name for path in mine.artifacts("sae"))
    expected = {
        *("README.md", "report.html", "metrics.csv", "artifacts.json", "configs/000-layer=0.yaml"),
        *(f"metrics/sae/{first}.json", f"tables/sae/{first}/history.csv"),
        *(f"saes/{second}/sae_weights.safetensors", f"saes/{second}/README.md"),
    }
    assert there >= expected
    assert not any(first in name for name in there if name.startswith("saes/")), "only what was chosen"
    readme = (home / "README.md").read_text()
    for top in {name.partition("/")[0] for name in there} - {"README.md"}:
        assert f"`{top}" in readme, "what every file is"
    metrics = pd.read_csv(home / "metrics.csv")
    assert list(metrics["layer"]) == [0, 1] and metrics["explained_variance"].notna().all()
    assert "step" in pd.read_csv(home / f"tables/sae/{first}/history.csv")
    assert yaml.safe_load((home / "configs" / "000-layer=0.yaml").read_text())["sae"]["steps"] == 6
    assert {one["id"].partition("/")[2] for one in json.loads((home / "artifacts.json").read_text())} == {first, second}
    assert load_file(home / f"saes/{second}/sae_weights.safetensors")["W_dec"].shape[1] == 128
    page = (home / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page) and "is missing" not in page
    again = mine("task=export", "export.format=bundle", "of=study", "export.path=home")
    assert again.code == 2 and "not empty" in again.errors[0]


def test_what_cannot_be_bundled_is_told_in_one_line(mine: Cli) -> None:
    words = ["task=export", "export.format=bundle", "export.path=home"]
    assert mine(*words).errors == ["error: export.format=bundle: of which sweep? of=SWEEP; task=status lists them"]
    (error,) = mine(*words, "of=study", "export.saes=[7]").errors
    assert error.startswith("error: export.saes: 7: no SAE of study-") and "there are: sae/tiny-L0" in error
    (error,) = mine("task=export", "layer=0", "of=study", "export.path=home").errors
    assert error == "error: of=study: export.format=saelens does not read it; export.format=bundle, source_layout do"
    assert mine(*words, "of=rows", "sae.k=8").code == 2
    assert not (mine.folder / "home").exists() and not list(mine.folder.glob(".home*"))


def test_a_bundle_holds_no_secret_and_no_place_of_this_machine(mine: Cli) -> None:
    (model,) = mine.artifacts("tiny")
    secret = {"MY_API_KEY": TOKEN, "WANDB_API_KEY": "w" * 40}
    note = f"note=with {TOKEN} from {mine.folder}/my prompts/a.jsonl"
    words = ["task=prompts", "behaviour=ioi", f"model={model.resolve()}", "name=secret", note, "tracking=off"]
    ran = mine(*words, **secret)
    assert ran.code == 0, ran.err + ran.out
    done = mine("task=export", "export.format=bundle", "of=secret", "export.path=home", "export.saes=[]", **secret)
    assert done.code == 0, done.err
    home = mine.folder / "home"
    places = [str(mine.folder), str(ROOT), str(Path.home()), str(model.resolve()), str(model.resolve().parents[2])]
    read = {path: path.read_bytes().decode(errors="replace") for path in home.rglob("*") if path.is_file()}
    for word in (*secret.values(), *(place for place in places if place.count("/") > 1)):
        assert not [path.name for path, text in read.items() if word in text], word
    assert "***" in read[home / "README.md"] and "a.jsonl" in read[home / "README.md"]
    (table,) = home.glob("tables/prompts/*/tokens.csv")
    assert json.loads(pd.read_csv(table)["ids"][0]), "lists are whole"
    assert model.name in read[home / "report.html"], "by its last part"


def test_paths_are_shortened_in_texts_and_only_known_ones_in_pages() -> None:
    public = Public([Path("/data/me/outputs")], [{"path": "/data/me/my corpus/a.jsonl"}])
    texts = {
        "data.path=/x/y/z.jsonl": "data.path=z.jsonl",
        "/data/me/my corpus/a.jsonl": "a.jsonl",
        "from /data/me/my corpus/a.jsonl: 3 rows": "from a.jsonl: 3 rows",
        "https://host/a/b and 1/2 and and/or": "https://host/a/b and 1/2 and and/or",
        "/data/me/outputs/artifacts/sae/x": "x",
        "in /data/me/outputs/artifacts, 3": "in artifacts, 3",
    }
    assert {text: public.text(text) for text in texts} == texts
    page = "<td>/data/me/outputs/artifacts</td></p><a/b/c/d>/data/me/my corpus/a.jsonl</a>"
    assert public.page(page) == "<td>artifacts</td></p><a/b/c/d>a.jsonl</a>"
