"""Pictures from a directory of the `datasets` library: the same set as from a table, in whatever form it was saved."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli
from PIL import Image

from circuits.data.pictures import dataset, saved, table
from circuits.errors import UserError
from circuits.store.contents import Contents

BOTH = ("english", "arabic")
N = 9


def picture(i: int) -> bytes:
    """A PNG whose colour says its number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (i * 20, 50, 90)).save(file, "PNG")
    return file.getvalue()


def made(rows: range = range(N), **columns: Any) -> datasets.Dataset:
    """Pictures with captions; every third shows a woman."""
    who = [("a woman", "امرأة") if i % 3 == 0 else ("a man", "رجل") for i in rows]
    data = {
        "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in rows],
        "en_caption": [[one, f"{one} at work"] for one, _ in who],
        "ar_caption": [two for _, two in who],
        "place": [i % 2 for i in rows],
        **columns,
    }
    return (
        datasets.Dataset.from_dict(data)
        .cast_column("image", datasets.Image())
        .cast_column("place", datasets.ClassLabel(names=["kitchen", "street"]))
    )


def on_disk(folder: Path) -> Path:
    made().save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def of_splits(folder: Path) -> Path:
    both = {"train": made(range(6)), "test": made(range(6, N))}
    datasets.DatasetDict(both).save_to_disk(folder / "splits")
    return folder / "splits"


def parquet(folder: Path) -> Path:
    (folder / "data").mkdir()
    for name, rows in (("train-00000-of-00002", range(4)), ("train-00001-of-00002", range(4, N))):
        made(rows).to_parquet(folder / "data" / f"{name}.parquet", batch_size=2)
    return folder / "data"


def one_file(folder: Path) -> Path:
    made().to_parquet(folder / "all.parquet")
    return folder / "all.parquet"


def read(path: Path, **options: Any) -> table.Built:
    given = {"n": None, "n_test": None, "seed": 0, "max_broken": 0.0, **options}
    return table.read(path, path if path.is_dir() else path.parent, BOTH, **given)


def quietly(folder: Path, make: Callable[[Path], Path]) -> Path:
    """Made without a progress bar or a cache in the home."""
    datasets.disable_progress_bars()
    return make(folder)


