"""Split files of a corpus: rows by number, id or hash; a copy with other line ends is the same corpus, another one is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from configs import key
from conftest import Cli
from prompt_sets import animals, bpe, save_model, write_jsonl

from circuits.data import splits
from circuits.data.fielded import hash_records
from circuits.data.prompt_build import Wanted, from_file
from circuits.data.prompt_records import Record, read_file
from circuits.data.prompt_tokens import Encoder
from circuits.data.splits import Given, assigned, corpus_hashes, row_hashes
from circuits.errors import UserError

TEN = [{"clean": f"The {word} is", "corrupt": f"A {word} is", "target": " red", "foil": " blue"}
       for word in ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay")]  # fmt: skip
SIDES: dict[str, Any] = {"train": [0, 1, 2, 3, 4, 5], "val": [6, 7], "test": [8, 9]}


def corpus(folder: Path, end: str = "\n", records: list[dict] | None = None) -> Path:
    """A corpus as the lab has them: clean, corrupt, target, foil; no ids."""
    return write_jsonl(folder / "corpus.jsonl", records or TEN, end)


def split_file(folder: Path, **given: Any) -> Path:
    """A split file."""
    path = folder / "corpus.split.json"
    path.write_text(json.dumps({"seed": 123, **SIDES, **given}, indent=1))
    return path


def taken(folder: Path, asked: dict[str, Any] | None = None, **given: Any) -> tuple[dict[str, list[int]], list[str]]:
    """The rows on each side, and what was said."""
    path = folder / "corpus.jsonl"
    path = path if path.exists() else corpus(folder)
    records, notes = assigned(read_file(path), path, Given(split_file(folder, **given), **(asked or {})))
    texts = [record["clean"] for record in TEN]
    sides: dict[str, list[int]] = {"train": [], "test": []}
    for record in records:
        sides[str(record.split)].append(texts.index(record.prompt))
    return sides, notes


# -- sides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "train", "test"),
    [
        ("test", [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]),
        ("train", [0, 1, 2, 3, 4, 5, 6, 7], [8, 9]),
        ("drop", [0, 1, 2, 3, 4, 5], [8, 9]),
        ("only", [0, 1, 2, 3, 4, 5], [6, 7]),
    ],
)
def test_rows_for_validation_are_for_testing_unless_told(
    validation: str, train: list[int], test: list[int], tmp_path: Path
) -> None:
    assert taken(tmp_path, {"validation": validation})[0] == {"train": train, "test": test}


def test_an_entry_is_a_number_an_id_or_the_hash_of_a_row(tmp_path: Path) -> None:
    named = [{**record, "id": f"row {i}"} if i < 3 else record for i, record in enumerate(TEN)]
    path = corpus(tmp_path, records=named)
    hashes = {row: digest for digest, row in row_hashes(path).items()}
    text = json.dumps(TEN[5], sort_keys=True, separators=(",", ":"))
    assert hashes[5] == hashlib.sha256(text.encode()).hexdigest()
    sides, _ = taken(tmp_path, train=["row 0", 1, hashes[5]], val=[hashes[6].upper()], test=["row 2"])
    assert sides == {"train": [0, 1, 5], "test": [2, 6]}


def test_rows_on_no_side_are_left_out_and_said(tmp_path: Path) -> None:
    sides, notes = taken(tmp_path, train=[3, 1], val=[], test=[9])
    assert sides == {"train": [1, 3], "test": [9]}
    assert any(note.startswith("7 of 10 rows are on no side of corpus.split.json") for note in notes)
    assert any("names no hash of its corpus" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"train": [0, 10]}, "train names row 10; {corpus} has rows 0-9"),
        ({"test": [-1]}, "test names row -1; {corpus} has rows 0-9"),
        (
            {"val": ["line-12"]},
            "val names 'line-12', which is no id and no row's hash in {corpus}; did you mean 'line-",
        ),
        ({"val": ["0" * 64]}, f"val names '{'0' * 64}', which is no id and no row's hash in {{corpus}}"),
        ({"val": [3]}, "3 ({corpus}, line 4) is in train and in val"),
        ({"val": [6, 6]}, "6 ({corpus}, line 7) is in val twice"),
        ({"train": [1.5]}, "train[0] is 1.5, a row number or an id is expected"),
        ({"test": True}, "test is true or false, a list of row numbers or ids is expected"),
        ({"train": []}, "names no row for training"),
    ],
)
def test_what_a_split_file_cannot_name_is_one_line(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        taken(tmp_path, **given)
    (line,) = refused.value.messages
    assert says.format(corpus=tmp_path / "corpus.jsonl") in line and line.startswith(
        str(tmp_path / "corpus.split.json")
    )


def test_a_clean_prompt_on_two_sides_is_refused(tmp_path: Path) -> None:
    records = [*TEN[:9], {**TEN[2], "corrupt": "Another cat is"}]
    path = corpus(tmp_path, records=records)
    refused = f"{split_file(tmp_path)}: 1 clean prompts are in train and in test (such as 'The cat is')"
    with pytest.raises(UserError, match="split by group") as found:
        assigned(read_file(path), path, Given(split_file(tmp_path)))
    assert str(found.value).startswith(refused)
    kept, _ = assigned(read_file(path), path, Given(split_file(tmp_path, test=[8]), "drop"))
    assert len(kept) == 7, "what is on no side overlaps with nothing"
    both = split_file(tmp_path, val=[2], train=[0, 1, 3], test=[9])  # val and test are one side here
    assert len(assigned(read_file(path), path, Given(both))[0]) == 5


def test_a_corpus_with_splits_of_its_own_is_not_split_twice(tmp_path: Path) -> None:
    path = corpus(tmp_path, records=[{**record, "split": "train"} for record in TEN])
    with pytest.raises(UserError, match=r"has a field 'split', and .* splits it, too"):
        assigned(read_file(path), path, Given(split_file(tmp_path)))


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"train": [1,]}', "line 1: not JSON"), ("[1]", "a list, expected an object"), ("\xff", "not UTF-8")],
)
def test_a_file_that_is_no_split_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says):
        splits.read(path)
    with pytest.raises(UserError, match="no such file"):
        splits.read(tmp_path / "none.json")


# -- whose corpus it is ------------------------------------------------------------------------------------------------


def test_a_copy_with_other_line_ends_is_the_same_corpus(tmp_path: Path) -> None:
    for name in ("lf", "crlf", "spaced"):
        (tmp_path / name).mkdir()
    unix, dos = corpus(tmp_path / "lf"), corpus(tmp_path / "crlf", "\r\n")
    spaced = tmp_path / "spaced" / "corpus.jsonl"
    spaced.write_text("".join(json.dumps(record, indent=None, separators=(" , ", " : ")) + "\n" for record in TEN))
    assert hash_records(unix) == hash_records(dos) == hash_records(spaced)
    for made_for in (unix, dos):
        raw = hashlib.sha256(made_for.read_bytes()).hexdigest()  # as the lab hashed them: bytes
        for path in (unix, dos):
            assert raw in corpus_hashes(path)
            given = Given(split_file(tmp_path, data_hash=raw))
            assert assigned(read_file(path), path, given)[1] == []
    canonical = Given(split_file(tmp_path, hash=f"sha256:{hash_records(unix)}"))
    for path in (unix, dos, spaced):
        assert len(assigned(read_file(path), path, canonical)[0]) == 10


def test_a_split_file_of_another_corpus_is_refused_with_both_hashes_unless_it_is_taken_nevertheless(
    tmp_path: Path,
) -> None:
    path, other = corpus(tmp_path), "94406e8c" * 8
    with pytest.raises(UserError) as refused:
        taken(tmp_path, data_hash=other)
    (line,) = refused.value.messages
    assert other in line and hash_records(path) in line and line.endswith("takes the rows that it names nevertheless")
    assert "behaviour.rehash=true" in line
    sides, (note,) = taken(tmp_path, {"rehash": True}, data_hash=other)
    assert len(sides["train"]) == 6 and other in note and "taken nevertheless" in note


# -- in the program ----------------------------------------------------------------------------------------------------


def test_a_split_file_decides_the_sides_of_a_prompt_set(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "my.jsonl", [{k: v for k, v in a.items() if k != "group"} for a in animals()])
    split = tmp_path / "my.split.json"
    split.write_text(json.dumps({"train": list(range(30)), "test": [30, 35]}))
    encoder, wanted = Encoder(bpe()), Wanted(None, None, 0, "keep")
    built = from_file(path, encoder, wanted, Given(split))
    assert [p.split for p in built.prompts] == ["train"] * 30 + ["test"] * 2
    assert [p.id for p in built.prompts[-2:]] == ["line-31", "line-36"]
    assert any("8 of 40 rows are on no side" in note for note in built.lint["findings"])
    unsplit: list[Record] = read_file(path)
    assert all(record.split is None for record in unsplit)


def test_the_command_line_takes_a_split_file_and_keys_it_by_what_it_says(cli: Cli) -> None:
    save_model(cli.folder / "one", bpe())
    write_jsonl(cli.folder / "my.jsonl", animals())
    write_jsonl(cli.folder / "crlf.jsonl", animals(), "\r\n")
    split = cli.folder / "my split.json"

    def write(**given: Any) -> None:
        rows = {"train": [i for i in range(40) if i % 10 < 8], "val": [8, 18], "test": [9, 19]}
        split.write_text(json.dumps({"data_hash": hash_records(cli.folder / "my.jsonl"), **rows, **given}))

    def made(*words: str) -> Any:
        given = ("task=prompts", "model=one", "behaviour.multi_token=keep", "tracking=off", f"behaviour.splits={split}")
        return cli(*given, *words)

    write()
    assert made("behaviour=my.jsonl").code == 0
    (first,) = cli.artifacts("prompts")
    found = [json.loads(line) for line in (first / "prompts.jsonl").read_text().splitlines()]
    assert [record["split"] for record in found].count("test") == 4 and len(found) == 36
    write(seed=7, data_hash=None)
    done = made("behaviour=crlf.jsonl")
    assert done.code == 0 and len(cli.artifacts("prompts")) == 1, "neither line ends nor a seed make another prompt set"
    write(test=[9])
    assert made("behaviour=my.jsonl").code == 0 and len(cli.artifacts("prompts")) == 2
    write(data_hash="0" * 64)
    refused = made("behaviour=my.jsonl")
    assert refused.code == 2 and len(refused.errors) == 1 and "behaviour.rehash=true" in refused.errors[0]
    assert made("behaviour=my.jsonl", "behaviour.rehash=true").code == 0
    for words, says in (
        (["behaviour=ioi"], "my split.json: behaviour=ioi does not read it; behaviour=file does"),
        (["behaviour=my.jsonl", "behaviour.splits=null", "behaviour.rehash=true"], "behaviour.splits=FILE.json does"),
        (["behaviour=my.jsonl", "behaviour.splits=none.json"], "none.json: no such file"),
    ):
        wrong = made(*words)
        assert wrong.code == 2 and any(says in line for line in wrong.errors), wrong.err


def test_without_a_split_file_nothing_of_it_is_in_a_key(tmp_path: Path) -> None:
    path = corpus(tmp_path)
    payload = key("task=prompts", f"behaviour={path}", kind="prompts", layers=()).payload
    assert "splits" not in payload and "validation" not in payload and "rehash" not in payload
