"""Sets of pictures: what captions say of gender, tables read and refused, splits, drawn scenes, their rows in a model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from picture_fixtures import BOTH
from PIL import Image

from circuits.activations.heldout import HeldoutPass
from circuits.activations.pictures import PictureRows, PictureSamples, PictureSource
from circuits.data.pictures import lexicon, saved, table
from circuits.errors import UserError
from circuits.features.collect import Fresh
from circuits.model_input import Later, joined, made
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.tiny.vision import scenes, spec
from circuits.tiny.vision.drawing import draw

# -- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("A woman and a child", "english", "female"),
        ("The mankind manual for manners", "english", "unknown"),
        ("Two men watch a woman", "english", "mixed"),
        ("HE holds it", "english", "male"),
        ("والرجل في الورشة", "arabic", "male"),
        ("للمرأة كتاب", "arabic", "female"),
        ("بالرَّجُلِ", "arabic", "male"),  # vowel signs are none of the word
        ("طفل يلعب", "arabic", "unknown"),  # a child is no man
        ("رجله مكسورة", "arabic", "unknown"),  # inside another word
        ("كبيرة أم صغيرة", "arabic", "unknown"),  # "or"
        ("الأم في المطبخ", "arabic", "female"),  # "the mother"
        ("كتبت قصيدة جميلة", "arabic", "unknown"),  # feminine verb and adjective: the grammar's, not a person's
    ],
)
def test_captions_are_labelled_by_whole_words(text: str, language: str, said: str) -> None:
    assert lexicon.label(text, language) == said


def test_a_picture_s_captions_vote_and_languages_must_agree() -> None:
    assert lexicon.vote(["male", "unknown", "male", "female"]) == "male"
    assert lexicon.vote(["male", "female"]) == "mixed" and lexicon.vote(["unknown"]) == "unknown"
    assert lexicon.together({"english": "male", "arabic": "unknown"}) == "male"
    assert lexicon.together({"english": "male", "arabic": "female"}) == "mixed"
    assert lexicon.themes(["a woman in a red dress", "the womanly robe"])["people"] == 1, (
        "woman is there as a word, once"
    )


# -- tables ------------------------------------------------------------------------------------------------------

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table and its pictures: rows of (file, English, Arabic)."""

    def made(
        rows: list[tuple[str, str, str]], header: str = "image_path,en_caption,ar_caption", **files: bytes
    ) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, name in enumerate(dict.fromkeys(row[0] for row in rows)):
            if name not in files:
                Image.new("RGB", (8, 8), (number * 7 % 256, number // 36, 50)).save(tmp_path / "images" / name)
        for name, content in files.items():
            (tmp_path / "images" / name).write_bytes(content)
        with (tmp_path / "samples.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return tmp_path / "samples.csv"

    return made


def read(path: Path, **options: object) -> table.Built:
    given = {"n": None, "n_test": None, "seed": 0, "max_broken": 0.0, **options}
    return table.read(path, path.parent / "images", given.pop("languages", BOTH), **given)  # type: ignore[arg-type]


def test_rows_of_one_picture_are_one_sample_with_several_captions(write: Write) -> None:
    rows = [(f"{i}.png", "a man runs", "رجل يجري") for i in range(6)] + [
        ("0.png", "he rests", "يرتاح"),
        ("1.png", "a woman", "امرأة"),
    ]
    found = {p.id: p for p in read(write(rows)).pictures}
    assert len(found) == 6 and found["0.png"].captions["english"] == ["a man runs", "he rests"]
    assert found["0.png"].label == "male" and found["1.png"].label == "mixed"
    assert {p.split for p in found.values()} == {"train", "test"} and sum(
        p.split == "test" for p in found.values()
    ) == 2


def test_a_caption_that_stands_twice_has_one_vote(write: Write) -> None:
    rows = [(f"{i}.png", "a man", "رجل") for i in range(4)]
    more = [("0.png", "a woman", "امرأة"), ("0.png", "a woman", "امرأة"), ("0.png", "a woman", "امرأة")]
    once, twice = read(write([*rows, more[0]])).pictures, read(write([*rows, *more])).pictures
    assert [(p.label, p.labels, p.captions) for p in once] == [(p.label, p.labels, p.captions) for p in twice]


def test_equal_files_are_one_picture_and_duplicated_rows_change_nothing(write: Write) -> None:
    rows = [(f"{i}.png", "a man", "رجل") for i in range(8)]
    once, twice = read(write(rows)).pictures, read(write(rows + rows)).pictures
    assert [(p.id, p.split, p.label) for p in once] == [(p.id, p.split, p.label) for p in twice]
    content = (write(rows).parent / "images" / "0.png").read_bytes()
    copies = read(write([*rows, ("copy.png", "a woman", "امرأة")], **{"copy.png": content}))
    assert len(copies.pictures) == 8 and copies.left_out["copies"] == 1 and "(copy.png of 0.png)" in copies.findings[0]
    assert next(p for p in copies.pictures if p.id == "0.png").label == "mixed", "its captions count as that picture's"


def test_broken_and_missing_pictures_are_named_counted_and_refused_above_the_threshold(write: Write) -> None:
    rows = [(f"{i}.png", "a man", "رجل") for i in range(10)]
    path = write(rows, **{"3.png": b"no picture"})
    (path.parent / "images" / "5.png").unlink()
    with pytest.raises(
        UserError, match=r"2 of 10 pictures cannot be used \(20\.0%; behaviour\.max_broken=0\.1\): .*3\.png.*no picture"
    ):
        read(path, max_broken=0.1)
    found = read(path, max_broken=0.2)
    assert len(found.pictures) == 8 and found.left_out["broken"] == 2 and "missing" in found.findings[0]


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        ([("a.png", "x", "y")], "image_pth,en_caption,ar_caption", r"no column image_path; did you mean image_pth"),
        (
            [("a.png", "x", "")],
            "image_path,en_caption,ar_caption",
            r"no caption in arabic; fill ar_caption, or leave it out",
        ),
        ([("a.png", "x")], "image_path,en_caption", r"no column ar_caption; did you mean en_caption"),
        ([("", "x", "y")], "image_path,en_caption,ar_caption", r"line 2: image_path is empty"),
    ],
)
def test_a_table_that_says_too_little_is_refused(
    write: Write, rows: list[tuple[str, str, str]], header: str, told: str
) -> None:
    (write([("a.png", "x", "y")])).unlink()
    path = write([row for row in rows if row[0]] or [("a.png", "x", "y")], header)
    if not rows[0][0]:
        path.write_text("image_path,en_caption,ar_caption\n,x,y\n")
    with pytest.raises(UserError, match=told):
        read(path)


def test_a_file_that_is_not_utf_8_says_where(write: Write) -> None:
    path = write([("a.png", "x", "y")])
    path.write_bytes(b"image_path,en_caption,ar_caption\na.png,caf\xe9,y\n")
    with pytest.raises(UserError, match=r"not UTF-8 at byte .* \(line 2\)"):
        read(path)


def nine(write: Write) -> list[str]:
    """The words that ask for a set of nine pictures of one's own."""
    path = write([(f"{i}.png", "a man", "رجل") for i in range(9)])
    return [
        "task=prompts",
        "behaviour=gender_bias",
        f"behaviour.path={path}",
        f"behaviour.images={path.parent / 'images'}",
    ]


def test_all_of_a_table_is_taken_where_nobody_says_how_many(cli: Cli, write: Write) -> None:
    asked = nine(write)
    done = cli(*asked, "tracking=off")
    assert done.code == 0 and "6      3" in done.out, done.err + done.out
    done = cli(*asked, "behaviour.n_samples=8", "behaviour.n_test=3", "tracking=off")
    assert done.code == 1 and "6 train pictures of 9, behaviour.n_samples=8 asks for more" in done.err, done.err


def test_the_words_that_are_compared_are_named_for_pictures_of_one_s_own(cli: Cli, write: Write) -> None:
    asked = nine(write)
    done = cli(
        *asked,
        "behaviour.words={english: [strong, [gentle, gentler]], arabic: [['قوي', 'قوية'], 'لطيف']}",
        "tracking=off",
    )
    assert done.code == 0, done.err
    (made,) = cli.artifacts("prompts")
    assert saved.read(made).meta["words"] == {
        "english": [["strong"], ["gentle", "gentler"]],
        "arabic": [["قوي", "قوية"], ["لطيف"]],
    }
    for value, told in (
        ("{english: strong}", "english: two words, each one form or a list of forms, not strong"),
        ("{french: [fort, doux]}", "behaviour.words: french: languages: english arabic"),
        ("strong", "{english: [strong, gentle]} is wanted"),
    ):
        refused = cli(*asked, f"behaviour.words={value}", "tracking=off")
        assert refused.code == 2 and told in refused.err and len(refused.errors) == 1, refused.err
    drawn = cli(
        "task=prompts", "behaviour=gender_bias", "model=tiny_vlm", "behaviour.words={english: [a, b]}", "tracking=off"
    )
    assert drawn.code == 2 and "behaviour.path=FILE.csv does" in drawn.err, drawn.err


def test_a_picture_that_changed_after_it_was_prepared_is_refused(write: Write, tmp_path: Path) -> None:
    built = read(write([(f"{i}.png", "a man", "رجل") for i in range(4)]))
    saved.write(tmp_path, built.pictures, {"languages": list(BOTH)})
    found = saved.read(tmp_path)
    assert found.image(0).size == (8, 8) and found.image(0, "blank").getpixel((0, 0)) == (128, 128, 128)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match=r"0\.png: .*has changed since it was prepared"):
        found.image(0)


