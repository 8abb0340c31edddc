"""``cluster.stripe``: new activations on Lustre lie on several storage targets; elsewhere one note and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import QUICK, Cli

from circuits.run import stripes


@pytest.fixture
def lfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``lfs`` that writes down what it is asked; the file that it writes."""
    program, told = tmp_path / "bin" / "lfs", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\n[ ! -e {tmp_path}/full ] || {{ echo no room >&2; exit 28; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(stripes, "_said", set())
    return told


def test_a_directory_on_lustre_is_striped_and_what_hinders_is_said_once(lfs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert stripes.stripe(tmp_path, 8, said.append, lambda path: "lustre")
    assert lfs.read_text() == f"setstripe -c 8 {tmp_path}\n" and not said
    (tmp_path / "full").touch()
    assert not any(stripes.stripe(tmp_path, 8, said.append, lambda path: "lustre") for _ in range(3))
    assert said == ["note: cluster.stripe=8: no room; left as it is"]
    for kind in ("ext4", "nfs4"):
        assert not stripes.stripe(tmp_path, 8, said.append, {tmp_path: kind}.get)
    assert len(said) == 2 and "is not on Lustre (ext4)" in said[1] and len(lfs.read_text().splitlines()) == 4


def test_the_file_system_is_the_one_mounted_nearest(tmp_path: Path) -> None:
    inside = tmp_path / "a b" / "c"
    inside.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    place = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"sda / ext4 rw 0 0\n10.0.0.1@tcp:/x {place} lustre rw 0 0\nnone {tmp_path}/other tmpfs rw 0 0\n")
    assert stripes.file_system(inside, mounts) == stripes.file_system(inside / "new", mounts) == "lustre"
    assert stripes.file_system(tmp_path, mounts) == "ext4" and stripes.file_system(tmp_path, tmp_path / "none") is None


def test_new_activations_are_striped_where_they_grow_and_where_they_stay(
    lfs: Path, warm: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose file system is said to be Lustre."""
    from configs import plan

    from circuits.launch import element, sweep

    words = [
        "task=activations",
        "activations.source=data",
        "activations.n_sequences=8",
        "layer=1",
        QUICK,
        "tracking=off",
    ]
    (planned,) = plan(*words, "cluster.stripe=4", base=warm.folder)
    directory = sweep.create([planned], warm.folder).directory(planned)
    monkeypatch.setattr(stripes, "file_system", lambda path: "lustre")
    monkeypatch.setattr("circuits.run.signals.StopFlag.install", lambda self, **how: self)
    monkeypatch.setattr("circuits.run.signals.StopFlag.over", lambda self: None)
    assert element.main([str(directory)]) == 0, (directory / "run.log").read_text()
    asked = lfs.read_text().splitlines()
    assert len(asked) == 2 and asked[0].endswith(".partial") and asked[1].endswith(".tmp"), asked
    assert all(line.startswith(f"setstripe -c 4 {warm.outputs}/artifacts/activations/") for line in asked)
    monkeypatch.undo()
    other = warm("task=activations", "activations.source=data", "activations.n_sequences=9", "layer=1", QUICK, "tracking=off",
                 "cluster.stripe=4", "cluster.workers=0")  # fmt: skip
    assert other.code == 0 and other.out.count("is not on Lustre") == 1, other.out
    refused = warm("task=activations", "cluster.stripe=0")
    assert refused.code == 2 and "cluster.stripe=0: 1 or more storage targets, or -1 for all" in refused.err
    unread = warm("task=sae", "layer=1", "cluster.stripe=4")
    assert unread.code == 2 and "task=sae does not read it; task=activations" in unread.err, unread.err
