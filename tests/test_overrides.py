"""Command lines: what is typed in any order becomes canonical, and what cannot be right is one line before anything starts."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
from configs import compose, copy_conf, edit
from test_load import make

from circuits import schema
from circuits.command import overrides
from circuits.errors import UserError
from circuits.launch import cli
from circuits.store import places, registry


def checked(*words: str) -> list[str]:
    """The canonical overrides of a command line that passes."""
    arguments = overrides.normalise(words)
    overrides.check(arguments)
    return arguments.overrides


def refused(*words: str) -> list[str]:
    """The messages of a command line that does not pass; each is one line."""
    with pytest.raises(UserError) as caught:
        checked(*words)
    assert all(message and "\n" not in message for message in caught.value.messages)
    return caught.value.messages


def launched(
    *words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The error lines of a command that must exit with 2 and start nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["launch.py", *words])
    code = cli.main(list(words))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2, lines
    assert lines and all(line.startswith("error: ") for line in lines)
    assert not list(folder.glob("multirun/*")) and not list(folder.glob("outputs/runs/*"))
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture(autouse=True)
def fresh_choices() -> typing.Iterator[None]:
    """Forget the choices of a test's copy of conf/."""
    yield
    places.choices.cache_clear()
    places.config_groups.cache_clear()


# -- normalising -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["task=sae", "layer=range(10,25)", "-m", "cluster=local"],
        ["-m", "task=sae", "layer=range(10,25)", "cluster=local"],
        ["task=sae", "--multirun", "layer=range(10,25)", "cluster=local", "-m"],
        ["task=sae", "layer=range(10,25)", "cluster=local"],
    ],
)
def test_the_sweep_flag_stands_anywhere_and_is_implied(words: list[str]) -> None:
    arguments = overrides.normalise(words)
    overrides.check(arguments)
    assert arguments.argv() == ["--multirun", "task=sae", "layer=range(10,25)", "cluster=local"]


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "task=sae", "sae.k=8"],
        ["task=sae", "--cfg", "job", "sae.k=8"],
        ["task=sae", "sae.k=8", "-m", "--cfg", "job"],
    ],
)
def test_showing_the_config_is_no_run_and_takes_its_flag_anywhere(words: list[str]) -> None:
    arguments = overrides.normalise(words)
    assert not arguments.runs
    assert arguments.argv() == ["--cfg", "job", "task=sae", "sae.k=8"]


@pytest.mark.parametrize("flag", ["--help", "-h", "--cfg=job", "--info", "--version", "-sc"])
def test_flags_that_only_show_are_no_runs(flag: str) -> None:
    assert not overrides.normalise([flag]).runs


def test_an_unknown_flag_names_the_nearest() -> None:
    (message,) = refused("task=sae", "--mutirun")
    assert message.startswith("--mutirun: no such flag; did you mean --multirun?")


def test_the_cards_literal_command_is_expanded_to_fifteen_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("task=sae", "layer=range(10,25)", "-m", "cluster=local")
    (line,) = launched(*words, folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert line.startswith(
        "layer=10-24: 15 of 15 elements are out of range for model=tiny, which has 4 layers (0-3): 10 … 24; no model was named: "
    )
    assert "conf/user/local.yaml (default: model: NAME)" in line


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("model=tiny", ["model=tiny"]),
        ("model=tiny,gpt2", ["model=tiny,gpt2"]),
        ("model=choice(tiny,gpt2)", ["model=choice(tiny,gpt2)"]),
        ("model=org/name", ["model=hf", "model.id=org/name"]),
        ("model=org/name-v1.5", ["model=hf", "model.id=org/name-v1.5"]),
        ("model=org/a,org/b", ["model=hf", "model.id=org/a,org/b"]),
        ("model=distilgpt2", ["model=hf", "model.id=distilgpt2"]),
        ("model='a dir, with=odd (été)'", ["model=hf", "model.id='a dir, with=odd (été)'"]),
        ('model="org/a",org/b', ["model=hf", "model.id=org/a,org/b"]),
        ("model='tiny'", ["model='tiny'"]),
        ("behaviour='a, b=c (été) 100%.jsonl'", ["behaviour=file", "behaviour.path='a, b=c (été) 100%.jsonl'"]),
        ("behaviour='ioi',cf", ["behaviour='ioi',cf"]),
        ("sae.from=/tmp/foreign", ["sae.from_=/tmp/foreign"]),
        ("sae.from=/tmp/a foreign (1)", ["sae.from_='/tmp/a foreign (1)'"]),
        ("sae.from=it's", [r"sae.from_='it\'s'"]),
        ("sae.from=null", ["sae.from_=null"]),
        ("data.path=corpus/*.txt", ["data.path='corpus/*.txt'"]),
    ],
)
def test_short_forms_become_what_the_schema_knows(typed: str, canonical: list[str]) -> None:
    assert checked(typed) == canonical


