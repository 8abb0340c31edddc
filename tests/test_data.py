"""Corpora, the text store and the row index: faults are one line, splits disjoint, blocks known by their number."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuits.data import corpora
from circuits.data.corpora import check_corpus, content_hash, documents
from circuits.data.npy import NpyWriter, open_npy
from circuits.data.seeds import derive_seed
from circuits.data.textstore import TextStore, tokenise
from circuits.errors import Damaged, UserError
from circuits.model_input import ModelInput, padded

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = {"<bos>": 0, "<eos>": 1, "<unk>": 2}


def make_tokenizer(**special: str) -> Any:
    """A word-level tokenizer over w0 … w39 with the given special tokens."""
    vocabulary = SPECIAL | {word: i + len(SPECIAL) for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)


def make_documents(n: int, seed: int = 0) -> list[str]:
    """Documents of 5 to 30 random words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 31))) for _ in range(n)]


def read(path: Any, kind: str | None = None, **options: Any) -> list[str]:
    return list(documents(kind, path, **options))


def refused(path: Any, kind: str | None = None, **options: Any) -> str:
    """The one line with which both the check and the reading refuse a corpus."""
    with pytest.raises(UserError) as checked:
        check_corpus(kind, path, **options)
    with pytest.raises(UserError) as found:
        read(path, kind, **options)
    message = str(checked.value)
    assert message == str(found.value) and "\n" not in message
    return message


# ---- seeds and tokens


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    purposes: list[tuple[str | int, ...]] = [("shuffle", 3), ("shuffle3",), ("shuffle", "3"), ("init", 3), ()]
    seeds = [derive_seed(seed, *purpose) for seed in (0, 3) for purpose in purposes] + [derive_seed(3, "shuffle", 0)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "shuffle", 3) == 8203140106345629940  # fixed for ever: artifacts rest on it


def test_tokens_take_cuts_to_the_longest() -> None:
    tokens = padded([[1, 2, 3], [4], [5, 6]], [7, 8, 9])
    part = tokens.take(torch.tensor([2, 1]))
    assert part.ids.tolist() == [[5, 6], [4, 0]] and part.mask.tolist() == [[True, True], [True, False]]
    assert part.samples.tolist() == [9, 8] and tokens.lengths.tolist() == [3, 1, 2]
    with pytest.raises(UserError, match="needs ids and mask"):
        ModelInput(tokens.ids, tokens.mask[:, :2], tokens.samples)


# ---- corpora: what is read


def test_text_documents_are_paragraphs_or_else_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\nthree")
    (tmp_path / "b.txt").write_text("\nfour\n\u00a0five\n\n")
    assert read(tmp_path / "a.txt") == ["one\ntwo", "three"]
    assert read(tmp_path / "b.txt") == ["four", "\u00a0five"]
    everything = ["one\ntwo", "three", "four", "\u00a0five"]
    assert read(tmp_path) == everything == read(str(tmp_path / "*.txt"))
    assert read([tmp_path / "b.txt", tmp_path / "a.txt"]) == everything[2:] + everything[:2]
    assert read(tmp_path, limit=3) == everything[:3]


