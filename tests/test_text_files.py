"""Corpora as people have them: packed, JSON arrays, tables, other encodings. Read by what they are, or refused in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from configs import compose
from prompt_sets import bpe

from circuits.command import overrides
from circuits.data.corpora import check_corpus, content_hash, documents
from circuits.data.textstore import TextStore, tokenise
from circuits.errors import UserError
from circuits.schema import DataConfig
from circuits.tasks import tokens

DOCS = [f"document {i} of the corpus, «é» and 猫" for i in range(60)]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(DOCS)).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda raw: lzma.compress(raw, format=lzma.FORMAT_ALONE),
    "zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
}


def test_a_total_of_tokens_is_told_only_where_the_text_can_reach_it(tmp_path: Path) -> None:
    """A file of half a million characters is no "5e+07 tokens"."""
    (tmp_path / "c.txt").write_text("a word " * 1000)
    for place in (tmp_path / "c.txt", tmp_path):
        of = {most: tokens._total(DataConfig(path=str(place), max_tokens=most)) for most in (None, 1000, 50_000_000)}
        assert of == {None: None, 1000: 1000, 50_000_000: None}


@pytest.mark.parametrize("packing", sorted(PACK))
@pytest.mark.parametrize(
    ("name", "kind", "raw"), [("t.txt", "text", "\n".join(DOCS).encode()), ("c.jsonl", "jsonl", LINES)]
)
def test_packed_files_are_the_same_corpus(packing: str, name: str, kind: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    for place in (tmp_path / f"{name}.{packing}", tmp_path / f"packed-{name}"):  # by content, whatever it is called
        place.write_bytes(PACK[packing](raw))
        assert list(documents(kind, place)) == DOCS == list(documents(kind, tmp_path / name))
        assert content_hash(kind, place) == content_hash(kind, tmp_path / name), "one key"
    (tmp_path / f"short.{packing}").write_bytes(PACK[packing](raw)[:-9])
    with pytest.raises(UserError, match=r"is damaged .*; copy or download it again") as e:
        check_corpus(kind, tmp_path / f"short.{packing}")
    assert "\n" not in str(e.value)


def test_arrays_and_tables_are_read_as_what_they_are_whatever_the_source_says(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": range(60), "text": DOCS})
    records = [{"id": i, "text": text} for i, text in enumerate(DOCS)]
    (tmp_path / "lines.json").write_bytes(LINES)
    (tmp_path / "indented.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "array.json").write_text("\ufeff " + json.dumps(records))
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_csv(tmp_path / "table.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "excel.csv", index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_csv(tmp_path / "table.csv.gz", index=False)
    frame.to_parquet(tmp_path / "table.parquet")
    for path in tmp_path.iterdir():
        assert list(documents("text", path)) == DOCS, path.name
    assert len({content_hash("text", tmp_path / f"{name}.json") for name in ("lines", "indented", "array")}) == 1
    named = overrides.normalise(["data=text", f"data.path={tmp_path}/table.csv", "data.field=body"]).overrides
    assert named[0] == "data=jsonl", "so that data.field is read"
    (tmp_path / "cells.csv").write_text('body,n\n"one\n\ntwo, ""three""",1\n,2\nfour,3\n')
    assert list(documents("jsonl", tmp_path / "cells.csv", "body")) == ['one\n\ntwo, "three"', "four"]
    (tmp_path / "nulls.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": NaN}\n{"text": "b"}\n')
    assert list(documents(None, tmp_path / "nulls.jsonl")) == ["a", "b"], "what is missing is no document"