def test_a_model_directory_is_taken_whatever_its_name(tmp_path: Path) -> None:
    for name in ("plain", "with space", "a,b", "x=y", "gpt2(1)"):
        place = tmp_path / name
        place.mkdir()
        cfg = compose(f"model={place}")
        assert cfg.model.id == str(place) and cfg.model.embedded is None


def test_a_corpus_path_reaches_the_config_whatever_its_name(tmp_path: Path) -> None:
    for name in ("plain.txt", "with space.txt", "a,b.txt", "it's.txt", "[x].txt", "ü.txt"):
        (tmp_path / name).write_text("x")
        assert compose("data=text", f"data.path={tmp_path / name}").data.path == str(tmp_path / name)


def test_relative_paths_and_patterns_hold_whatever_directory_an_element_runs_in(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("x")
    cfg = compose("data=text", "data.path=corpus/a.txt", base=tmp_path)
    assert (cfg.data.path, cfg.outputs) == (str(tmp_path / "corpus/a.txt"), str(tmp_path / "outputs"))
    assert compose("data=text", "data.path=corpus/*.txt", base=tmp_path).data.path == str(tmp_path / "corpus/*.txt")
    assert compose("data=datasets", "data.path=org/name", base=tmp_path).data.path == "org/name", (
        "a hub name is no path"
    )


@pytest.mark.parametrize("path", ["corpus.jsonl", "dir/my corpus.jsonl", "'quoted corpus.jsonl'"])
def test_a_jsonl_corpus_under_data_text_is_read_as_jsonl(path: str) -> None:
    assert checked("data=text", f"data.path={path}")[0] == "data=jsonl"
    assert checked(f"data.path={path}", "data=text")[-1] == "data=jsonl"
    assert checked("data=text", "data.path=corpus.txt")[0] == "data=text"


# -- ways around the schema --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["+sae.k=3", "++sae.k=3", "~sae.k", "~sae", "+new=1", "++new.key=1", "+experiment=sae_canary"]
)
def test_keys_are_neither_added_nor_removed(word: str) -> None:
    (message,) = refused("task=sae", word)
    assert message.startswith(f"{word}: keys cannot be added or removed") and "=VALUE" in message


def _sections() -> list[tuple[str, type]]:
    found = []
    for field in dataclasses.fields(schema.BaseConfig):
        if dataclasses.is_dataclass(field.default_factory):
            found.append((field.name, typing.cast(type, field.default_factory)))
    return [*found, ("model.embedded", schema.EmbeddedConfig), ("task.resources", schema.Resources)]