def test_jsonl_documents_come_from_the_field(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": 1, "body": "one\\ntwo"}\n\n{"body": " ", "id": 2}\n{"body": "thr\u00e9e", "id": 3}')
    assert read(path, field="body") == ["one\ntwo", "thrée"]
    assert (
        read(path, kind="text", field="body") == read(tmp_path, kind="datasets", field="body") == ["one\ntwo", "thrée"]
    )
    path.rename(tmp_path / "corpus.lines")
    assert read(tmp_path / "corpus.lines", kind="jsonl", field="body") == ["one\ntwo", "thrée"]
    (tmp_path / "corpus.lines").rename(path)
    facts = check_corpus(None, path, field="body")
    assert (facts.kind, facts.documents, facts.complete) == ("jsonl", 2, True)


def test_datasets_directories_parquet_and_splits(tmp_path: Path) -> None:
    train, test = (Dataset.from_dict({"text": [f"{name} {i}" for i in range(4)]}) for name in ("train", "test"))
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "dict")
    train.select([3, 1]).save_to_disk(tmp_path / "saved")
    (tmp_path / "loose").mkdir()
    train.to_parquet(tmp_path / "loose" / "train-00000-of-00001.parquet")
    test.to_parquet(tmp_path / "loose" / "test-00000-of-00001.parquet")
    assert read(tmp_path / "dict") == list(train["text"]) == read(tmp_path / "loose")
    assert read(tmp_path / "dict", split="test") == list(test["text"]) == read(tmp_path / "loose", split="test")
    assert read(tmp_path / "saved") == ["train 3", "train 1"]
    assert read(tmp_path / "loose" / "test-00000-of-00001.parquet") == list(test["text"])
    assert "no split 'tets'; did you mean test? splits: test train" in refused(tmp_path / "dict", split="tets")
    assert "no field 'body'; fields: text" in refused(tmp_path / "dict", field="body")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"short")
    assert "not readable as arrow" in refused(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    assert "incomplete, data-00000-of-00001.arrow is missing" in refused(tmp_path / "saved", kind="datasets")


# ---- corpora: what is refused


def test_faults_of_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("")
    assert refused(path) == (
        f"{path}: empty, at least 2 needed (one is held out); documents are separated by blank lines, or one a line"
    )
    path.write_text("a single line\n")
    assert "only 1 document, at least 2 needed" in refused(path)
    path.write_bytes("\n".join(["plain"] * 3).encode() + b"\ncaf\xe9 \n")
    assert "corpus.txt: not UTF-8 at byte 21 (line 4); convert it, for example: iconv -f latin1" in refused(path)
    path.write_bytes("zwei Zeilen\n".encode("utf-16"))
    assert "UTF-16, not UTF-8; convert it, for example: iconv -f utf-16" in refused(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a" "b"}', "line 2: not JSON (Expecting ',' delimiter at column 14)"),
        ('{"text": "cut of', "line 2: not JSON (Unterminated string"),
        ('{"txt": "a"}', "line 2: no field 'text'; did you mean txt? fields: txt; name the one"),
        ('{"text": 3}', "line 2: field 'text' is a number, expected a string"),
        ('{"text": false}', "line 2: field 'text' is true or false, expected a string"),
        ('["text"]', "line 2: a list, expected an object {…}"),
        ('{"text": "\\ud800"}', "line 2: field 'text' holds half of a surrogate pair"),
        ("[" * 20000, "line 2: not JSON"),
    ],
)
def test_faults_of_jsonl_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f'{{"text": "fine"}}\r\n{line}\r\n{{"text": "fine"}}')
    assert f"corpus.jsonl, {message}" in refused(path)


def test_faults_of_paths_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.txt").write_text("a\nb\n")
    assert f"no such file; did you mean {tmp_path / 'corpus.txt'}?" in refused(tmp_path / "corpsu.txt")
    assert "and no folder" in refused(tmp_path / "there" / "corpus.txt")
    assert "no such file in" in refused(str(tmp_path / "*.md"))
    (tmp_path / "empty").mkdir()
    assert "no .arrow or .jsonl or .ndjson or .parquet or .txt file in this directory" in refused(tmp_path / "empty")
    assert "data.source=texts; did you mean text? choices: datasets jsonl text" in refused(tmp_path, kind="texts")
    assert "which has no splits but train" in refused(tmp_path, split="test")
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\n')
    assert "files of different kinds (text and jsonl)" in refused(tmp_path)
    assert "an empty list" in refused([])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("someone/some-corpus")
    assert (
        "the hub is switched off" in message and "task=prefetch data=datasets data.path=someone/some-corpus" in message
    )
    with pytest.raises(UserError, match="at least 2 needed"):
        read(tmp_path / "corpus.txt", limit=1)


def test_large_corpora_are_checked_at_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "CHECKED_WHOLE", 1000)
    monkeypatch.setattr(corpora, "CHECKED_START", 100)
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"a line\n" * 200 + b"\xff\n")
    facts = check_corpus(None, path)
    assert not facts.complete and 2 <= facts.documents < 20 and facts.bytes == path.stat().st_size
    with pytest.raises(UserError, match="byte 1400"):
        read(path)


