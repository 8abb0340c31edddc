"""Cleaning: shows first, deletes what a policy lets go, and never what is in use, linked, or stood on."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import Cli
from kept import ROWS, STUDY, alive, files, rewrite, sweep_of

from circuits.errors import UserError
from circuits.launch.keeping import policy
from circuits.store.leases import Lease

CLEAN = ["task=clean", "confirm=true"]


def partial(cli: Cli) -> Path:
    """Unfinished work of nobody alive."""
    path = cli.outputs / "artifacts" / "sae" / "tiny-L3-topk-0123456789ab.partial"
    path.mkdir()
    (path / "half").write_bytes(b"x" * 1000)
    return path


def test_nothing_goes_without_confirm_and_then_what_is_regenerable(mine: Cli) -> None:
    left = partial(mine)
    before = files(mine.folder)
    (rows,) = mine.artifacts("activations")
    shown = mine("task=clean")
    assert shown.code == 0 and files(mine.folder) == before, shown.err
    assert f"activations/{rows.name}" in shown.out and "the same with confirm=true deletes 2, " in shown.out
    assert "made again by: python launch.py task=activations" in shown.out
    assert "tiny-L3-topk-0123456789ab.partial  1.0 kB  unfinished work" in shown.out
    done = mine(*CLEAN)
    assert done.code == 0 and "deleted 2, " in done.out, done.err + done.out
    gone = {name for name in before if name not in files(mine.folder)}
    assert gone == {name for name in before if rows.name in name or left.name in name}
    assert not list(mine.outputs.rglob("*.lease")) and not list(mine.outputs.rglob("*.old"))
    assert "nothing to delete" in mine(*CLEAN).out
    assert "2 cached" in mine(*STUDY).out
    assert mine(*ROWS).code == 0 and mine.artifacts("activations") == [rows], "its command makes it again"


def test_what_is_kept_goes_only_into_an_archive_that_holds_it(mine: Cli) -> None:
    for kind in ("sae", "runs", "interpret"):
        (error,) = mine(*CLEAN, f"clean.kinds=[{kind}]").errors
        assert error == (
            f"error: clean.kinds: {kind}: kept; clean.archived=true clean.archive=FILE deletes of it what stands in that archive"
        )
    (error,) = mine(*CLEAN, "clean.archived=true").errors
    assert error.endswith("in which archive? clean.archive=FILE")
    assert mine("task=archive", "of=study", "archive.path=x.tar").code == 0
    words = [*CLEAN, "clean.archived=true", "clean.archive=x.tar"]
    broken = bytearray((mine.folder / "x.tar").read_bytes())
    broken[5000] ^= 1
    (mine.folder / "broken.tar").write_bytes(broken)
    refused = mine(*words[:-1], "clean.archive=broken.tar")
    assert refused.code == 2 and len(refused.errors) == 1 and len(mine.artifacts("sae")) == 2
    first, second = mine.artifacts("sae")
    done = mine(*words)
    assert done.code == 0 and mine.artifacts("sae") == [first], done.err + done.out
    assert "stands on it" in done.out and "1 not in the archive" in done.out, "features of the first; the activations"
    (sweep_of(mine) / "001-layer=1" / "run.log").write_text("another")
    kept = mine(*words, "clean.kinds=[runs]")
    assert kept.code == 0 and "run.log is not as in the archive" in kept.out and sweep_of(mine).exists()
    assert mine("task=archive", "archive.restore=x.tar").code == 1 and mine.artifacts("sae") == [first, second]
    shutil.rmtree(sweep_of(mine))
    mine("task=archive", "archive.restore=x.tar")
    gone = mine(*words, "clean.kinds=[runs]")
    assert "deleted 1, " in gone.out and not list((mine.folder / "multirun").glob("*")), gone.out
    back = mine("task=archive", "archive.restore=x.tar")
    assert back.code == 0 and sweep_of(mine).exists()


def test_nothing_is_deleted_through_a_link(mine: Cli, tmp_path: Path) -> None:
    (model,) = mine.artifacts("tiny")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(mine.outputs / "artifacts" / "activations", elsewhere)
    (mine.outputs / "artifacts" / "activations").symlink_to(elsewhere)
    link = mine.outputs / "artifacts" / "sae" / "tiny-L3-topk-0123456789ab.partial"
    link.symlink_to(elsewhere)
    before = files(elsewhere), files(model.resolve())
    done = mine(*CLEAN, "clean.kinds=[tiny,activations,leftovers]")
    assert done.code == 0 and "1 a link" in done.out and "1 behind a link" in done.out, done.out
    assert "nothing to delete" in done.out and link.is_symlink()
    assert (files(elsewhere), files(model.resolve())) == before


def test_what_a_live_run_holds_or_stands_on_stays(mine: Cli) -> None:
    left, (rows,) = partial(mine), mine.artifacts("activations")
    making = Lease(left.with_name(f"{left.stem}.lease"), by="somebody/else")
    assert making.acquire()
    try:
        done = mine(*CLEAN)
        assert done.code == 0 and "nothing to delete" in done.out and left.exists() and rows.exists()
        assert "somebody/else, whose record is not below multirun, is at work in this store" in done.out
    finally:
        making.release()
    making = Lease(rows.with_name(f"{rows.name}.lease"), by="somebody/else")
    assert making.acquire()
    try:
        done = mine(*CLEAN)
        assert "in use by somebody/else" in done.out and rows.exists() and not left.exists(), done.out
    finally:
        making.release()
    (run,) = (mine.outputs / "runs").glob("*/rows-*")
    rewrite(run / "status.json", **alive())
    done = mine(*CLEAN, "clean.kinds=[activations,tiny]")
    assert f"in use by {run.name}" in done.out and rows.exists() and "nothing to delete" in done.out
    rewrite(run / "status.json", state="done")
    assert "deleted 1, " in mine(*CLEAN).out and not rows.exists()


def test_age_and_sweep_narrow_what_goes(mine: Cli) -> None:
    (rows,) = mine.artifacts("activations")
    for words in (["clean.older_than=1h"], ["of=study"]):
        assert "nothing to delete" in mine(*CLEAN, *words).out and rows.exists()
    manifest = rows / "manifest.json"
    rewrite(manifest, created="2026-01-01T00:00:00+00:00")
    assert "deleted 1, " in mine(*CLEAN, "clean.older_than=4w", "of=rows").out
    assert mine("task=clean", "clean.older_than=soon").errors == [
        "error: clean.older_than=soon: hours, days or weeks, such as 12h, 30d or 2w"
    ]
    (error,) = mine("task=clean", "clean.kinds=[activation]").errors
    assert error.startswith("error: clean.kinds: activation: no such kind; did you mean activations?")
    (error,) = mine("task=status", "confirm=true").errors
    assert error == "error: confirm: task=status does not read it; task=clean does"


def test_ages_are_read_as_they_are_written() -> None:
    assert [policy.seconds(text) for text in ("12h", "30d", "2w", None)] == [43200, 2592000, 1209600, 0]
    with pytest.raises(UserError):
        policy.seconds("30")


def test_what_a_killed_deletion_left_is_cleared_away_a_day_later(mine: Cli) -> None:
    (rows,) = mine.artifacts("activations")
    aside = rows.with_name(f".{rows.name}.01234567.old")
    rows.rename(aside)
    young = mine(*CLEAN)
    assert "written within a day" in young.out and aside.exists()
    for path in (aside, *aside.rglob("*")):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    assert "deleted 1, " in mine(*CLEAN).out and not aside.exists()