# -- drawn scenes ------------------------------------------------------------------------------------------------


def test_twins_differ_in_the_person_alone_and_the_biases_are_as_strong_as_they_are_said() -> None:
    one = scenes.scene(0, "train", 3)
    man, woman, behind = draw(one.as_("male")), draw(one.as_("female")), draw(one, person=False)
    differs = (man != woman).any(-1)
    assert differs.any() and differs[:, 20 if one.column < 12 else slice(0, 3)].sum() == 0
    assert np.array_equal(man[~(man != behind).any(-1)], behind[~(man != behind).any(-1)])
    shares: dict[str, list[bool]] = {"male": [], "female": []}
    words_said: dict[str, list[bool]] = {"male": [], "female": []}
    for number in range(1500):
        scene = scenes.scene(1, "train", number)
        for said, text in scenes.captions(scene, 0, 1, 0.5, 0.8):
            if scene.at.coded != "neutral":
                shares[scene.at.coded].append(said.gender == "male")
            assert lexicon.label(text["english"], "english") == lexicon.label(text["arabic"], "arabic") == said.gender
        for gender in ("male", "female"):
            for said, _ in scenes.captions(scene.as_(gender), 0, 1, 0.5, 0.8):  # type: ignore[arg-type]
                assert said.gender == gender, "what is seen is said"
                words_said[gender].append(said.look == "strong")
    assert np.mean(shares["male"]) - np.mean(shares["female"]) == pytest.approx(0.5, abs=0.08)
    assert np.mean(words_said["male"]) - np.mean(words_said["female"]) == pytest.approx(0.8, abs=0.05)


