"""What may be written at a place: the file system's free bytes, or what a quota leaves of them where a program tells."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUICK, Cli

from circuits import space

QUOTA = """Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
     /dev/sda1   {used}  {soft}  {hard}       0      12       0       0       0
"""
LUSTRE = "     /scratch   {used}  {soft}  {hard}       -   12   0   0   -\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write a program of a name that prints a text; the file of what it was asked."""
    told = tmp_path / "asked"

    def write(name: str, prints: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        (tmp_path / "says").write_text(prints)
        path.write_text(f'#!/bin/sh\necho "{name} $@" >> {told}\ncat {tmp_path}/says\nexit 1\n')
        path.chmod(0o755)
        return told

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    space._quota.cache_clear()
    yield write  # type: ignore[misc]
    space._quota.cache_clear()


@pytest.mark.parametrize(
    ("used", "soft", "hard", "left"),
    [
        ("1000", "5000", "6000", 4000),
        ("1000", "0", "6000", 5000),
        ("5500*", "5000", "6000", 0),
        ("1000", "0", "0", None),
    ],
)
@pytest.mark.parametrize("table", [QUOTA, LUSTRE])
def test_what_a_quota_leaves(table: str, used: str, soft: str, hard: str, left: int | None) -> None:
    assert space.left(table.format(used=used, soft=soft, hard=hard)) == (None if left is None else left * 1024)


@pytest.mark.parametrize(
    "text", ["", "Disk quotas for user ada (uid 1000): none\n", "quota: cannot\n", "x [no] limit at all"]
)
def test_no_answer_is_no_quota(text: str) -> None:
    assert space.left(text) is None


def test_each_file_system_is_asked_in_its_way(
    program: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, free = program("lfs", LUSTRE.format(used=10, soft=30, hard=0)), shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(space, "mounted", lambda path: ("/scratch", "lustre"))
    there = space.space(tmp_path / "not" / "there" / "yet")
    assert there.bytes == there.quota == 20 * 1024 and str(there).startswith("20.5 kB left of the quota (")
    assert asked.read_text().startswith("lfs quota -q -u ") and asked.read_text().rstrip().endswith(str(tmp_path))
    program("quota", QUOTA.format(used=10, soft=0, hard=0))
    monkeypatch.setattr(space, "mounted", lambda path: ("/home", "ext4"))
    there = space.space(tmp_path)
    assert there.quota is None and abs(there.bytes - free) < 1 << 30 and str(there).endswith(" free")
    assert "--filesystem=/home" in asked.read_text()


def test_a_run_that_a_quota_has_no_room_for_is_refused(program: Callable[[str, str], Path], warm: Cli) -> None:
    program("quota", QUOTA.format(used=10, soft=30, hard=0))
    path = f"{Path(os.environ['PATH'].split(':')[0])}:{os.environ['PATH']}"
    refused = warm("task=sae", "layer=1", QUICK, "tracking=off", PATH=path)
    (error,) = refused.errors
    assert refused.code == 2 and "are needed and there is 20.5 kB left of the quota" in error
    assert not warm.artifacts("sae")
