"""The study that ``make demo`` runs, and the notebook that opens what it made."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, Cli, sharing
from slurm.sweeps import sweep_dir

#: Smaller than the study's own, and asked for as such when the notebook opens what was made.
SMALL = {"sae.steps": 60, "sae.heldout_sequences": 64, "sae.block_rows": 4096,
         "interpret.n_sequences": 256, "interpret.max_features": 99}  # fmt: skip

RUN = """
import json, sys
import circuits
small, original = json.loads(sys.argv[2]), circuits.open
circuits.open = lambda what, **given: original(what, **{**given, **(small if what == "interpret" else {})})
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
    done = cli(
        "task=pipeline", "pipeline=quickstart", *(f"{key}={n}" for key, n in SMALL.items()), "tracking=off", timeout=900
    )
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(cli)
    assert sweep.name.startswith("quickstart-") and "report.html" in done.out
    page = (sweep / "report.html").read_text()
    for asked in ("explained variance", "logit difference", "faithfulness"):
        assert asked in page.lower()
    notebook = ROOT / "docs" / "notebook.ipynb"
    assert not any(cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"]), "kept without outputs"
    asked = json.dumps({key.replace(".", "__"): n for key, n in SMALL.items()})
    ran = cli.python("-c", RUN, str(notebook), asked, MPLBACKEND="Agg")
    assert ran.code == 0, ran.err
    assert (
        "logit difference" in ran.out and "Judged(f = " in ran.out and (cli.folder / "figure.png").stat().st_size > 5000
    )
