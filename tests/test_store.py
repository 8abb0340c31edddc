"""The store: what is published is whole, what is damaged is named and made again, and nobody ever reads half of anything."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuits.errors import Damaged, DiskFull
from circuits.files import sha256_text
from circuits.store import nearest
from circuits.store import store as store_module
from circuits.store.keys import Key
from circuits.store.leases import Note, owner
from circuits.store.store import MANIFEST, Artifact, Store, content_hash, verify

FACTS: dict[str, Any] = {"inputs": {}, "by": "a test"}


def key(payload: str = "{}", label: str = "tiny-L0-topk") -> Key:
    """A key of a kind that is not in the house: the store does not care."""
    return Key("sae", label, (0,), payload, {})


def publish(store: Store, text: str = "first", k: Key | None = None, **options: Any) -> Artifact:
    """An artifact of three files, one of them in a folder of its own."""
    k = k or key()
    with store.writing(k) as place:
        (place / "data.bin").write_bytes(text.encode() * 100)
        (place / "deep").mkdir()
        (place / "deep" / "more.json").write_text(json.dumps({"text": text}))
        (place / "check.txt").write_text(sha256_text(text * 100))
        return store.publish(k, place, FACTS, **options)


def stands(artifact: Artifact) -> str:
    """What text an artifact was made from; its files must belong together."""
    text = json.loads((artifact.path / "deep" / "more.json").read_text())["text"]
    assert (artifact.path / "data.bin").read_bytes() == text.encode() * 100
    assert (artifact.path / "check.txt").read_text() == sha256_text(text * 100)
    return str(text)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


class Said(list[str]):
    """Collects what the store says."""

    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def said() -> Said:
    """What the store says."""
    return Said()


@pytest.fixture
def store(tmp_path: Path, said: Said) -> Store:
    """An empty store."""
    return Store(tmp_path / "artifacts", say=said)


def child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; its pid. The process never returns into the tests."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(60)  # whatever happens to the test
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- publishing --------------------------------------------------------------------------------------------------


def test_what_is_published_is_found_with_all_it_says(store: Store) -> None:
    assert store.find(key()) is None
    made = publish(store)
    found = store.find(key(), deep=True)
    assert found is not None and stands(found) == "first"
    assert found.path == store.root / "sae" / f"tiny-L0-topk-{key().hash[:12]}"
    assert found.id == made.id == key().id
    assert set(found.manifest["files"]) == {"data.bin", "check.txt", "deep/more.json"}
    assert found.manifest["key"] == key().hash and found.manifest["layers"] == [0] and found.manifest["by"] == "a test"
    assert found.content == made.content == content_hash(found.manifest["files"])
    assert names(store.root / "sae") == [found.path.name], "nothing is left beside it"


def test_an_artifact_is_complete_only_when_its_manifest_is_there(store: Store) -> None:
    with store.writing(key()) as place:
        (place / "data.bin").write_bytes(b"x")
        assert store.find(key()) is None
        assert not store.path(key()).exists()
    assert names(store.root / "sae") == []


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.writing(key()) as place:
        (place / "data.bin").write_bytes(b"x")
        raise KeyError
    assert names(store.root / "sae") == [] and store.find(key()) is None


def test_a_write_that_the_disk_refuses_is_one_line_and_leaves_nothing(store: Store) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(DiskFull, match="file-size limit was reached; free some space or choose another place"):
            publish(store, "much " * 100)
        assert names(store.root / "sae") == []

    assert ended(child(work)) == 0


def test_a_partial_is_kept_until_its_artifact_is_published(store: Store) -> None:
    partial = store.partial(key())
    (partial / "step-10").write_text("x")
    assert (store.partial(key()) / "step-10").exists()
    publish(store)
    assert not partial.exists()


def test_a_forced_run_throws_the_work_of_others_away_and_resumes_its_own(store: Store) -> None:
    (store.partial(key()) / "theirs").write_text("x")
    mine = store.partial(key(), owner="sae-1a2b/000")
    assert not (mine / "theirs").exists()
    (mine / "mine").write_text("x")
    assert (store.partial(key(), owner="sae-1a2b/000") / "mine").exists()
    assert not (store.partial(key(), owner="sae-3c4d/000") / "mine").exists()


def test_a_copy_of_a_file_under_another_name_finds_the_same_artifact(store: Store) -> None:
    made = publish(store, k=key(label="corpus-gpt2"))
    renamed = key(label="copy_of_corpus-gpt2")
    found = store.find(renamed)
    assert found is not None and found.path == made.path
    assert store.find(key("other payload", label="corpus-gpt2")) is None


def test_leftovers_of_dead_writers_go_after_a_day_and_nothing_else(store: Store) -> None:
    made = publish(store)
    for age, name in ((0, ".a.1.tmp"), (90_000, ".b.2.tmp"), (90_000, ".c.3.damaged"), (90_000, ".d.4.old")):
        place = store.root / "sae" / name
        place.mkdir()
        (place / "x").write_text("x")
        os.utime(place, (time.time() - age,) * 2)
    old = time.time() - 90_000
    kept, overtaken = store.partial(key("other payload")), store.partial(key())  # the second's artifact is there
    for place in (kept, overtaken):
        os.utime(place, (old, old))
    removed = [".b.2.tmp", ".c.3.damaged", ".d.4.old", overtaken.name]
    assert sorted(path.name for path in store.sweep_leftovers()) == removed
    assert names(store.root / "sae") == sorted([".a.1.tmp", made.path.name, kept.name])
    forced = store.partial(key(), owner="somebody")
    os.utime(forced, (old, old))
    assert store.sweep_leftovers() == [], "what is made in its place goes on"


# -- collisions --------------------------------------------------------------------------------------------------


def test_the_second_writer_adopts_the_first_ones_artifact(store: Store) -> None:
    with store.writing(key()) as slow:
        (slow / "data.bin").write_bytes(b"slow")
        first = publish(store, "first")
        adopted = store.publish(key(), slow, FACTS)
    assert adopted.content == first.content and stands(adopted) == "first"
    assert names(store.root / "sae") == [first.path.name]


def test_a_replacing_writer_takes_the_place_of_a_valid_artifact(store: Store) -> None:
    publish(store, "first")
    second = publish(store, "second", replace=True)
    found = store.find(key(), deep=True)
    assert found is not None and stands(found) == "second" and found.content == second.content
    assert names(store.root / "sae") == [found.path.name]


def test_all_of_many_racing_writers_end_with_one_artifact(store: Store, tmp_path: Path) -> None:
    start = time.monotonic() + 0.2

    def race(number: int) -> None:
        with store.writing(key()) as place:
            (place / "data.bin").write_text(f"writer {number}")
            time.sleep(max(0.0, start - time.monotonic()))
            adopted = store.publish(key(), place, FACTS)
        (tmp_path / f"told-{number}").write_text(adopted.content)

    assert [ended(pid) for pid in [child(lambda n=n: race(n)) for n in range(8)]] == [0] * 8  # type: ignore[misc]
    found = store.find(key(), deep=True)
    assert found is not None
    assert {path.read_text() for path in tmp_path.glob("told-*")} == {found.content}
    assert names(store.root / "sae") == [found.path.name]


# -- damage ------------------------------------------------------------------------------------------------------


def flip(file: Path, at: int = 7) -> None:
    """Change one bit of a file; its size stays."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """Cut a file's second half off."""
    os.truncate(file, file.stat().st_size // 2)


def into_directory(file: Path) -> None:
    """A directory where a file should be."""
    file.unlink()
    file.mkdir()


def link_to_nothing(path: Path) -> None:
    """A dangling link in the place of an artifact."""
    shutil.rmtree(path)
    path.symlink_to(path.with_name("nowhere"))


def link_to_damaged(path: Path) -> None:
    """A link to an artifact elsewhere that is damaged."""
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    flip(elsewhere / "data.bin")
    path.symlink_to(elsewhere)


def into_file(path: Path) -> None:
    """A file in the place of an artifact."""
    shutil.rmtree(path)
    path.write_text("x")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated file": (lambda path: truncate(path / "data.bin"), "data.bin: 250 bytes, 500 were written"),
    "emptied file": (lambda path: os.truncate(path / "data.bin", 0), "data.bin: 0 bytes"),
    "longer file": (lambda path: (path / "data.bin").open("a").write("x"), "data.bin: 501 bytes"),
    "flipped bit": (lambda path: flip(path / "data.bin"), "data.bin: its content is not what was written"),
    "flipped bit below": (lambda path: flip(path / "deep" / "more.json"), "deep/more.json: its content"),
    "missing file": (lambda path: (path / "check.txt").unlink(), "check.txt: missing"),
    "missing folder": (lambda path: shutil.rmtree(path / "deep"), "deep/more.json: missing"),
    "folder for a file": (lambda path: into_directory(path / "data.bin"), "data.bin: missing"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), f"no {MANIFEST}"),
    "truncated manifest": (lambda path: truncate(path / MANIFEST), f"{MANIFEST}: not a manifest"),
    "empty manifest": (lambda path: (path / MANIFEST).write_text(""), f"{MANIFEST}: not a manifest"),
    "zeroed manifest": (lambda path: (path / MANIFEST).write_bytes(bytes(300)), f"{MANIFEST}: not a manifest"),
    "manifest is a list": (lambda path: (path / MANIFEST).write_text("[]"), f"{MANIFEST}: not a manifest"),
    "manifest without files": (lambda path: (path / MANIFEST).write_text("{}"), f"{MANIFEST}: not a manifest"),
    "files are a list": (lambda path: (path / MANIFEST).write_text('{"files": []}'), f"{MANIFEST}: not a manifest"),
    "manifest without a key": (lambda path: (path / MANIFEST).write_text('{"files": {}}'), "without key kind layers"),
    "manifest is a folder": (lambda path: into_directory(path / MANIFEST), f"{MANIFEST}: cannot be read"),
    "empty folder": (lambda path: (shutil.rmtree(path), path.mkdir()), f"no {MANIFEST}"),
    "file for a folder": (into_file, f"{MANIFEST}: cannot be read"),
    "link to a damaged one": (link_to_damaged, "data.bin: its content"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_never_trusted_and_made_again(store: Store, said: Said, kind: str) -> None:
    damage, says = DAMAGE[kind]
    path = publish(store).path
    damage(path)
    with pytest.raises(Damaged, match=r".") as caught:
        verify(path)
    assert says in str(caught.value)
    assert store.find(key()) is None
    assert len(said) == 1 and says in said[0] and key().id in said[0] and said[0].endswith("; it will be made again")
    publish(store, "again")
    found = store.find(key(), deep=True)
    assert found is not None and stands(found) == "again"
    assert names(store.root / "sae") == [path.name], "the damaged one is gone"


def test_a_dangling_link_is_absent_and_replaced(store: Store) -> None:
    link_to_nothing(publish(store).path)
    assert store.find(key()) is None
    publish(store, "again")
    found = store.find(key())
    assert found is not None and stands(found) == "again"


def test_a_large_artifact_is_sized_on_read_and_hashed_on_demand(
    store: Store, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HASHED_ON_READ", 100)
    path = publish(store).path
    flip(path / "data.bin")
    assert store.find(key()) is not None, "by size alone"
    assert store.find(key(), deep=True) is None and "data.bin" in said[0]
    truncate(path / "data.bin")
    assert store.find(key()) is None


def test_of_a_file_that_is_too_large_to_hash_blocks_are_compared_on_read(
    store: Store, said: Said, tmp_path: Path
) -> None:
    size = store_module.HASHED_ON_READ + (1 << 20)
    with store.writing(key()) as place:
        (place / "values.npy").write_bytes(bytes(range(256)) * (size // 256))
        (place / "small.bin").write_bytes(b"small")
        path = store.publish(key(), place, FACTS).path
    assert (
        store.find(key()) is not None
        and "sample" not in json.loads((path / MANIFEST).read_text())["files"]["small.bin"]
    )
    for at in (0, size // 2, size - (3 << 20)):  # a stretch that came back as zeros, as after a crash of a file server
        with (path / "values.npy").open("r+b") as f:
            f.seek(at)
            lost = f.read(3 << 20)
            f.seek(at)
            f.write(bytes(len(lost)))
        assert store.find(key()) is None and "values.npy: its content is not what was written" in said[-1]
        with (path / "values.npy").open("r+b") as f:
            f.seek(at)
            f.write(lost)
        assert store.find(key(), deep=True) is not None
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"]["values.npy"]["sample"]  # as artifacts were once made
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert store.find(key()) is not None and store.find(key(), deep=True) is not None


def test_what_was_asked_beside_the_key_is_no_content(store: Store) -> None:
    """A device or a checkpoint interval in config.yaml does not make another build; a changed file does."""
    contents = []
    for config, data in (("device: cpu", "a"), ("device: cuda", "a"), ("device: cpu", "b")):
        with store.writing(key()) as place:
            (place / "config.yaml").write_text(config)
            (place / "data.bin").write_text(data)
            contents.append(store.publish(key(), place, FACTS, replace=True).content)
    assert contents[0] == contents[1] != contents[2]


def test_a_lookup_costs_the_same_among_twenty_thousand_artifacts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = publish(store).path
    for number in range(20_000):
        (made.parent / f"other-{number:012x}").mkdir()
    listings, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listings.append(path) or listdir(path))
    absent = [key(payload=f'{{"n": {number}}}') for number in range(500)]
    assert all(store.find(one) is None and store.holder(one) is None for one in absent)
    copy = key(label="a-copy-of-the-same-model")
    found = store.find(copy)
    assert found is not None and found.path == made, "a label may name a copy of the same file"
    assert len(listings) < 20, "one for all of them, and one more a second"


def test_what_is_nearest_is_read_once_for_a_whole_sweep(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    there, absent = ([json.dumps({"config": {"sae": {"k": k + odd}}}) for k in range(0, 40, 2)] for odd in (0, 1))
    for payload in there:
        publish(store, k=key(payload))
    read: list[Path] = []
    payloads = itertools.cycle(there)
    monkeypatch.setattr(nearest, "read_json", lambda path: (read.append(path), {"payload": next(payloads)})[1])
    told = [nearest.told(store.root, key(payload)) for payload in absent]
    assert len(read) == len(there) and all("nearest there: sae/tiny-L0-topk-" in line for line in told)
    assert told[0].endswith(", not 1)") and told[-1].endswith(", not 39)")
    publish(store, k=key("new"))
    nearest.told(store.root, key(absent[0]))
    assert len(read) == 2 * len(there) + 1, "one that came since is looked at"


def test_no_flipped_bit_of_a_manifest_breaks_its_reader(store: Store) -> None:
    path = publish(store).path
    whole = (path / MANIFEST).read_bytes()
    trusted = 0
    for at in range(len(whole)):
        flip(path / MANIFEST, at)
        found = store.find(key())
        if found is not None:
            trusted += 1
            assert found.id and found.content
        (path / MANIFEST).write_bytes(whole)
    assert trusted < len(whole) / 2
    assert store.find(key(), deep=True) is not None


# -- kills -------------------------------------------------------------------------------------------------------


def test_writers_killed_at_any_moment_never_show_half_of_an_artifact(store: Store, said: Said) -> None:
    """Two writers publish and replace without end; sixty-four of them or more are killed while this process reads."""

    def write() -> None:
        rng = random.Random()
        while True:
            publish(store, str(rng.random()) * rng.randint(1, 400), replace=rng.random() < 0.7)

    rng, kills, seen = random.Random(0), 0, set()
    running: dict[int, float] = {}
    while kills < 64 or (len(seen) <= 10 and kills < 1000):  # busy cores: many die before they have published anything
        while len(running) < 2:
            running[child(write)] = time.monotonic() + rng.uniform(0.002, 0.1)
        found = store.find(key(), deep=True)
        if found is not None:
            seen.add(found.content)
        for pid in [pid for pid, end in running.items() if time.monotonic() > end]:
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL
            del running[pid]
            kills += 1
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    assert said == [], "a reader never meets damage, only a whole artifact or none"
    assert len(seen) > 10
    store.sweep_leftovers(older_than_s=-1)
    final = publish(store, "final", replace=True)
    assert stands(final) == "final"
    assert names(store.root / "sae") == [final.path.name]


# -- who is making it --------------------------------------------------------------------------------------------


def test_the_holder_is_whoever_has_the_lease_or_else_the_claim(store: Store) -> None:
    assert store.holder(key()) is None
    claim = Note(store.beside(key(), "claim"))
    facts = owner(by="sae-1a2b")
    assert claim.take(facts)
    lease = store.lease(key(), by="sae-1a2b/000")
    assert lease.acquire()
    holder = store.holder(key())
    assert holder is not None and holder["by"] == "sae-1a2b/000" and holder["key"] == key().id
    lease.release()
    holder = store.holder(key())
    assert holder is not None and holder["by"] == "sae-1a2b"
    claim.drop(facts["token"])
    assert store.holder(key()) is None
    assert names(store.root / "sae") == []


def test_a_holder_on_another_host_that_fell_silent_is_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.store.pulse.STALE_S", 0.2)
    (store.root / "sae").mkdir(parents=True)
    store.beside(key(), "lease").write_text(json.dumps({**owner(by="x"), "host": "another"}))
    assert store.holder(key()) is not None
    time.sleep(0.3)
    assert store.holder(key()) is None