@pytest.mark.parametrize(("path", "section"), _sections())
def test_every_section_is_closed_and_names_its_keys(path: str, section: type) -> None:
    (message,) = refused(f"{path}.nonsense=1")
    assert message.startswith(f"{path}.nonsense: no such key in {path}")
    for field in dataclasses.fields(section):
        assert field.name.rstrip("_") in message


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("layr=3", "layr: no such key; did you mean layer?"),
        ("sae.stps=3", "sae.stps: no such key in sae; did you mean sae.steps?"),
        ("model.embedded.sed=1", "did you mean model.embedded.seed?"),
        ("task=sea", "task=sea: no such task; did you mean sae? choices: "),
        (
            "sae=topkk",
            "sae=topkk: no such sae; did you mean topk? choices: batchtopk gated jumprelu matryoshka relu topk",
        ),
        ("precision=fp64", "precision=fp64: no such precision; did you mean "),
        ("experiment=sae_canry", "did you mean sae_canary?"),
        ("sae=topk,rleu", "sae=rleu: no such sae; did you mean relu?"),
        ("reuse=forced", "reuse=forced: no such choice; did you mean force? choices: cached force readonly"),
        ("sae.site=resid_pots", "sae.site=resid_pots: no such choice; did you mean resid_post?"),
        ("sae.k=1.5", "sae.k=1.5: a whole number is expected"),
        ("sae.steps=1e3", "sae.steps=1000.0: a whole number is expected; write 1000"),
        ("sae.k=true", "sae.k=true: a whole number is expected"),
        ("sae.k=many", "sae.k=many: a whole number is expected"),
        ("sae.k=32,many", "sae.k=many: a whole number is expected"),
        ("seed=null", "seed=null: a whole number is expected"),
        ("sae.lr=fast", "sae.lr=fast: a number is expected"),
        ("model.allow_fallback=1", "model.allow_fallback=1: true or false is expected"),
        ("sae.k.x=3", "sae.k.x: sae.k is a value, it has no keys"),
        ("model.embedded=3", "model.embedded: a section"),
        ("foo", "foo: not an override; write key=value"),
        ("schema=x", "schema: no such key"),
        ("hydra/launcher=basic", "hydra/launcher: there is one; cluster= chooses"),
        ("hydra/sweeper=basic", "hydra/sweeper: there is one"),
        ("layer=0–3", "layer=0–3: 0–3 has a dash that is no hyphen; write 0-3"),
        ("layer=[0,1", "not in Hydra's override grammar"),
        ("data.field=hello (world)", "quote the value twice, once for the shell: \"data.field='hello (world)'\""),
        ("model=", f"model=: no such model; choices: {' '.join(places.choices('model'))}"),
        ("data.path=", "data.path=: empty; write data.path=null for none"),
        ("sae.from=", "sae.from=: empty; write sae.from=null for none"),
        ("outputs=", "outputs=: empty; it needs a value"),
        ("task=", "task=: no such task"),
    ],
)
def test_what_does_not_exist_or_fit_is_one_line_with_the_value_and_the_choices(word: str, says: str) -> None:
    (message,) = refused(word)
    assert says in message


def test_all_findings_come_at_once() -> None:
    messages = refused("task=sae", "+a=1", "sae.kk=3", "sae=rleu", "seed=x", "bar")
    assert [message.split(":")[0] for message in messages] == ["+a=1", "bar", "sae.kk", "sae=rleu", "seed=x"]


RIGHT = (
    "sae.k=64 sae.k=1_000 sae.lr=1 sae.k=32,64 sae.k=range(1,4) seed=choice(1,2) name=null experiment=null sae.l1=null "
    "sae.k=${seed}"
)


@pytest.mark.parametrize("word", RIGHT.split())
def test_what_is_right_passes(word: str) -> None:
    assert checked(word) == [word]


