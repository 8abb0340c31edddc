"""Fixtures `real_model` (the directory of a language model) and `real_text` (a corpus of English).

A test that uses the model is marked ``weights``. Where the model cannot be had, such tests are left out and the summary says so;
with ``CIRCUITS_NEED_REAL`` set, that is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import real_model as model

NEEDED = "CIRCUITS_NEED_REAL"
ABSENT = "no real model here"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The directory of a real language model, SmolLM2-135M-Instruct: 30 layers × 576, llama."""
    try:
        return model.real_model()
    except model.Unavailable as e:
        if os.environ.get(NEEDED):
            pytest.fail(f"{ABSENT}, and {NEEDED} is set: {e}", pytrace=False)
        pytest.skip(f"{ABSENT}: {e} ({NEEDED}=1 makes this a failure)")


@pytest.fixture(scope="session")
def real_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON-lines file of real English: the manuals of installed libraries, one document a line, 300,000 tokens."""
    path = tmp_path_factory.mktemp("text") / "manuals.jsonl"
    model.write_text(path, most=500)
    return path


@pytest.hookimpl(tryfirst=True)  # before ``-m`` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the real model are those that ask for it: nobody has to remember the mark."""
    for item in items:
        if "real_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.weights)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were not run for want of the model."""
    reports = [r for r in terminalreporter.stats.get("skipped", []) if isinstance(r.longrepr, (tuple, list))]
    absent = [str(r.longrepr[2]) for r in reports if ABSENT in str(r.longrepr[2])]
    if absent:
        text = f"{len(absent)} tests on a real language model were NOT RUN: {absent[0].removeprefix('Skipped: ')}"
        terminalreporter.write_line(text, yellow=True, bold=True)
