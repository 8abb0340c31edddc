"""``task=status status.history=true``: the lab notebook of all runs, for people, spreadsheets and pages."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from conftest import QUICK, Cli, sharing

NOTE = 'with | a "pipe", *stars*, <b>, a_b, =1+1 and MY_API_KEY=it-is-no-known-form-42'
OFF = ["tracking=off", "cluster.workers=0"]


@pytest.fixture(scope="module")
def lab(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder with a sweep of SAEs, one whose answer was there, a sweep of prompts and a failure."""
    cli = sharing(quick_store, tmp_path_factory.mktemp("lab"))
    sae = [
        "task=sae",
        "layer=0,1,2",
        "sae.k=8",
        "sae.steps=4",
        "sae.heldout_sequences=16",
        "sae.block_rows=1024",
        QUICK,
        *OFF,
    ]
    assert cli(*sae).code == 0
    assert cli(*sae[:1], "layer=1", *sae[2:], f"note='{NOTE}'").code == 0
    assert cli("task=prompts", "behaviour=ioi,facts", "behaviour.n_samples=20", "behaviour.n_test=6", *OFF).code == 0
    gone = cli(
        "task=sae", "layer=1", "sae.k=8", "sae.steps=5", "sae.lr=1e38", "sae.clip=1e30", "sae.warmup=0", QUICK, *OFF
    )
    assert gone.code == 1, gone.out
    return cli


def test_every_run_is_a_line_with_what_came_of_it(lab: Cli) -> None:
    done = lab("task=status", "status.history=true")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert re.match(r"started +id +task +model", done.out) and text.count("sae-") == 3
    assert "layer=0-2" in text and "3 done" in text and "1 cached" in text and "1 failed" in text
    assert re.search(r"explained variance -?\d\.\d{3} to -?\d\.\d{3} \(n = 3\)", text), text
    assert re.search(r"explained variance -?\d\.\d{3} ± ", text) and "behaviour=ioi,facts" in text
    assert "MY_API_KEY=***" in text and "no-known-form" not in text


def test_csv_is_read_back_as_it_was(lab: Cli) -> None:
    done = lab("task=status", "status.history=true", "status.format=csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and [row["task"] for row in rows] == ["sae", "sae", "prompts", "sae"], "the oldest first"
    assert rows[1]["note"] == NOTE.replace("it-is-no-known-form-42", "***") and rows[0]["note"] == ""
    assert rows[2]["behaviour"] == "ioi, facts" and rows[0]["behaviour"] == "" and rows[0]["model"] == "tiny"
    assert rows[0]["swept"] == "layer=0-2" and float(rows[0]["wall_s"]) >= 0 and rows[1]["wall_s"] == ""
    assert re.fullmatch(r"[0-9a-f]{10}\+?", rows[0]["commit"]) and Path(rows[0]["directory"]).is_dir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+\d\d:\d\d", rows[0]["started"])


def test_markdown_is_a_table_that_its_cells_cannot_break(lab: Cli) -> None:
    done = lab("task=status", "status.history=true", "status.format=markdown")
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) == 6 and lines[1] == "|" + " --- |" * 11
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}
    assert r"with \| a" in done.out and r"\*stars\*" in done.out and r"\<b\>" in done.out and "a_b" in done.out


def test_what_the_history_does_not_read_is_refused(lab: Cli) -> None:
    for words, said in (
        (["of=sae-0000", "status.history=true"], "of=sae-0000 does not read it"),
        (["status.format=csv"], "status.history=false does not read it; status.history=true does"),
        (["status.history=true", "status.watch=true"], "status.history=true does not read it"),
        (["status.history=true", "status.format=html"], "choices"),
    ):
        done = lab("task=status", *words)
        assert done.code == 2 and said in done.err, done.err


def test_an_empty_notebook(cli: Cli) -> None:
    assert "no runs yet" in cli("task=status", "status.history=true").out
    assert cli("task=status", "status.history=true", "status.format=csv").out.startswith("started,id,task")