def test_a_choice_that_only_a_folder_of_conf_has_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = copy_conf(tmp_path, monkeypatch)
    (conf / "sae" / "wide.yaml").write_text("architecture: topk\nk: 8\nexpansion: 16\n")
    assert compose("sae=wide").sae.expansion == 16


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("sae/topk.yaml", "k: 32", "kk: 32", "kk"),
        ("sae/topk.yaml", "k: 32", "k: many", "many"),
        ("sae/topk.yaml", "architecture: topk", "architecture: topp", "topp"),
        ("config.yaml", "seed: 0", "sede: 0", "sede"),
        ("cluster/local.yaml", "backend: local", "backend: lokal", "lokal"),
        ("task/sae.yaml", "gpus: 1", "gpu: 1", "gpu"),
    ],
)
def test_a_wrong_yaml_is_refused_like_a_wrong_override(
    file: str,
    old: str,
    new: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(copy_conf(tmp_path, monkeypatch) / file, old, new)
    (line,) = launched("task=sae", "layer=0", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert says in line


# -- overrides that nothing reads --------------------------------------------------------------------------------


def readers(key: str) -> str:
    """``task=activations or task=sae``: the tasks that read a root key."""
    tasks = [
        task for task in places.choices("task") if not registry.everything(task)
    ]  # pipeline and plan hand on what they get
    return " or ".join(f"task={task}" for task in tasks if key in registry.reads(task))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=status", "sae.k=3"], f"sae.k: task=status does not read it; {readers('sae')} does"),
        (["task=status", "sae=relu"], f"sae: task=status does not read it; {readers('sae')} does"),
        (["task=status", "layer=3"], f"layer: task=status does not read it; {readers('layer')} does"),
        (["task=report", "seed=3"], f"seed: task=report does not read it; {readers('seed')} does"),
        (["of=x"], f"of: task=sae does not read it; {readers('of')} does"),
        (["status.watch=true"], "status.watch: task=sae does not read it; task=status does"),
        (["task=status", "report.out=x"], "report.out: task=status does not read it; task=report does"),
        (
            ["task=status,report", "model.device=cpu"],
            f"model.device: task=status,report does not read it; {readers('model')} does",
        ),
    ],
)
def test_an_override_that_the_task_does_not_read_names_the_tasks_that_do(words: list[str], message: str) -> None:
    assert refused(*words) == [message]


@pytest.mark.parametrize(
    "key", ["name=x", "note=x", "reuse=readonly", "outputs=x", "multirun=x", "cluster=local", "tracking=off"]
)
def test_run_level_keys_are_read_by_every_task_that_makes_something(key: str) -> None:
    for task in places.choices("task"):
        if hasattr(registry.modules()[task], "KIND") or registry.everything(task) or key in ("outputs=x", "multirun=x"):
            assert checked(f"task={task}", key)
        elif task not in ("smoke", "prefetch"):
            (message,) = refused(f"task={task}", key)
            assert message.startswith(f"{key.split('=')[0]}: task={task} does not read it; task=activations or ")


def test_an_input_of_a_task_lends_it_its_sections() -> None:
    assert {"model", "data", "sae", "precision", "seed", "layer"} <= registry.reads("sae")
    assert checked("task=sae", "model.embedded.steps=3", "data.context=16", "precision=bf16", "seed=1")
    assert registry.reads("status") == {"of", "status"}


