"""Checkpoints: whole or refused, newest first, bounded in number."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuits import files
from circuits.data import tensorfile
from circuits.errors import Damaged, DiskFull
from circuits.sae import checkpoint


def tensors(step: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(step)
    return {"w": torch.randn(40, 30, generator=g), "n": torch.tensor(step), "rng": g.get_state()}


def write(directory: Path, step: int) -> Path:
    path = checkpoint.path_for(directory, step)
    checkpoint.save(path, tensors(step), {"step": step, "position": {"block": 3, "offset": [1, 2]}, "name": "é"})
    return path


def test_round_trip(tmp_path: Path) -> None:
    found, meta = checkpoint.load(write(tmp_path / "new", 7))
    assert meta == {"step": 7, "position": {"block": 3, "offset": [1, 2]}, "name": "é"}
    expected = tensors(7)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], t) and found[key].dtype == t.dtype for key, t in expected.items())


def test_every_truncation_and_every_flipped_region_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(Damaged, match=path.name):
            checkpoint.load(path)
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found, meta = checkpoint.load(path)
        except Damaged as e:
            assert path.name in str(e)
        else:
            assert meta["step"] == 1 and all(torch.equal(found[key], t) for key, t in tensors(1).items())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "step-1.safetensors")
    with pytest.raises(Damaged, match="lacks meta or digest"):
        checkpoint.load(tmp_path / "step-1.safetensors")
    (tmp_path / "step-2.safetensors").write_text("hello")
    with pytest.raises(Damaged, match="step-2"):
        checkpoint.load(tmp_path / "step-2.safetensors")


def test_latest_goes_back_to_the_newest_whole_one(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    for step in (5, 900, 1000):
        write(tmp_path, step)
    newest = checkpoint.path_for(tmp_path, 1000)
    newest.write_bytes(newest.read_bytes()[:-10])
    told: list[tuple[Path, str]] = []
    found = checkpoint.latest(tmp_path, lambda path, why: told.append((path, why)))
    assert found is not None and found.meta["step"] == 900 and found.path == checkpoint.path_for(tmp_path, 900)
    assert [path.name for path, _ in told] == ["step-000001000.safetensors.damaged"] and "truncated" in told[0][1]
    assert told[0][0].exists() and not newest.exists()


def test_prune_keeps_the_newest_and_clears_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        write(tmp_path, step)
    leftover = tmp_path / ".step-000000012.safetensors.0a1b2c3d.tmp"
    leftover.write_bytes(b"half")
    checkpoint.prune(tmp_path, 2)
    newest = [checkpoint.path_for(tmp_path, s).name for s in (10, 11)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [leftover.name, *newest], "another process may be writing it"
    os.utime(leftover, (time.time() - 2 * checkpoint.LEFT_S,) * 2)
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == newest
    checkpoint.prune(tmp_path, 5)
    assert len(checkpoint.paths(tmp_path)) == 2


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 1)
    before = path.read_bytes()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "fsync_file", full)
    with pytest.raises(DiskFull, match="no space left"):
        checkpoint.save(path, tensors(2), {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["the unfinished file", "the directory"])
def test_what_another_process_clears_while_it_is_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    written, cleared = files.fsync_file, []

    def late(path: Path) -> None:
        if not cleared:
            cleared.append(path)
            path.unlink() if what == "the unfinished file" else shutil.rmtree(path.parent)
        written(path)

    monkeypatch.setattr(files, "fsync_file", late)
    path = write(tmp_path / "a.partial", 1)
    assert checkpoint.load(path)[1]["step"] == 1 and cleared and list(path.parent.iterdir()) == [path]


def test_a_checkpoint_that_another_process_has_pruned_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    listed = checkpoint.paths(tmp_path)
    monkeypatch.setattr(checkpoint, "paths", lambda _: listed)
    listed[1].unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.meta["step"] == 1


def test_a_file_is_put_nowhere_where_its_directory_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_atomic(tmp_path / "gone" / "x", b"")
    tensorfile.save(tmp_path / "made" / "x.safetensors", tensors(1), {})
    with pytest.raises(FileNotFoundError):
        tensorfile.load(tmp_path / "made" / "y.safetensors")
