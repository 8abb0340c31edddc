"""What is left out where something is absent says so, and fails where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from conftest import ROOT


def left_out_loudly(
    folder: Path, plugin: str, needed: str, said: str, why: str, more: Mapping[str, str] | None = None
) -> None:
    """Run the two tests in `folder` with a plugin whose fixtures find nothing, without and with the variable `needed`."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", str(folder)]
    here = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    here |= {"PYTHONPATH": str(ROOT / "tests"), **(more or {})}
    for need, code, told in (("", 0, said), ("1", 1, "2 errors")):
        done = subprocess.run(
            words, cwd=folder, env={**here, needed: need}, capture_output=True, text=True, check=False
        )
        assert done.returncode == code and told in done.stdout, done.stdout + done.stderr
        assert why in done.stdout