def archive(kind: str) -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as found:
            found.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=made, mode=kind) as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a b.txt", "\n".join(DOCS).encode("utf-16"), "UTF-16, not UTF-8; convert it, for example: iconv -f utf-16 -t utf-8 'a b"),
        ("a.txt", b"\n".join(b"one two" for _ in DOCS).decode().encode("utf-16-le"), "it looks like UTF-16LE without a mark"),
        ("a.txt", b"\n".join(b"one two" for _ in DOCS).decode().encode("utf-16-be"), "it looks like UTF-16BE without a mark"),
        ("a.txt.gz", gzip.compress("\n".join(DOCS).encode("utf-16")), "(gzip): UTF-16, not UTF-8; unpack it, then convert it"),
        ("a.txt.gz", gzip.compress("\n".join(DOCS).encode("latin1", "replace")), "not UTF-8 at the gzip text's byte"),
        ("a.txt", "“one” two".encode("cp1252"), "not UTF-8 at byte 0 (line 1); convert it, for example: iconv -f cp1252"),
        ("a.txt", "été two".encode("latin1"), "not UTF-8 at byte 0 (line 1); convert it, for example: iconv -f latin1"),
        ("a.txt", b"Rar!\x1a\x07", "a RAR archive; unpack it"),
        ("a.txt.Z", b"\x1f\x9d\x90", "packed by compress; unpack it"),
        ("a.txt", b"id,text\n1,a\n2,b\n", "a table with a column 'text', which data=text would read as text, separators and all"),
        ("a.txt", b"id\ttext\n1\ta\n2\tb\n", "separators and all; let its name end in .tsv"),
        ("a.txt", archive("zip"), "a ZIP archive (or an Office document); unpack it"),
        ("a.tar", archive("w"), "a tar archive; unpack it"),
        ("a.tar.gz", archive("w:gz"), "(gzip): a tar archive; unpack it"),
        ("a.gz.gz", gzip.compress(gzip.compress(b"text")), "packed twice (with gzip inside)"),
        ("a.txt", b"%PDF-1.7 ...", "a PDF; extract its text"),
        ("a.txt", LINES, "JSON lines, which data=text would read as text, markup and all; data=jsonl reads them"),
        ("a.json", b'{"data": [\n{"text": "a"}]}', "line 1: not JSON (Expecting value at column 11); a file is one object"),
        ("a.json", b'[{"text": "a"}, 3]', "item 2: a number, expected an object"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "item 2: not JSON"),
        ("a.json", b'[{"body": "a"}]', "item 1: no field 'text'"),
        ("a.csv", b"id,text\n1,2,3\n", "line 2: 3 cells, the header names 2"),
        ("a.csv", b'id,text\n1,"open\n2,b\n', "line 2: not a table"),
        ("a.csv", b"id,body\n1,2\n", "no field 'text'; fields: body id"),
    ],
    ids=lambda value: "raw" if isinstance(value, bytes) else value,  # what is packed holds the time: workers must agree on names
)  # fmt: skip
def test_what_is_no_text_of_ours_is_named_before_the_start(name: str, raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError) as e:
        check_corpus("text", tmp_path / name)
    assert message in str(e.value) and str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)


def test_an_array_on_one_line_is_read_in_parts(tmp_path: Path) -> None:
    """Chunks of a megabyte end anywhere: within a character, a number, an item of several megabytes."""
    texts = [("猫" * 400_001) + str(i) for i in range(3)] + [f"short {i}" for i in range(50_000)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text, "n": 1.5} for text in texts], ensure_ascii=False))
    assert list(documents(None, tmp_path / "a.json")) == texts


def test_what_was_read_is_said_and_a_stray_blank_line_is_remarked_on(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(DOCS[:30]) + "\n\n" + "\n".join(DOCS[30:]))
    (remark,) = check_corpus("text", tmp_path / "t.txt").remarks
    assert (
        "2 documents of 60 lines together, since blank lines separate documents; where each line is a document"
        in remark
    )
    (cfg,) = (compose("task=sae", "layer=0", "data=text", f"data.path={tmp_path / 't.txt'}"),)
    assert remark in tokens.KIND.remarks(cfg, ()), "the launcher says it"
    (tmp_path / "t.txt").write_text("\n".join(DOCS))
    assert check_corpus("text", tmp_path / "t.txt").remarks == ()
    (tmp_path / "page.txt").write_text("\n<!DOCTYPE html>\n<p>" + "\n<p>".join(DOCS))
    assert check_corpus("text", tmp_path / "page.txt").remarks == (
        f"{tmp_path / 'page.txt'}: HTML, whose markup is read as text",
    )
    (tmp_path / "long.txt").write_text("text," * 100_000 + "\nb\n")
    assert check_corpus("text", tmp_path / "long.txt").documents == 2
    for limit, end in ((None, "all of it"), (400, "cut at 400 tokens, more text follows"), (10**6, "all of it")):
        out = tmp_path / str(limit)
        out.mkdir()
        facts = tokenise(
            documents("text", tmp_path / "t.txt"), bpe(), out, context=16, max_tokens=limit, heldout_fraction=0.2
        )
        told = TextStore(out).summary(limit)
        assert told.startswith(f"{facts['n_documents']} documents, {facts['n_tokens']:,} tokens ({end}); ")
        assert told.endswith(f"and {facts['n_contexts_heldout']} held-out sequences of 16")
