"""The study that ``make demo`` runs, and the notebook that opens what it made."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT, Cli, sharing
from slurm.sweeps import sweep_dir

RUN = """
import json, sys
cells = json.load(open(sys.argv[1]))["cells"]
space = {}
for cell in cells:
    if cell["cell_type"] == "code":
        *before, last = "".join(cell["source"]).rstrip().split("\\n")
        exec("\\n".join(before), space)
        print(eval(last, space) if "=" not in last.split("(")[0] else exec(last, space))
space["figure"].savefig("figure.png")
"""


def test_the_quick_study_runs_and_a_notebook_opens_what_it_made(
    trained: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cli = sharing(trained.outputs / "artifacts", tmp_path_factory.mktemp("notebook"))
    done = cli("task=pipeline", "pipeline=quickstart", "tracking=off", timeout=900)
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(cli)
    assert sweep.name.startswith("quickstart-") and "report.html" in done.out
    page = (sweep / "report.html").read_text()
    for asked in ("explained variance", "logit difference", "faithfulness"):
        assert asked in page.lower()
    notebook = ROOT / "docs" / "notebook.ipynb"
    assert not any(cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"]), "kept without outputs"
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(notebook)], cwd=cli.folder, capture_output=True, text=True, check=False,
        env=cli.environment(PYTHONPATH=str(ROOT), MPLBACKEND="Agg"),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (
        "logit difference" in ran.stdout
        and "Judged(f = " in ran.stdout
        and (cli.folder / "figure.png").stat().st_size > 5000
    )
