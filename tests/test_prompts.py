"""Prompt sets: drawn or read, split by group, balanced, tokenised with care, refused by line, keyed by their content."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from configs import key
from conftest import Cli
from prompt_sets import END, animals, bpe, digit_bpe, save_model, write_jsonl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from circuits.command import overrides
from circuits.data import prompts
from circuits.data.behaviours import BEHAVIOURS
from circuits.data.prompt_build import Built, Wanted, from_behaviour, from_file
from circuits.data.prompt_records import Record
from circuits.data.prompt_tokens import Encoder
from circuits.errors import Damaged, UserError
from circuits.schema.behaviour import PICTURES
from circuits.store import places
from circuits.store.contents import Contents
from circuits.tiny.spec import vocabulary
from circuits.tiny.tokenizer import build_tokenizer

CHAT = "{{ bos_token }}Q: {{ messages[0]['content'] }}\nA:"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(vocabulary(), 128)


def draw(name: str, wording: Any = "embedded", seed: int = 0, **wanted: Any) -> Built:
    encoder = Encoder(tiny_tokenizer() if wording == "embedded" else bpe())
    return from_behaviour(name, wording, encoder, Wanted(**{"n_train": 40, "n_test": 12, "seed": seed, **wanted}))


# -- drawn sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wording", ["embedded", "natural"])
@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_a_drawn_set_is_what_was_asked_for_disjoint_and_balanced(name: str, wording: str) -> None:
    built = draw(name, wording)
    found, sides = built.prompts, {s: [p for p in built.prompts if p.split == s] for s in ("train", "test")}
    assert {side: len(mine) for side, mine in sides.items()} == {"train": 40, "test": 12}
    assert not {p.group for p in sides["train"]} & {p.group for p in sides["test"]}
    assert len({p.prompt for p in found}) == len({p.id for p in found}) == 52
    targets, foils = Counter(p.target for p in found), Counter(p.foil for p in found)
    assert max(abs(targets[a] - foils[a]) for a in {*targets, *foils}) <= 0.15 * len(found), (
        "a constant preference cancels"
    )
    assert all(len(p.target_ids) == len(p.foil_ids) == 1 and len(p.ids) == len(p.corrupt_ids or ()) for p in found)
    assert built.lint["findings"] == [] and built.lint["left_out"]["answers"] == []


def test_equal_arguments_give_equal_sets_and_another_seed_another_set() -> None:
    assert draw("ioi") == draw("ioi")
    assert draw("ioi").prompts != draw("ioi", seed=1).prompts


def test_more_prompts_than_there_are_is_an_error_unless_small_sets_are_allowed() -> None:
    with pytest.raises(
        UserError, match=r"behaviour=arithmetic: 5,000 different train prompts .* behaviour.allow_small=true"
    ):
        draw("arithmetic", n_train=5000)
    assert 200 < len(draw("arithmetic", n_train=5000, allow_small=True).prompts) <= 400


def test_every_behaviour_is_a_choice_on_the_command_line() -> None:
    assert set(places.choices("behaviour")) == {*BEHAVIOURS, *PICTURES, "file"}


def test_a_generator_draws_others_for_answers_of_several_tokens_and_says_how_many() -> None:
    encoder = Encoder(bpe(600))
    dropped = from_behaviour("grammar_agreement", "natural", encoder, Wanted(20, 5, 0))
    assert all(len(p.target_ids) == len(p.foil_ids) == 1 for p in dropped.prompts) and dropped.metrics["left_out"] > 0
    (said,) = dropped.lint["findings"]
    assert re.fullmatch(
        r"[\d,]+ of [\d,]+ draws were left out: an answer is of several tokens under this tokenizer \(' \w+' \(\d\).*\)",
        said,
    )
    assert int(said.split()[0].replace(",", "")) == dropped.lint["left_out"]["reasons"]["multi_token"]
    with pytest.raises(
        UserError, match=r"more; behaviour.multi_token=keep .* baseline.metric=full_target"
    ) as none_fits:
        from_behaviour("ioi", "natural", Encoder(bpe(260)), Wanted(20, 5, 0))
    assert "drop" not in str(none_fits.value)
    kept = from_behaviour("grammar_agreement", "natural", encoder, Wanted(20, 5, 0, "keep"))
    assert any(len(p.target_ids) > 1 for p in kept.prompts)


def test_what_goes_without_saying_for_answers_of_several_tokens_has_the_keys_it_had(cli: Cli) -> None:
    assert '"multi_token":"fail"' in key("task=prompts", "behaviour=ioi", kind="prompts", layers=()).payload
    refused = cli("task=prompts", "behaviour=ioi", "behaviour.multi_token=fail", "tracking=off")
    assert refused.code == 2 and "the generator ioi draws others and says how many" in refused.errors[0]


def test_sums_below_ten_are_asked_where_a_number_is_several_tokens() -> None:
    encoder = Encoder(digit_bpe())
    assert len(encoder.ids([" 68"])[0]) == 3
    built = from_behaviour("arithmetic", "natural", encoder, Wanted(80, 20, 0))
    assert built.metrics["n_train"] == 80 and built.metrics["n_test"] == 20 and built.metrics["bias"] < 0.1
    for p in built.prompts:
        a, b = (int(n) for n in re.findall(r"\d", p.prompt))
        assert p.target == str(a + b) and len(p.target_ids) == len(p.foil_ids) == 1 and p.prompt.endswith(" ")
        assert p.corrupt_ids is not None and len(p.corrupt_ids) == len(p.ids)
        assert p.foil == str(sum(int(n) for n in re.findall(r"\d", str(p.corrupt))))
    (finding,) = built.lint["findings"]
    assert finding.startswith("numbers are of several tokens under this tokenizer: sums below ten are asked")
    whole = from_behaviour("arithmetic", "natural", encoder, Wanted(80, 20, 0, "keep"))
    assert all(len(p.target_ids) == 3 for p in whole.prompts), "kept whole, the sums are those of two digits"


@pytest.mark.parametrize("wording", ["embedded", "natural"])
@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_no_corrupt_prompt_is_a_clean_one_of_the_other_side(name: str, wording: str) -> None:
    built = draw(name, wording, n_train=80, n_test=20)
    assert built.lint["overlap"] == {"prompts": 0, "groups": 0, "corrupt": 0} and built.lint["findings"] == []


# -- tokens ----------------------------------------------------------------------------------------------------------


def record(prompt: str = "The cats", target: str = " are", foil: str = " is") -> Record:
    return Record("a", prompt, None, target, foil, "file", None, "g")


@pytest.mark.parametrize(("bos", "first"), [("auto", True), ("always", True), ("never", False)])
def test_bos_is_what_was_asked_for(bos: Any, first: bool) -> None:
    tokenizer = tiny_tokenizer()
    (row,) = Encoder(tokenizer, bos).encode([record()])
    assert (row.ids[0] == tokenizer.bos_token_id) is first
    assert row.target_ids == tuple(tokenizer(" are", add_special_tokens=False)["input_ids"])


def test_bos_that_a_tokenizer_does_not_add_is_added_on_demand_only() -> None:
    assert not Encoder(bpe()).bos and Encoder(bpe(), "always").bos
    nameless = PreTrainedTokenizerFast(tokenizer_object=bpe().backend_tokenizer)
    with pytest.raises(UserError, match=r"behaviour.bos=always: .* no BOS token"):
        Encoder(nameless, "always")


def test_a_chat_template_puts_the_answer_at_the_start_of_the_models_turn() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        Encoder(tokenizer, chat=True)
    tokenizer.chat_template = "{{ bos_token }}Answer : {{ messages[0]['content'] }} ."
    (row,) = Encoder(tokenizer, chat=True).encode([record()])
    assert tokenizer.decode(row.ids).count("<bos>") == 1 and tokenizer.decode(row.ids[-1:]) == "."
    assert tokenizer.decode(row.target_ids) == "are"


def test_an_answer_that_merges_with_its_prompt_is_found() -> None:
    merging = Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "c": 3, "a ": 4}, [("a", " ")]))
    (row,) = Encoder(PreTrainedTokenizerFast(tokenizer_object=merging)).encode([record("a", " b", " c")])
    assert "prefix" in row.faults


def test_batches_hold_every_prompt_once_whatever_the_side_and_order() -> None:
    found = prompts.PromptSet(draw("facts").prompts)
    for options in ({"side": "left"}, {"by_length": False}, {}):
        batches = list(found.batches(7, **options))
        assert sorted(i for b in batches for i in b.samples.tolist()) == list(range(52))
        for b in batches:
            for r, i in enumerate(b.samples.tolist()):
                assert tuple(b.ids[r][b.mask[r]].tolist()) == found[i].ids
                assert b.positions[r][b.mask[r]].tolist() == list(range(len(found[i].ids)))
                assert int(b.ids[r, b.last[r]]) == found[i].ids[-1]
    assert torch.equal(next(iter(found.batches(3, "corrupt"))).mask, next(iter(found.batches(3))).mask)


def test_a_set_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    made = draw("ioi").prompts
    prompts.write(tmp_path, made, {"bos": True})
    found = prompts.read(tmp_path)
    assert found.prompts == made and found.meta == {"bos": True}
    assert len(found.only(split="test")) == 12 and found.only(samples=found.samples[3:5]).samples == found.samples[3:5]
    assert found.table()["factor.order"].isin(["ABBA", "BABA"]).all()
    with pytest.raises(UserError, match="no prompt is in it"):
        found.only(split="dev")
    with pytest.raises(UserError, match=r"token id \d+, but small embeds only 5 ids"):
        found.check_vocabulary(5, "small")
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(Damaged, match="different prompts"):
        prompts.read(tmp_path)


# -- files -----------------------------------------------------------------------------------------------------------


def read(path: Path, **wanted: Any) -> Built:
    options = {"n_train": None, "n_test": None, "seed": 0, **wanted}
    return from_file(path, Encoder(tiny_tokenizer()), Wanted(**options))


def test_a_file_is_split_by_group_and_keeps_its_order_and_factors(tmp_path: Path) -> None:
    built = read(write_jsonl(tmp_path / "a.jsonl", animals()))
    assert built.metrics["n_train"] == 32 and built.metrics["n_test"] == 8 and built.lint["overlap"]["groups"] == 0
    lines = [int(p.id.removeprefix("line-")) for p in built.prompts]
    assert sorted(lines) == list(range(1, 41)) and [p.prompt for p in built.prompts] == [
        animals()[n - 1]["prompt"] for n in lines
    ]
    for side in ("train", "test"):
        mine = [n for n, p in zip(lines, built.prompts, strict=True) if p.split == side]
        assert mine == sorted(mine), "each side in the file's order"
    assert set(built.prompts[0].factors) == {"number"}
    given = [{**r, "split": "test" if r["group"] == "cat" else "train", "id": f"p{i}"} for i, r in enumerate(animals())]
    kept = read(write_jsonl(tmp_path / "b.jsonl", given)).prompts
    assert {p.group for p in kept if p.split == "test"} == {"cat"} and {p.id for p in kept} == {
        f"p{i}" for i in range(40)
    }


BAD = [
    ([{"prompt": "The cat", "target": " is"}], "line 1: no field 'foil' (or 'incorrect_answer'); it has prompt target"),
    ([{"prompt": "The cat", "target": "is", "foil": " are"}], "line 1: prompt and answer together do not begin with"),
    ([{"prompt": "The cat \ud83d", "target": " is", "foil": " are"}], "line 1: prompt holds half of a surrogate pair"),
    ([{**animals()[0], "factors": {"a": "\udc00"}}], "line 1: factors holds half of a surrogate pair"),
    ([{**animals()[0], "target": None}], "line 1: no field 'target' (or 'correct_answer')"),
    ([{**animals()[0], "group": ["a"]}], "line 1: group is a list, a text or number is expected"),
    ([{"prompt": 3, "target": " is", "foil": " are"}], "line 1: prompt is 3, a text is expected"),
    ([{**animals()[0], "split": "dev"}], "line 1: split 'dev' is none; splits: train test"),
    ([{**r, "id": "x"} for r in animals(2)], "line 2: id 'x' is used before"),
    ([{**r, "split": s} for r, s in zip(animals(2) * 1, ("train", None), strict=True)], "line 2: no 'split'"),
    ([{**animals()[0], "split": s} for s in ("train", "test")], "1 clean prompts are in train and in test"),
    ([], "no prompt in it"),
    ([{**animals()[0], "factors": [1]}], "line 1: factors is [1], an object is expected"),
    ([{**animals()[0], "foil": " is", "target": " is"}], "line 1: target and foil are the same tokens"),
    ([{**animals()[0], "target": " zebra"}], "line 1: an answer is unknown to the tokenizer"),
    ([{**animals()[0], "target": " is not"}], "' is not' (2); behaviour.multi_token=keep studies whole answers"),
    ([{**animals()[0], "target": " is not"}, animals()[1]], "behaviour.multi_token=drop leaves them out"),
    (animals(1), "all prompts are of one group"),
]


@pytest.mark.parametrize(("records", "message"), BAD)
def test_a_file_that_cannot_be_used_is_refused_by_line(records: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        read(write_jsonl(tmp_path / "bad.jsonl", records))
    assert message in str(e.value) and "bad.jsonl" in str(e.value)


def test_rows_that_no_study_can_use_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = animals(4)
    bad = [{**rows[1], "foil": rows[1]["target"]}, {**rows[2], "target": " zebra"}]
    path = write_jsonl(
        tmp_path / "mixed.jsonl", [rows[0], bad[0], rows[3], bad[1], {**rows[2], "foil": rows[2]["target"]}]
    )
    with pytest.raises(UserError) as e:
        read(path)
    assert "3 of 5 rows cannot be used; behaviour.unusable=drop leaves them out" in str(e.value) and "line 4" in str(
        e.value
    )
    built = read(path, drop_unusable=True)
    assert {p.id for p in built.prompts} == {"line-1", "line-3"}
    (note,) = (note for note in built.lint["findings"] if "left out" in note)
    assert note.startswith("3 of 5 rows cannot be used") and "(line 2, 5)" in note and "(line 4)" in note
    assert built.lint["left_out"]["n"] == 3
    none = write_jsonl(tmp_path / "none.jsonl", bad)
    with pytest.raises(UserError, match="no prompt is left; target and foil are the same"):
        read(none, drop_unusable=True)


def test_prompts_may_end_with_the_space_where_digits_are_tokens(tmp_path: Path) -> None:
    sums = [{"prompt": f"{a} + {b} = ", "target": str(a + b), "foil": "0"} for a in (1, 2, 3) for b in (1, 2, 3)]
    path, options = write_jsonl(tmp_path / "sums.jsonl", sums), Wanted(None, None, 0)
    found = from_file(path, Encoder(digit_bpe()), options).prompts
    assert len(found) == 9 and all(len(p.target_ids) == len(p.foil_ids) == 1 for p in found)
    with pytest.raises(
        UserError, match=r"sums.jsonl, line 1: prompt and answer together do not begin with the prompt's"
    ):
        from_file(path, Encoder(bpe()), options)


def test_the_tokenizer_decides_how_an_answer_follows_its_prompt_and_the_lint_asks_about_spaces(tmp_path: Path) -> None:
    def found(encoder: Encoder, *records: dict[str, str], keep: bool = True) -> Built:
        path = write_jsonl(tmp_path / "any.jsonl", list(records))
        return from_file(path, encoder, Wanted(None, 0, 0, "keep" if keep else "fail"))

    year = {"prompt": "The war lasted from the year 1547 to 15", "target": "48", "foil": "12"}
    (p,) = found(Encoder(digit_bpe()), year).prompts
    assert len(p.target_ids) == 2 and digit_bpe().decode(p.ids + p.target_ids) == year["prompt"] + "48"
    choice = {"prompt": "Is a cat an animal? (A) yes (B) no. Answer: (", "target": "A", "foil": "B"}
    chinese = {"prompt": "法国的首都是", "target": "巴", "foil": "柏"}
    for record in (choice, chinese):
        assert not [line for line in found(Encoder(digit_bpe()), record).lint["findings"] if "space" in line]
    joined = found(Encoder(digit_bpe()), {"prompt": "The cats", "target": "are", "foil": "is"}).lint
    assert any("1 prompts run into an answer without a space" in line for line in joined["findings"])
    twice = found(Encoder(tiny_tokenizer()), {"prompt": "The cat ", "target": " is", "foil": " are"}, keep=False).lint
    assert "1 prompts end with a space and their answer begins with one" in twice["findings"]


def test_null_and_nan_are_absence_in_every_field_and_tables_are_read(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("id", "group", "split", "behaviour", "factors", "number", "corrupt"))
    plain = [{n: r[n] for n in ("prompt", "target", "foil")} for r in animals(8)]
    path = write_jsonl(tmp_path / "plain.jsonl", plain)
    wanted = read(path).prompts
    assert len({p.group for p in wanted}) == 8 and {p.behaviour for p in wanted} == {"plain"} and not wanted[0].factors
    for name, records in (
        ("null", [{**nothing, **r} for r in plain]),
        ("nan", [{**r, "id": float("nan")} for r in plain]),
    ):
        other = write_jsonl(tmp_path / f"{name}.jsonl", records)
        assert [p.text() | {"behaviour": ""} for p in read(other).prompts] == [
            p.text() | {"behaviour": ""} for p in wanted
        ]
        assert Contents().records(other) == Contents().records(path), "one key"
    frame = pd.DataFrame(plain)
    frame.to_csv(tmp_path / "plain.csv", index=False)
    frame.to_csv(tmp_path / "plain.tsv.gz", index=False, sep="\t")
    frame.to_json(tmp_path / "plain.json", orient="records")
    for ending in ("csv", "tsv.gz", "json"):
        same = [p.text() | {"id": ""} for p in read(tmp_path / f"plain.{ending}").prompts]
        assert same == [p.text() | {"id": ""} for p in wanted], ending
    pd.DataFrame([{**plain[0], "id": 7}, plain[1], plain[2]]).to_json(
        tmp_path / "ids.jsonl", orient="records", lines=True
    )
    assert sorted(p.id for p in read(tmp_path / "ids.jsonl").prompts) == ["7", "line-2", "line-3"], "7, not 7.0"


def test_few_prompts_are_an_error_unless_small_sets_are_allowed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", animals(12))
    with pytest.raises(UserError, match="80 train prompts were asked for and"):
        read(file, n_train=80, n_test=4)
    assert read(file, n_train=80, n_test=4, allow_small=True).metrics["n_test"] == 4


def test_the_key_is_of_the_content_and_the_tokenizer_not_of_paths_or_gates(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", animals())
    two = write_jsonl(tmp_path / "two.jsonl", [dict(reversed(r.items())) for r in animals()], end="\r\n")

    def of(*words: str) -> str:
        return key("task=prompts", *words, kind="prompts", layers=()).hash

    assert of(f"behaviour={one}") == of(f"behaviour={two}") == of(f"behaviour={one}", "behaviour.success_threshold=0.5")
    two.write_text(two.read_text() + json.dumps({"prompt": "A", "target": " b", "foil": " c"}))
    assert of(f"behaviour={one}") != of(f"behaviour={two}")
    assert of("behaviour=ioi") == of("behaviour=ioi", "model.embedded.steps=10") != of("behaviour=ioi", "seed=1")
    differing = ([], ["behaviour.n_test=10"], ["behaviour.bos=never"], ["behaviour.chat=true"], ["seed=1"])
    assert len({of("behaviour=ioi", *words) for words in differing}) == len(differing)


def test_the_key_follows_the_tokenizer_of_a_directory_and_its_chat_template(tmp_path: Path) -> None:
    def of(model: str, *words: str) -> str:
        return key("task=prompts", f"model={tmp_path / model}", "behaviour=ioi", *words, kind="prompts", layers=()).hash

    for name, size in (("one", None), ("other", None), ("wide", 3100)):
        save_model(tmp_path / name, bpe(), size)
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "one" / "config.json").read_text() + "\n")
    assert of("one") == of("other") != of("wide"), "weights change no prompt, another vocabulary may"
    chat, plain = [of("one", "behaviour.chat=true")], of("one")
    template = tmp_path / "one" / "chat_template.jinja"
    for text in (CHAT, CHAT + " "):
        template.write_text(text)
        chat.append(of("one", "behaviour.chat=true"))
    assert len({*chat, plain}) == 4 and of("one") == plain, "without chat no template is read"
    (tmp_path / "one" / "spiece.model").write_bytes(b"words")
    assert of("one") not in {plain, *chat}


# -- the command line ------------------------------------------------------------------------------------------------


def test_a_file_is_short_for_behaviour_file(tmp_path: Path) -> None:
    assert overrides.normalise(["behaviour=a.jsonl"]).overrides == ["behaviour=file", "behaviour.path=a.jsonl"]
    assert overrides.normalise(["behaviour=ioi,cf"]).overrides == ["behaviour=ioi,cf"]
    assert overrides.normalise(["behaviour=a.jsonl,b.jsonl"]).overrides[1] == "behaviour.path=a.jsonl,b.jsonl"
    with pytest.raises(UserError, match="not both at once"):
        overrides.normalise(["behaviour=ioi,a.jsonl"])


def test_prompts_of_a_file_and_a_model_directory(cli: Cli, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", bpe())
    write_jsonl(tmp_path / "my.jsonl", animals())
    done = cli("task=prompts", "behaviour=my.jsonl", f"model={model}", "tracking=off", "behaviour.multi_token=keep")
    assert done.code == 0, done.out + done.err
    assert "train  test  groups" in done.out
    (made,) = cli.artifacts("prompts")
    found = prompts.read(made)
    assert len(found) == 40 and found.meta["vocabulary"] == len(bpe()) and not found.meta["bos"]
    assert {p.name for p in made.iterdir()} >= {
        "lint.json",
        "metrics.json",
        "tokens.parquet",
        "prompts.jsonl",
        "manifest.json",
    }
    assert "Prompt sets" in next(cli.outputs.glob("runs/*/*/report.html")).read_text()
    wrong = cli("task=prompts", "behaviour=absent.jsonl", "tracking=off")
    assert wrong.code == 2 and "absent.jsonl: no such file" in wrong.errors[0]


def test_a_chat_model_is_asked_in_its_template(cli: Cli, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(bpe())
    tokenizer.chat_template = CHAT
    save_model(tmp_path / "model", tokenizer)
    words = ["behaviour=ioi", "behaviour.chat=true", "behaviour.n_samples=12", "behaviour.n_test=4", "model=model",
             "behaviour.multi_token=keep", "tracking=off"]  # fmt: skip
    done = cli("task=baseline", *words, "baseline.metric=full_target", "behaviour.success_threshold=0")
    assert done.code == 0, done.out + done.err
    assert "cached" in cli("task=prompts", *words).out
    (made,) = cli.artifacts("prompts")
    found = prompts.read(made)
    assert found.meta["chat"] and found.meta["bos"], "the template writes the token, so it is wanted"
    table = pd.read_parquet(cli.artifacts("baseline")[0] / "per_prompt.parquet").set_index("sample")
    for p in found:
        assert tokenizer.decode(p.ids) == f"{END}Q: {p.prompt}\nA:" and p.ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(p.target_ids) == p.target.strip() and table.loc[p.id, "target_tokens"] == len(
            p.target_ids
        )