# -- what preflight finds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["layer=9"], "layer=9: 9 out of range for model=tiny, which has 4 layers (0-3)"),
        (["layer=[0,1],[2,9]"], "layer=[0,1],[2,9]: 1 of 2 elements are out of range"),
        (["layer=true"], "layer=true: true is no layer"),
        (["layer=range(4,4)"], "nothing to run"),
        (["sae.k=9999"], "sae.k=9999: more than d_sae=1024"),
        (["sae.steps=0"], "sae.steps=0: at least 1"),
        (["sae.steps=-5"], "sae.steps=-5: at least 1"),
        (["sae.lr=inf"], "sae.lr=inf: a finite number is expected"),
        (["sae.lr=nan"], "sae.lr=nan: more than 0"),
        (["sae=relu", "sae.k=3"], "sae.k=3: sae=relu does not read it; sae=topk, batchtopk, matryoshka do"),
        (["model=hf"], "model.id: needs a value; write model.id=…"),
        (["data=text"], "data=text needs data.path=FILE"),
        (["sae.from=/nowhere"], "sae.from=/nowhere: no such directory"),
        (["model.device=cuda:99"], "model.device=cuda:99: this machine has"),
        (["model.device=tpu"], "model.device=tpu: no such device; choices: auto cpu cuda cuda:N mps"),
        (["model.embedded.layers=2", "layer=3"], "which has 2 layers (0-1)"),
        (["seed=${hydra:job.num}"], "seed: "),
        (["sae@other=topk"], "sae@other"),
        (["task=sae,status"], "one sweep is over one task"),
    ],
)
def test_wrong_input_exits_2_with_one_line_and_starts_nothing(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = launched(*words, folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert says in line


def test_preflight_names_every_bad_element_of_a_sweep_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sae.k=32,9999", "layer=0,8"]
    lines = launched(*words, "model=tiny", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert lines == [
        "layer=0,8: 2 of 4 elements are out of range for model=tiny, which has 4 layers (0-3): 8",
        "sae.k=9999: more than d_sae=1024 (sae.expansion=8 × width 128)",
    ]


# -- names that a file or a folder here has, too -----------------------------------------------------------------


def test_a_folder_or_a_file_here_takes_no_preset_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "ioi").write_text("not prompts")
    cfg = compose("task=baseline", "model=gpt2", "behaviour=ioi")
    assert (cfg.model.id, cfg.behaviour.name, cfg.behaviour.path) == ("gpt2", "ioi", None)
    assert compose("task=baseline", "model=./gpt2").model.id == str(tmp_path / "gpt2")
    words = ("task=baseline", "model=gpt2")
    (line,) = launched(*words, folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert "gpt2 is not in the local Hugging Face cache" in line and "task=prefetch model=gpt2" in line
    assert "did you mean" not in line


# -- --cfg job ----------------------------------------------------------------------------------------------------


def test_a_config_that_would_be_refused_is_shown_and_the_refusal_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["task=sae", "sae.ram=3", "--cfg", "job"]) == 2
    shown = capsys.readouterr()
    assert "ram: 3" in shown.out and "error: sae.ram=3" in shown.err
    assert cli.main(["layer=8,20", "--cfg", "job"]) == 2
    assert capsys.readouterr().err == (
        "error: --cfg shows one element, and layer=8,20 makes a sweep; write one value: layer=8\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["k=16"], "k: no such key; did you mean sae.k?"),
        (
            ["steps=16"],
            "steps: no such key; did you mean sae.steps or attribution.steps or faithfulness.steps or intervention.steps or "
            "model.embedded.steps?",
        ),
        (["sae", "layer=8"], "sae: not an override; did you mean task=sae?"),
        (["gpt2"], "gpt2: not an override; did you mean model=gpt2?"),
    ],
)
def test_a_key_or_a_choice_without_its_section_is_named_with_it(words: list[str], says: str) -> None:
    assert refused(*words) == [says]


def test_what_is_wrong_beside_the_model_is_told_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for words in (["model=nobody/x", "layer=3"], ["sae.from=nobody/x/y", "layer=3"]):
        given = ["task=sae", *words, "data=text", "data.path=nowhere.txt"]
        lines = launched(*given, folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert len(lines) == 2 and "nobody/x" in lines[0] and lines[1].startswith("nowhere.txt: no such file")


def test_a_model_reads_no_toy_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "small", "gpt2")
    capsys.readouterr()
    for task in ("sae", "interpret", "activations"):
        words = [
            f"task={task}",
            "model=small",
            "layer=0",
            *(["activations.source=data"] if task == "activations" else []),
        ]
        lines = launched(*words, "data.context=16", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
        assert any("choose data=text, jsonl or datasets" in line for line in lines), lines
