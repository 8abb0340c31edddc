"""Archives: whole, checked, restored without replacing anything; and nothing gets out of the place that it is for."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUICK, Cli
from kept import STUDY, alive, copied, files, rewrite, sweep_of

from circuits.errors import UserError
from circuits.launch import sweep
from circuits.launch.keeping import archive, tar
from circuits.launch.keeping.restore import restore


def test_a_study_is_archived_deleted_restored_and_answers(mine: Cli) -> None:
    done = mine("task=archive", "of=study", "archive.path=away")
    assert done.code == 0, done.err
    (file,) = (mine.folder / "away").glob("*.tar")
    name = sweep_of(mine).name
    assert file.name == f"{name}.tar" and "files, read back and checked" in done.out
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"sha256    {digest}" in done.out
    assert (file.parent / f"{file.name}.sha256").read_text() == f"{digest}  {file.name}\n", "as sha256sum -c reads it"
    assert "left out: tiny  1" in done.out, "and what was left out is said"
    with tarfile.open(file) as opened:
        names = opened.getnames()
        assert not any(member.uname or member.gname or member.uid for member in opened), "nobody's account is in it"
    assert any(one.endswith("000-layer=0/run.log") for one in names) and any("sae_weights" in one for one in names)
    assert not any(one.startswith(("outputs/artifacts/tiny", "outputs/artifacts/interpret")) for one in names)

    before = files(mine.folder / "multirun"), files(mine.outputs / "artifacts" / "sae")
    shutil.rmtree(mine.folder / "multirun")
    shutil.rmtree(mine.outputs / "artifacts" / "sae")
    back = mine("task=archive", f"archive.restore={file}")
    assert back.code == 0 and back.out.count("restored  ") == 3, back.err + back.out
    assert (files(mine.folder / "multirun"), files(mine.outputs / "artifacts" / "sae")) == before
    assert not list(mine.folder.rglob(".restoring*")) and not list(mine.folder.rglob("*.tmp"))
    again = mine(*STUDY)
    assert again.code == 0 and "2 cached" in again.out, again.err

    twice = mine("task=archive", f"archive.restore={file}")
    assert twice.code == 0 and twice.out.count("there already") == 3 and "restored  " not in twice.out
    log = mine.folder / "multirun" / Path(sweep_of_archived(mine, name)).parent.name / name / "000-layer=0" / "run.log"
    log.write_text("mine")
    weights = next((mine.outputs / "artifacts" / "sae").glob("*L1*/sae_weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    other = mine("task=archive", f"archive.restore={file}")
    assert other.code == 1 and log.read_text() == "mine" and other.out.count("left as it is") == 2
    assert "1 of " in other.out and "run.log" in other.out and "is damaged" in other.out


def sweep_of_archived(cli: Cli, name: str) -> str:
    (found,) = (cli.folder / "multirun").glob(f"*/{name}")
    return str(found)


def test_kinds_are_chosen_and_links_stay_out(mine: Cli) -> None:
    (sweep_of(mine) / "latest").symlink_to("/etc/hostname")
    done = mine("task=archive", "of=study", "archive.path=all.tar", "archive.kinds=[tiny]")
    assert done.code == 0, done.err
    listing = tar.read(mine.folder / "all.tar")
    kinds = {unit.split("/")[2] for unit in listing.units if unit.startswith("outputs/artifacts/")}
    assert kinds == {"tiny"} and "left out: 1 links" in done.out and "left out: sae  2" in done.out
    assert not any(name.endswith("latest") for name in listing.files)


def test_a_run_is_archived_with_the_measurement_that_let_it_pass(warm: Cli) -> None:
    small = [QUICK, "behaviour=ioi", "behaviour.n_samples=40", "behaviour.n_test=10", "behaviour.success_threshold=0"]
    for words in (["task=baseline"], ["task=activations", "layer=0", "name=rows"]):
        done = warm(*words, *small, "tracking=off", "cluster.workers=0")
        assert done.code == 0, done.err
    made = warm("task=archive", "of=rows", "archive.path=x.tar")
    assert "  baseline  1" in made.out and "  prompts  1" in made.out and "left out: activations  1" in made.out, (
        made.err
    )
    words = ["task=clean", "confirm=true", "clean.archived=true", "clean.archive=x.tar", "clean.kinds=[baseline,runs]"]
    done = warm(*words)
    (measured,), (run,) = warm.artifacts("baseline"), (warm.outputs / "runs").glob("*/baseline-*")
    assert done.code == 0 and "deleted 1, " in done.out and "stands on it" in done.out, (
        "the run of rows, no measurement"
    )
    assert measured.exists() and run.exists() and not list((warm.outputs / "runs").glob("*/rows-*"))
    assert warm("task=archive", "archive.restore=x.tar").code == 0
    assert list((warm.outputs / "runs").glob("*/rows-*/run.log"))


def test_what_cannot_be_archived_is_refused_in_one_line(mine: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mine("task=archive", "archive.path=x").errors == [
        "error: archive: of which sweep? of=SWEEP; task=status lists them; archive.restore=FILE puts one back"
    ]
    assert mine("task=archive", "of=study").errors == ["error: archive: where to? archive.path=DIR"]
    (error,) = mine("task=archive", "of=study", "archive.path=x", "archive.kinds=[saes]").errors
    assert error.startswith("error: archive.kinds: saes: no such kind; did you mean sae?")
    (error,) = mine("task=archive", "archive.restore=x.tar", "of=study").errors
    assert error.startswith("error: of=study: archive.restore=x.tar does not read it")
    (mine.folder / "there.tar").write_text("mine")
    (error,) = mine("task=archive", "of=study", "archive.path=there.tar").errors
    assert "it is there" in error and (mine.folder / "there.tar").read_text() == "mine"
    inside = sweep_of(mine) / "x"
    (error,) = mine("task=archive", "of=study", f"archive.path={inside}").errors
    assert "inside the sweep" in error

    found = sweep.load(sweep_of(mine))
    store = mine.outputs / "artifacts"
    chosen = archive.choose(found, store, [])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
        with pytest.raises(UserError, match=r"are needed and there is 1\.0 kB free"):
            archive.make(found, chosen, mine.folder / "small.tar")
    weights = next((store / "sae").glob("*L0*/sae_weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="its content is not what was written; nothing was archived"):
        archive.make(found, chosen, mine.folder / "damaged.tar")
    rewrite(sweep_of(mine) / "000-layer=0" / "status.json", **alive())
    (error,) = mine("task=archive", "of=study", "archive.path=x").errors
    assert "1 running; archive what has ended" in error
    left = sorted(path.name for path in mine.folder.iterdir())
    assert left == ["multirun", "outputs", "there.tar"], "no refusal leaves anything"


# -- hostile archives --------------------------------------------------------------------------------------------

RUN = "multirun/2026-01-01/x-0000"
DATA = b"text"


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = DATA, **headers: str
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes], listed: dict[str, object] | None = None) -> Path:
    """A tar of these members, whose list says that they are all as they should be (or what is given)."""
    facts = {"bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    names = {info.name: facts for info, _ in members if info.type == tarfile.REGTYPE}
    record = {"version": 1, "files": names if listed is None else listed}
    text = json.dumps({**record, "sha256": tar.check(record)}).encode()
    with tarfile.open(path, "w") as opened:
        for info, data in (*members, entry("archive.json", data=text)):
            opened.addfile(info, io.BytesIO(data) if info.size else None)
    return path


GOOD = entry(f"{RUN}/run.log")
HOLES = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.realsize": "1000000000",
    "GNU.sparse.name": f"{RUN}/a",
}
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "absolute": (lambda p: tarred(p, GOOD, entry("/tmp/x")), "/tmp/x: an absolute name"),
    "upwards": (lambda p: tarred(p, GOOD, entry(f"{RUN}/../../../../x")), "a name that leads upwards"),
    "beside": (lambda p: tarred(p, GOOD, entry("elsewhere/x")), "elsewhere/x: neither in an artifact nor"),
    "above": (lambda p: tarred(p, GOOD, entry("multirun/x")), "multirun/x: neither in an artifact nor"),
    "hidden": (lambda p: tarred(p, GOOD, entry("outputs/artifacts/.hashes.json/x/y/z")), "neither in an artifact nor"),
    "link": (lambda p: tarred(p, GOOD, entry(f"{RUN}/a", tarfile.SYMTYPE, "/etc")), f"{RUN}/a: a link"),
    "hard link": (lambda p: tarred(p, GOOD, entry(f"{RUN}/a", tarfile.LNKTYPE, f"{RUN}/run.log")), "a hard link"),
    "device": (lambda p: tarred(p, GOOD, entry(f"{RUN}/a", tarfile.CHRTYPE)), f"{RUN}/a: a device"),
    "pipe": (lambda p: tarred(p, GOOD, entry(f"{RUN}/a", tarfile.FIFOTYPE)), f"{RUN}/a: a pipe"),
    "through a link": (
        lambda p: tarred(p, entry(f"{RUN}/d", tarfile.SYMTYPE, "/tmp"), entry(f"{RUN}/d/x")), f"{RUN}/d: a link"),
    "upwards by its second name": (
        lambda p: tarred(p, GOOD, entry(f"{RUN}/a", path=f"{RUN}/../../../x")), "a name that leads upwards"),
    "with holes": (lambda p: tarred(p, GOOD, entry(f"{RUN}/a", **HOLES)), "in a header"),
    "another list": (
        lambda p: p.write_bytes(tarred(p, GOOD).read_bytes().replace(b'"version": 1', b'"version": 2')), "not what was written"),
    "twice": (lambda p: tarred(p, GOOD, GOOD), "it is there twice"),
    "file and directory": (lambda p: tarred(p, GOOD, entry(f"{RUN}/run.log/x")), "is a file and a directory"),
    "control letters": (lambda p: tarred(p, GOOD, entry(f"{RUN}/\x1b[2J")), "a name with signs"),
    "not listed": (lambda p: tarred(p, GOOD, listed={}), f"{RUN}/run.log: not in archive.json"),
    "missing": (lambda p: tarred(p, listed={f"{RUN}/a": {"bytes": 1, "sha256": ""}}), f"{RUN}/a: missing"),
    "another size": (
        lambda p: tarred(p, GOOD, listed={f"{RUN}/run.log": {"bytes": 5, "sha256": ""}}), "4 bytes, 5 were archived"),
    "changed byte": (lambda p: tarred(p, entry(f"{RUN}/run.log", data=b"tex!")), "its content is not what was archived"),
    "no list": (lambda p: p.write_bytes(tarred(p, GOOD).read_bytes()[:1024] + b"\0" * 1024), "without archive.json"),
    "truncated": (lambda p: p.write_bytes(tarred(p, GOOD, entry(f"{RUN}/b")).read_bytes()[:1300]), "not whole"),
    "no tar": (lambda p: p.write_bytes(b"x" * 2000), "no tar, or not whole"),
    "list of something": (lambda p: tarred(p, listed=[]), "not a list of files"),  # type: ignore[arg-type]
    "artifact": (lambda p: tarred(p, entry("outputs/artifacts/sae/x-0/cfg.json")), "no manifest.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    write, says = HOSTILE[what]
    file = tmp_path / "x.tar"
    write(file)
    with pytest.raises(UserError) as caught:
        restore(file, tmp_path / "outputs", tmp_path / "multirun")
    (message,) = caught.value.messages
    assert (
        says in message and message.endswith("nothing was restored") and "\n" not in message and message.isprintable()
    )
    assert message.startswith(f"archive.restore={file}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_no_changed_byte_and_no_cut_is_taken_for_the_archive(tmp_path: Path) -> None:
    """Each of many places: it is refused, or what is restored is the same (the zeros that fill up a block are nobody's)."""
    file, rng = tmp_path / "x.tar", random.Random(0)
    good = tarred(file, GOOD, entry(f"{RUN}/b/c", data=DATA)).read_bytes()
    used = 6 * 512 + len(json.dumps({"version": 1}))
    refused = 0
    for place in [*range(0, used, 23), *(rng.randrange(used) for _ in range(100))]:
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data if rng.random() < 0.7 else good[:place])
        folder = tmp_path / f"at-{place}"
        try:
            restore(file, folder / "outputs", folder / "multirun")
        except UserError as e:
            refused += 1
            assert not folder.exists() and "\n" not in str(e), place
        else:
            assert files(folder) == {f"{RUN}/run.log": DATA, f"{RUN}/b/c": DATA}, place
            shutil.rmtree(folder)
    assert refused > 150