def test_the_check_and_the_hash_need_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("a\nb\n")
    code = f"""
import sys
from circuits.data.corpora import check_corpus, content_hash
check_corpus(None, {str(path)!r}); content_hash(None, {str(path)!r})
print({{"torch", "transformers", "datasets"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- corpora: hashes


def test_the_hash_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    text = "".join(f"line {i}\n" for i in range(300_000))  # over the chunk size, so that an end falls on a border
    (one / "a.txt").write_bytes(text.encode())
    (other / "b.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert content_hash(None, one) == content_hash(None, other) == content_hash(None, one / "a.txt")
    (one / "a2.txt").write_text("more\n")
    assert content_hash(None, one) != content_hash(None, other)
    (other / "b.txt").write_bytes(text.replace("7", "8").encode())
    assert content_hash(None, one / "a.txt") != content_hash(None, other)

    (one / "r.jsonl").write_bytes(b'{"text": "\xc3\xa9", "id": 1}\n{"text": "b"}\n')
    (other / "r.jsonl").write_bytes(b'{"id":1,  "text":"\\u00e9"}\r\n\r\n{"text":"b"}')
    assert content_hash(None, one / "r.jsonl") == content_hash(None, other / "r.jsonl")
    (other / "r.jsonl").write_text('{"text": "b"}\n{"id": 1, "text": "é"}\n')
    assert content_hash(None, one / "r.jsonl") != content_hash(None, other / "r.jsonl")


# ---- the text store


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store")
    tokenizer = make_tokenizer(bos_token="<bos>", eos_token="<eos>")
    tokenise(make_documents(400), tokenizer, out, context=16, heldout_fraction=0.2, seed=5)
    return out


def test_contexts_are_the_documents_joined_and_cut(store_dir: Path) -> None:
    facts = json.loads((store_dir / "tokens.json").read_text())
    texts = make_documents(400)
    assert facts["n_documents"] == 400 and facts["n_tokens"] == sum(len(t.split()) + 1 for t in texts)
    assert facts["n_tokens"] == 15 * (facts["n_contexts_train"] + facts["n_contexts_heldout"]) + facts["dropped_tokens"]
    assert 0 <= facts["dropped_tokens"] < 30
    assert 0.1 < facts["n_tokens_heldout"] / facts["n_tokens"] < 0.3
    found: set[int] = set()
    for side in ("train", "heldout"):
        contexts, first = np.load(store_dir / f"{side}.npy"), np.load(store_dir / f"{side}_documents.npy")
        assert contexts.dtype == np.int32 and (contexts[:, 0] == 0).all() and (contexts[:, 1:] != 0).all()
        assert first.shape == (len(contexts),) and (np.diff(first) >= 0).all()
        # The slow way: whole documents between separators must be the corpus's own, and on one side only.
        stream = contexts[:, 1:].reshape(-1)
        ends = np.flatnonzero(stream == 1)
        whole = [stream[a + 1 : b] for a, b in pairwise([-1, *ends])]
        numbers = [texts.index(" ".join(WORDS[token - len(SPECIAL)] for token in tokens)) for tokens in whole]
        assert numbers == sorted(numbers) and not found & set(numbers)
        assert first[0] == numbers[0]
        found |= set(numbers)
    assert 395 <= len(found) <= 400  # the document that the last context cuts is missing on each side


@pytest.mark.parametrize(
    ("special", "start"), [({}, None), ({"eos_token": "<eos>"}, None), ({"bos_token": "<bos>"}, 0)]
)
def test_tokenizers_without_bos_or_eos(tmp_path: Path, special: dict[str, str], start: int | None) -> None:
    facts = tokenise(make_documents(60), make_tokenizer(**special), tmp_path, context=8, heldout_fraction=0.3)
    separators = {None: None, "eos_token": 1, "bos_token": 0}[next(iter(special), None)]
    assert facts["bos"] == start and facts["separator"] == separators
    contexts = np.load(tmp_path / "train.npy")
    assert (contexts[:, 0] == 0).all() if start == 0 else not (contexts == 0).any()


def test_copies_of_a_document_are_on_one_side(tmp_path: Path) -> None:
    texts = make_documents(40) * 5
    tokenise(texts, make_tokenizer(eos_token="<eos>"), tmp_path, context=4, heldout_fraction=0.5, seed=1)
    sides = []
    for side in ("train", "heldout"):
        stream = np.load(tmp_path / f"{side}.npy").reshape(-1)
        ends = np.flatnonzero(stream == 1)
        sides.append({tuple(stream[a + 1 : b]) for a, b in pairwise([-1, *ends])})
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_tokenise_is_the_same_whatever_the_batches_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = make_tokenizer(bos_token="<bos>", eos_token="<eos>"), []
    one, other, part = (tmp_path / name for name in ("one", "other", "part"))
    for out in (one, other, part):
        out.mkdir()
    facts = tokenise(make_documents(100), tokenizer, one, context=16, heldout_fraction=0.2)
    monkeypatch.setattr("circuits.data.textstore._BATCH_CHARACTERS", 300)
    again = tokenise(
        iter(make_documents(100)),
        tokenizer,
        other,
        context=16,
        heldout_fraction=0.2,
        progress=lambda *n: seen.append(n),
    )
    assert facts == again and seen[-1] == (100, facts["n_tokens"]) and len(seen) > 10
    assert all((one / f).read_bytes() == (other / f).read_bytes() for f in ("train.npy", "heldout.npy", "tokens.json"))
    fewer = tokenise(make_documents(100), tokenizer, part, context=16, heldout_fraction=0.2, max_tokens=900)
    assert 900 <= fewer["n_tokens"] < 935
    rows = fewer["n_contexts_train"]
    assert (np.load(part / "train.npy") == np.load(one / "train.npy")[:rows]).all()


def test_too_little_text_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"held-out text has \d+ tokens \(of 8 documents\), fewer than one context of 64"
    ):
        tokenise(make_documents(8), make_tokenizer(eos_token="<eos>"), tmp_path, context=64)
    assert list(tmp_path.iterdir()) == []


def test_blocks_go_through_the_corpus_once_an_epoch(store_dir: Path) -> None:
    store = TextStore(store_dir, seed=3)
    n_train, n = store.facts["n_contexts_train"], 7
    samples = torch.cat([store.block(i, n).samples for i in range(2 * n_train // n + 1)])
    first, second = samples[:n_train], samples[n_train : 2 * n_train]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(n_train)) and not torch.equal(first, second)
    assert store.passes(n_train, n) == pytest.approx(7.0)
    again = TextStore(store_dir, seed=3)
    for index in (9, 2, 2 * n_train // n - 1):  # any order, another process
        block = again.block(index, n)
        assert torch.equal(block.samples, samples[index * n : (index + 1) * n])
        assert block.ids.tolist() == np.load(store_dir / "train.npy")[block.samples.numpy()].tolist()
        assert block.mask.all() and block.ids.dtype == torch.int64
    assert not torch.equal(TextStore(store_dir, seed=4).block(0, n).samples, samples[:n])


def test_heldout_is_disjoint_and_a_prefix_of_more(store_dir: Path) -> None:
    store = TextStore(store_dir, seed=3)
    n_train, n_heldout = store.facts["n_contexts_train"], store.facts["n_contexts_heldout"]
    every = store.heldout(10**6)
    assert sorted(every.samples.tolist()) == list(range(n_train, n_train + n_heldout))
    assert torch.equal(store.heldout(5).ids, every.ids[:5])
    assert store.describe(3).startswith("train context 3, which begins in document ")
    assert store.describe(n_train).startswith("heldout context 0, ")


def test_damage_to_the_store_is_named(store_dir: Path, tmp_path: Path) -> None:
    for file in store_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "train.npy").read_bytes()
    (tmp_path / "train.npy").write_bytes(whole[:-100])
    with pytest.raises(Damaged, match=r"train\.npy: truncated or altered"):
        TextStore(tmp_path)
    (tmp_path / "train.npy").write_bytes(b"\x00" * 200)
    with pytest.raises(Damaged, match=r"train\.npy: truncated or altered"):
        TextStore(tmp_path)
    (tmp_path / "train.npy").write_bytes((tmp_path / "heldout.npy").read_bytes())
    with pytest.raises(Damaged, match="its facts say"):
        TextStore(tmp_path)
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(Damaged, match=r"tokens\.json: damaged"):
        TextStore(tmp_path)
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(Damaged, match=r"tokens\.json: missing"):
        TextStore(tmp_path)


@pytest.mark.parametrize(("dtype", "shape"), [("int32", (5,)), ("float16", (2, 3)), ("int64", ())])
def test_npy_written_by_rows_is_npy(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    rows = np.arange(11 * int(np.prod(shape))).reshape(11, *shape).astype(dtype)
    writer = NpyWriter(tmp_path / "x.npy", np.dtype(dtype), shape)
    for part in np.split(rows, [0, 3, 4]):
        writer.append(part)
    assert not (tmp_path / "x.npy").exists()
    writer.close()
    assert (np.load(tmp_path / "x.npy") == rows).all() and (open_npy(tmp_path / "x.npy", rows.shape) == rows).all()
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]