@pytest.mark.parametrize("make", [on_disk, of_splits, parquet, one_file])
def test_a_dataset_is_read_in_every_form_and_its_pictures_stay_where_they_are(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    built = read(quietly(tmp_path, make))
    found = {p.id: p for p in built.pictures}
    assert set(found) == {f"{i}.png" for i in range(N)} and not built.findings
    for i in range(N):
        one = found[f"{i}.png"]
        assert one.label == ("female" if i % 3 == 0 else "male") and len(one.captions["english"]) == 2
        assert one.factors["place"] == ("street" if i % 2 else "kitchen"), "a class label goes by its name"
    tests = {name for name, one in found.items() if one.split == "test"}
    assert len(tests) == 3 and (make is not of_splits or tests == {"6.png", "7.png", "8.png"})
    (tmp_path / "set").mkdir()
    saved.write(tmp_path / "set", built.pictures, {"languages": list(BOTH)})
    again = saved.read(tmp_path / "set")
    for i, one in enumerate(again):
        assert np.asarray(again.image(i))[0, 0].tolist() == [20 * int(one.id.split(".")[0]), 50, 90]
    assert not [path for path in (tmp_path / "set").iterdir() if path.suffix in (".png", ".npy")], "no copies"


def unnamed(rows: range) -> datasets.Dataset:
    """As a dataset of PIL images is saved: bytes without a name."""
    return made(rows, image=[{"bytes": picture(i), "path": None} for i in rows])


def colours(built: table.Built, folder: Path) -> list[int]:
    """Which pictures a set shows, in its order, as they are opened again."""
    folder.mkdir()
    saved.write(folder, built.pictures, {"languages": list(BOTH)})
    found = saved.read(folder)
    return [np.asarray(found.image(i))[0, 0, 0] // 20 for i in range(len(found))]


def test_pictures_are_told_apart_by_their_bytes_and_not_by_names_that_repeat(tmp_path: Path) -> None:
    quietly(tmp_path, lambda _: tmp_path)
    both = {"train": unnamed(range(6)), "test": unnamed(range(6, N))}  # both splits' files have one name
    datasets.DatasetDict(both).save_to_disk(tmp_path / "pil")
    built = read(tmp_path / "pil")
    assert sorted(colours(built, tmp_path / "a")) == list(range(N))
    assert [p.split for p in built.pictures] == ["train"] * 6 + ["test"] * 3
    for i, name in enumerate(("a", "b")):  # an image folder: names begin anew in each class
        rows = range(4 * i, 4 * i + 4)
        some = made(rows, image=[{"bytes": picture(r), "path": f"{r % 4}.png"} for r in rows])
        some.to_parquet(tmp_path / "folder" / name / "0000.parquet")
    assert sorted(colours(read(tmp_path / "folder"), tmp_path / "b")) == list(range(8))
    twice = [0, 1, 2, 2, 3, 3]
    one_a_caption = {"image": [{"bytes": picture(i), "path": None} for i in twice], "image_id": twice}
    captions = {"en_caption": [f"a man {n}" for n in range(6)], "ar_caption": ["رجل"] * 6}
    made(range(6), **one_a_caption, **captions).to_parquet(tmp_path / "rows" / "all.parquet")
    found = {p.id: p for p in read(tmp_path / "rows").pictures}
    assert {name: len(p.captions["english"]) for name, p in found.items()} == {"0": 1, "1": 1, "2": 2, "3": 2}
    one_a_caption["image"][3] = {"bytes": picture(8), "path": None}
    made(range(6), **one_a_caption, **captions).to_parquet(tmp_path / "rows" / "all.parquet")
    with pytest.raises(UserError, match=r"row 3: image_id 2 has another picture here than at .*row 2"):
        read(tmp_path / "rows")


def test_of_the_columns_only_words_and_numbers_become_factors(tmp_path: Path) -> None:
    quietly(tmp_path, lambda _: tmp_path)
    more = {"mask": [{"bytes": picture(0), "path": None}] * N, "vector": [[0.5] * 8] * N, "shot": [1] * N}
    whole = made(**more).cast_column("mask", datasets.Image())
    labels = pa.array([-1, 7, *[0] * (N - 2)])
    whole.to_parquet(tmp_path / "d" / "all.parquet")
    kept = pq.read_table(tmp_path / "d" / "all.parquet")
    at = kept.column_names.index("place")
    pq.write_table(kept.set_column(at, kept.field(at), [labels]), tmp_path / "d" / "all.parquet")
    found = {p.id: p.factors for p in read(tmp_path / "d").pictures}
    assert found["0.png"] == found["1.png"] == {"shot": "1"}, "-1 is no label, and neither is what has no name"
    assert found["2.png"] == {"shot": "1", "place": "kitchen"}


def test_rows_with_and_without_bytes_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "d" / "images").mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for i in range(N):
        (tmp_path / "d" / "images" / f"{i}.png").write_bytes(picture(i))
    mixed = [{"bytes": picture(i) if i % 2 else None, "path": f"images/{i}.png"} for i in range(N)]
    captions = {"en_caption": ["a man"] * N, "ar_caption": ["رجل"] * N}
    pq.write_table(
        pa.table({"image": pa.array(mixed, kind), **captions}), tmp_path / "d" / "a.parquet", row_group_size=4
    )
    built = read(tmp_path / "d")
    assert [p.row for p in built.pictures] == [i if i % 2 else None for i in range(N)]
    assert colours(built, tmp_path / "set") == list(range(N))
    pq.write_table(
        pa.table({"image": pa.array([], kind), "en_caption": [], "ar_caption": []}), tmp_path / "d" / "a.parquet"
    )
    with pytest.raises(UserError, match="no row in it"):
        read(tmp_path / "d")
    assert dataset.encoded(tmp_path / "d" / "a.parquet", 3) is None


def test_planning_reads_no_bytes_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (on_disk, parquet):
        path = quietly(tmp_path, make)
        with monkeypatch.context() as m:
            m.setattr(dataset, "encoded", lambda *_: pytest.fail("a picture was read"))
            assert len(list(table.rows(path))) == N


def test_hidden_folders_and_where_a_dataset_lies_are_no_part_of_it(tmp_path: Path) -> None:
    path = quietly(tmp_path, parquet)
    shutil.copytree(path, tmp_path / "test" / "data")
    (path / ".ipynb_checkpoints").mkdir()
    shutil.copy(next(path.glob("*.parquet")), path / ".ipynb_checkpoints" / "train-checkpoint.parquet")
    assert len(list(table.rows(path))) == N and Contents().records(path) == Contents().records(
        tmp_path / "test" / "data"
    )


def test_pictures_that_a_dataset_only_names_are_files(tmp_path: Path) -> None:
    (tmp_path / "saved" / "images").mkdir(parents=True)
    for i in range(N):
        (tmp_path / "saved" / "images" / f"{i}.png").write_bytes(picture(i))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = [f"images/{i}.png" for i in range(N)]
    rest = {"en_caption": ["a man"] * N, "ar_caption": ["رجل"] * N}
    for column in (pa.array([{"bytes": None, "path": one} for one in paths], kind), pa.array(paths)):
        name = "image_path" if pa.types.is_string(column.type) else "image"
        pq.write_table(pa.table({name: column, **rest}), tmp_path / "saved" / "all.parquet")
        built = read(tmp_path / "saved")
        assert [p.row for p in built.pictures] == [None] * N
        assert [Path(str(p.file)) for p in built.pictures] == [tmp_path / "saved" / one for one in paths]


def test_what_a_dataset_lacks_or_has_twice_is_one_line(tmp_path: Path) -> None:
    quietly(tmp_path, lambda _: tmp_path)
    whole = made()
    broken = made(image=[{"bytes": b"no picture" if i == 4 else picture(i), "path": f"{i}.png"} for i in range(N)])
    two = whole.rename_column("image", "a").add_column("b", [picture(i) for i in range(N)])
    faults = {
        "none": (whole.remove_columns("image"), r"no column of images; columns: en_caption ar_caption place; call it"),
        "two": (two, r"several columns of images \(a b\)"),
        "caption": (whole.remove_columns("ar_caption"), r"no column ar_caption; did you mean en_caption"),
        "broken": (broken, r"1 of 9 pictures cannot be used .*4\.png \(.*row 4\): no picture"),
    }
    for name, (one, told) in faults.items():
        one.to_parquet(tmp_path / name / "all.parquet")
        with pytest.raises(UserError, match=told) as e:
            read(tmp_path / name)
        assert "\n" not in str(e.value)
    cut = on_disk(tmp_path)
    shard = next(cut.glob("*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=r"\.arrow: (damaged|not readable)"):
        read(cut)
    shard.unlink()
    with pytest.raises(UserError, match=r"incomplete, data-0000.*\.arrow is missing; save or download it again"):
        read(cut)


def test_a_picture_that_changed_in_its_dataset_is_refused(tmp_path: Path) -> None:
    path = quietly(tmp_path, one_file)
    built = read(path)
    (tmp_path / "set").mkdir()
    saved.write(tmp_path / "set", built.pictures, {"languages": list(BOTH)})
    made(image=[{"bytes": picture(i + 1), "path": f"{i}.png"} for i in range(N)]).to_parquet(path)
    found = saved.read(tmp_path / "set")
    with pytest.raises(UserError, match=r"all\.parquet: the picture of 0\.png has changed since it was prepared"):
        found.image(0)


def test_a_dataset_enters_keys_by_its_content_and_a_directory_of_text_is_none(tmp_path: Path) -> None:
    path = quietly(tmp_path, on_disk)
    shutil.copytree(path, tmp_path / "copy")
    assert Contents().records(path) == Contents().records(tmp_path / "copy")
    made(range(1, N + 1)).save_to_disk(tmp_path / "other", num_shards=2)
    assert Contents().records(path) != Contents().records(tmp_path / "other")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a man")
    assert not dataset.is_dataset(tmp_path / "text") and dataset.is_dataset(path)
    with pytest.raises(UserError, match="no such file"):
        Contents().records(tmp_path / "text")


def test_from_the_command_line(cli: Cli) -> None:
    path = quietly(cli.folder, of_splits)
    asked = ["task=prompts", "behaviour=gender_bias", f"behaviour.path={path}", "tracking=off"]
    done = cli(*asked)
    assert done.code == 0 and "6      3" in done.out, done.err + done.out
    assert "cached" in cli(*asked).out
    refused = cli(*asked[:2], "behaviour.path=.", "tracking=off")
    assert refused.code == 2 and len(refused.errors) == 1 and "Traceback" not in refused.err, refused.err
    text = cli("task=prompts", f"behaviour={path}", "tracking=off")
    assert text.code == 2 and "Traceback" not in text.err, text.err