def test_an_artifact_under_another_name_is_refused(mine: Cli, tmp_path: Path) -> None:
    found = next((mine.outputs / "artifacts" / "sae").glob("*L0*"))
    names = files(found)
    place = "outputs/artifacts/sae/tiny-L0-topk-000000000000"
    listed = {f"{place}/{n}": {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in names.items()}
    file = tarred(tmp_path / "x.tar", *(entry(f"{place}/{n}", data=b) for n, b in names.items()), listed=listed)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is that of another artifact; nothing was restored"):
        restore(file, tmp_path / "new", tmp_path / "multirun")
    assert not (tmp_path / "new").exists()
    done = mine("task=archive", f"archive.restore={file}")
    assert done.code == 2 and len(done.errors) == 1 and len(done.err.splitlines()) == 1


def test_a_link_that_is_here_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    day = tmp_path / "multirun" / "2026-01-01"
    day.mkdir(parents=True)
    (day / "x-0000").symlink_to(tmp_path / "elsewhere")
    done = restore(tarred(tmp_path / "x.tar", GOOD), tmp_path / "outputs", tmp_path / "multirun")
    assert list(done.differing) == [RUN] and not list((tmp_path / "elsewhere").iterdir())


# -- moved stores ------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_moved_store_answers_and_its_pages_are_whole(study: Cli, tmp_path: Path) -> None:
    here = copied(study, tmp_path)  # the records name the folder of before, which is out of sight
    for record in (tmp_path / "multirun").glob("*/study-*/**/*.json"):
        record.write_text(record.read_text().replace(str(study.folder), "/nowhere/before"))
    (tmp_path / "outputs").rename(tmp_path / "kept")
    (tmp_path / "multirun").rename(tmp_path / "sweeps")
    moved = ["outputs=kept", "multirun=sweeps"]
    page = here("task=report", "of=study", *moved)
    text = next((tmp_path / "sweeps").glob("*/study-*/report.html")).read_text()
    assert page.code == 0 and "metrics.json is missing" not in text and "0.0" in text, page.err
    (error,) = here("task=recover", "of=study", *moved).errors
    assert (
        "it was made in /nowhere/before/outputs/artifacts, which is not there; the same command takes what is in"
        in error
    )
    assert not (tmp_path / "outputs").exists()
    status = here("task=status", "of=study", *moved)
    assert status.code == 0 and status.out.count("done") == 2, status.out
    again = here(*STUDY, *moved)
    assert again.code == 0 and "2 cached" in again.out, again.err + again.out
    both = here("task=compare", f"compare.of=[{sweep_id(tmp_path, 0)},{sweep_id(tmp_path, 1)}]", *moved)
    assert both.code == 0, both.err


def sweep_id(folder: Path, number: int) -> str:
    return sorted(folder.glob("sweeps/*/study-*"), key=lambda path: path.stat().st_mtime)[number].name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_archive_that_is_ended_leaves_nothing_behind_and_can_be_made_again(
    mine: Cli, number: signal.Signals, wait_until: Callable[..., None]
) -> None:
    with (sweep_of(mine) / "000-layer=0" / "large.bin").open("wb") as file:
        file.truncate(3 << 30)  # sparse: seconds of reading, and nothing on the disk
    away = mine.folder / "away"
    running = mine.start("task=archive", "of=study", "archive.path=away")
    wait_until(lambda: away.is_dir() and any(away.iterdir()), what="the archive to be begun")
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and f"interrupted ({number.name})" in said, said
    assert not list(away.iterdir()), "nothing half-written"
    (sweep_of(mine) / "000-layer=0" / "large.bin").unlink()
    done = mine("task=archive", "of=study", "archive.path=away")
    assert done.code == 0, done.err