def test_rows_are_what_the_processor_makes_and_no_group_is_on_both_sides(seeing: tuple[LM, saved.PictureSet]) -> None:
    lm, pictures = seeing
    assert not {p.group for p in pictures if p.split == "train"} & {p.group for p in pictures if p.split == "test"}
    rows = PictureRows(pictures, lm)
    text = rows.text(0, "arabic")
    whole = lm.processor(text=[text], images=[[pictures.image(0)]], return_tensors="pt")
    mine = rows.rows([text], [0])
    assert torch.equal(mine.ids, whole["input_ids"]) and torch.equal(
        mine.extra["token_type_ids"], whole["token_type_ids"]
    )
    assert torch.allclose(made(mine.extra["pixel_values"]), whole["pixel_values"])
    assert int(mine.shown.sum()) == spec.IMAGE_TOKENS and not (mine.predicted & mine.shown).any()  # type: ignore[union-attr]


def test_padding_batch_and_order_change_nothing_with_pictures(seeing: tuple[LM, saved.PictureSet]) -> None:
    lm, pictures = seeing
    rows = PictureRows(pictures, lm)
    parts = [rows.rows([rows.text(i, language)], [i], [i]) for i in range(3) for language in BOTH]
    alone = [forward(lm, part, capture=[("resid_post", 1)], logits="last") for part in parts]
    together = joined(parts).take(torch.tensor([4, 1, 5, 0, 3, 2]))
    batch = forward(lm, together, capture=[("resid_post", 1)], logits="last")
    for place, number in enumerate([4, 1, 5, 0, 3, 2]):
        n = int(parts[number].mask.sum())
        assert torch.allclose(batch.read[place], alone[number].read[0], atol=1e-5)
        assert torch.allclose(
            batch.sites["resid_post", 1][place, :n], alone[number].sites["resid_post", 1][0], atol=1e-5
        )


