"""Where a result came from: the machine, the scheduler, the code - also when it was edited while an element waited."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from circuits.run import provenance

CREATE = """
import sys; sys.path.insert(0, sys.argv[1] + "/tests")
from pathlib import Path
from configs import plan
from circuits.launch import sweep
made = sweep.create(plan("task=sae", "layer=0,1", "reuse=readonly", "tracking=off", base=Path.cwd()), Path.cwd())
print(made.path)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code that may be edited."""
    place = tmp_path / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "configs.py", place / "tests")
    return place


def python(checkout: Path, *words: str) -> str:
    """What a python of that checkout prints."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=env, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout


def warnings(checkout: Path, sweep: Path, element: str) -> list[str]:
    """What an element says of the code; it ends soon: what it may only read does not exist."""
    shown = python(checkout, "-m", "circuits.launch.element", str(sweep / element))
    assert "reuse=readonly" in shown
    return [line.split("warning: ")[1] for line in shown.splitlines() if "warning: " in line]


def test_an_element_names_code_that_was_edited_since_it_was_launched_and_runs(checkout: Path) -> None:
    sweep = Path(python(checkout, "-c", CREATE, str(checkout)).strip())
    recorded = json.loads((sweep / "sweep.json").read_text())["code"]["hash"]
    assert warnings(checkout, sweep, "000-layer=0") == []
    edited = checkout / "circuits" / "sae" / "loop.py"
    edited.write_text(edited.read_text() + "\n# edited\n")
    os.utime(edited, (edited.stat().st_atime, (sweep / "sweep.json").stat().st_mtime + 5))
    (line,) = warnings(checkout, sweep, "001-layer=1")
    assert line.startswith(f"the code was edited since this element was launched ({recorded[:10]} → ")
    assert line.endswith(": circuits/sae/loop.py")
    facts = json.loads((sweep / "001-layer=1" / "provenance.json").read_text())
    assert facts["code"]["hash"] != recorded, "what ran is what is recorded"


def test_the_hash_follows_names_and_contents_and_nothing_else(checkout: Path) -> None:
    def found() -> str:
        return python(checkout, "-c", "from circuits.run import provenance; print(provenance.code_hash())").strip()

    assert found() == provenance.code_hash() == found()
    (checkout / "circuits" / "notes.txt").write_text("no code")
    os.utime(checkout / "circuits" / "files.py")
    assert found() == provenance.code_hash()
    (checkout / "circuits" / "new.py").write_text("")
    assert found() != provenance.code_hash()


def test_the_environment_names_machine_modules_scheduler_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7", "SLURM_RESTART_COUNT": "2"}
    for name, value in {**slurm, "SLURM_JWT": "secret", "LOADEDMODULES": "gcc/11:cuda/12.1"}.items():
        monkeypatch.setenv(name, value)
    facts = provenance.environment()
    assert facts["slurm"] == slurm, "and no secret"
    assert facts["modules"] == ["gcc/11", "cuda/12.1"] and facts["hostname"] == socket.gethostname()
    assert {"torch", "transformers", "numpy", "hydra-core"} <= set(facts["packages"])
    assert json.loads(json.dumps(facts)) == facts
    monkeypatch.setenv("LOADEDMODULES", "")
    assert provenance.environment()["modules"] == []