def test_pixels_are_made_for_one_pass_at_a_time(
    seeing: tuple[LM, saved.PictureSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, pictures = seeing
    seen: list[int] = []
    rows = PictureRows(pictures, lm)
    monkeypatch.setattr(rows, "pixels", lambda i: (seen.append(i), torch.zeros(3, 32, 32))[1])
    block = PictureSource(rows, seed=0).block(0, 40)
    chunk = joined([block.take(slice(0, 3)), block.take(torch.tensor([7, 5]))])
    assert not seen and isinstance(chunk.extra["pixel_values"], Later), "a block of pictures is no pixels yet"
    forward(lm, chunk, capture=[("resid_post", 0)])
    assert seen == [int(block.samples[i]) for i in (0, 1, 2, 7, 5)]
    with pytest.raises(UserError, match="different sets"):
        joined([chunk, PictureSource(PictureRows(pictures, lm), seed=0).block(0, 2)])


def test_the_stream_of_pictures_is_a_function_of_the_block_and_holds_no_test_picture(
    seeing: tuple[LM, saved.PictureSet],
) -> None:
    lm, pictures = seeing
    rows = PictureRows(pictures, lm)
    source = PictureSource(rows, seed=1)
    again = PictureSource(PictureRows(pictures, lm), seed=1)
    assert torch.equal(source.block(3, 20).ids, again.block(3, 20).ids)
    block = source.block(0, 60)
    told = lm.tokenizer.decode(block.ids[0][block.predicted[0]].tolist(), skip_special_tokens=True)
    assert any(told.replace(" ", "").startswith(word) for word in ("man", "woman", "رجل", "امرأة")), (
        "the answer alone is predicted"
    )
    seen = block.samples.tolist()
    assert sorted(seen) == sorted([i for i in pictures.where("train") for _ in BOTH]), (
        "each picture and language once a pass"
    )
    assert not set(seen) & set(source.heldout(100).samples.tolist()) and len(source.heldout(100)) == 24
    assert source.passes(1, 60) == 1.0 and source.context == max(int(source.block(0, 60).lengths.max()), source.context)


def test_pictures_with_one_caption_are_examples_each(seeing: tuple[LM, saved.PictureSet]) -> None:
    """A caption says only a part of a picture; the same picture with the same caption is no further example."""
    lm, pictures = seeing
    found = HeldoutPass(lm, PictureSource(PictureRows(pictures, lm), seed=1), site="resid_post", layers=[0])
    fresh, told, chunks = Fresh(), [], list(found.heldout(24, chunk=10))
    for chunk in chunks:
        told += fresh(chunk.tokens.ids, chunk.tokens.mask, chunk.tokens.beside).tolist()
    assert told == [True] * 24, "every picture, in each language"
    assert not any(fresh(one.tokens.ids, one.tokens.mask, one.tokens.beside).any() for one in chunks)
    texts = Fresh()
    assert sum(int(texts(one.tokens.ids, one.tokens.mask).sum()) for one in chunks) < 24, "captions repeat"


def test_samples_know_their_language_and_factors(seeing: tuple[LM, saved.PictureSet]) -> None:
    lm, pictures = seeing
    samples = PictureSamples(PictureRows(pictures, lm), "english")
    columns = samples.columns(0, 3)
    assert columns["language"] == ["english"] * 3 and columns["factor.seen"] == ["male", "female", "unseen"]
    with pytest.raises(UserError, match=r"activations\.language=french: the pictures are asked in english arabic"):
        PictureSamples(PictureRows(pictures, lm), "french")


def test_a_language_model_is_asked_for_no_pictures(seeing: tuple[LM, saved.PictureSet]) -> None:
    from small_models import build

    with pytest.raises(UserError, match=r"takes no pictures; choose a vision-language model"):
        PictureRows(seeing[1], build("qwen2"))


# -- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task=interventions", "behaviour=gender_bias", "model=tiny_vlm"], r"pictures have units=captions"),
        (
            ["task=attribution", "behaviour=gender_bias", "model=tiny_vlm"],
            r"reads prompts of text; tasks for pictures: activations",
        ),
        (
            ["task=prompts", "behaviour=gender_bias"],
            r"behaviour=gender_bias: model=tiny needs pictures: behaviour\.path=FILE\.csv",
        ),
        (
            ["task=prompts", "behaviour=ioi", "model=tiny_vlm"],
            r"model=tiny_vlm is asked about pictures; choose behaviour=gender_bias",
        ),
        (
            ["task=sae", "model=tiny_vlm"],
            r"data=embedded: sentences that model=tiny_vlm has not learned; choose data=pictures",
        ),
        (["task=bias_stats"], r"task=bias_stats compares pictures: behaviour=gender_bias"),
        (
            ["task=prompts", "behaviour=gender_bias", "model=tiny_vlm", "behaviour.languages=french"],
            r"languages: english arabic",
        ),
        (
            ["task=activations", "behaviour=gender_bias", "model=tiny_vlm", "precision=fp16"],
            r"precision=fp16: activations of gemma3",
        ),
        (
            ["task=baseline", "behaviour=gender_bias", "behaviour.path=/dev/null"],
            r"is a language model \(qwen2\) and takes no",
        ),
        (["task=baseline", "activations.select=image"], r"activations\.select: task=baseline does not read it"),
        (
            ["task=bias_stats", "behaviour=gender_bias", "model=tiny_vlm", "data=pictures", "bias_stats.where=seen"],
            r"FACTOR:VALUE",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(cli: Cli, words: list[str], told: str) -> None:
    import re

    done = cli(*words, "tracking=off")
    assert done.code == 2 and any(re.search(told, line) for line in done.errors), done.err


@pytest.mark.parametrize(("select", "tokens"), [("all", None), ("image", 4), ("text", None), ("last", 1), ("mean", 1)])
def test_the_tokens_that_are_asked_for_are_kept(
    seeing: tuple[LM, saved.PictureSet], tmp_path: Path, select: str, tokens: int | None
) -> None:
    from circuits.activations.capture import Plan, capture
    from circuits.activations.pieces import Pieces
    from circuits.activations.rows import write as write_rows

    lm, pictures = seeing
    samples = PictureSamples(PictureRows(pictures, lm), "english")
    plan = Plan(batch_size=4, select=select)
    capture(lm, samples, {("resid_post", 1): tmp_path / "part"}, plan)
    pieces = Pieces(tmp_path / "part", np.dtype(np.float32), lm.dims.width)
    (tmp_path / "out").mkdir()
    pieces.write(tmp_path / "out")
    values = np.load(tmp_path / "out" / "values.npy", allow_pickle=False)
    whole = forward(lm, samples.window(0, 3), capture=[("resid_post", 1)])
    row = whole.sites["resid_post", 1][0]
    first = samples.window(0, 1)
    length, shown = int(first.lengths[0]), first.shown[0]  # type: ignore[index]
    wanted = {
        "all": row[:length], "image": row[:length][shown[:length]], "text": row[:length][~shown[:length]],
        "last": row[length - 1 : length], "mean": row[:length].mean(0, keepdim=True),
    }[select]  # fmt: skip
    assert tokens is None or len(wanted) == tokens
    assert np.allclose(values[: len(wanted)], wanted.numpy(), atol=1e-5) and len(values) == len(wanted) * len(pictures)
    write_rows(tmp_path / "rows.parquet", samples, plan, set())
    import pandas as pd

    index = pd.read_parquet(tmp_path / "rows.parquet")
    assert len(index) == len(values) and set(index["language"]) == {"english"}
    assert set(index["token_type"]) == (
        {"image"} if select == "image" else {"text"} if select != "all" else {"image", "text"}
    )
