"""What is printed, on any terminal: nothing is markup, nothing that counts is cut, no encoding is too poor."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK, Cli

from circuits.console import Rows, Terminal
from circuits.launch.outcome import summary_lines
from circuits.prose import cells, fold
from circuits.run import streams
from circuits.run.pace import Pace
from circuits.words import left, number, one_line, plus_minus, reason, size, visible

SMALL = (
    "sae.steps=3",
    "sae.batch_size=64",
    "sae.block_rows=256",
    "sae.heldout_sequences=8",
    "tracking=off",
)


def drawn(rows: Rows, width: int) -> list[str]:
    """A table as a terminal of this width shows it."""
    out = io.StringIO()
    Terminal(file=out, width=width, markup=False, emoji=False, highlight=False).table(rows)
    return out.getvalue().splitlines()


# -- numbers and signs -------------------------------------------------------------------------------------------


def test_one_number_has_one_form() -> None:
    assert [size(n) for n in (0, 812, 369_000, 1_500_000, 999_960_000, 14_900_000_000, 15.2e12)] == [
        "0 B", "812 B", "369 kB", "1.5 MB", "1.0 GB", "14.9 GB", "15.2 TB",
    ]  # fmt: skip
    assert size(369) == "369 B" and number(0.000369, "size") == "369 kB" and number(1e-3, "size", sign="+") == "+1.0 MB"
    assert number(0.942, ".3f", (0.940, 0.9425)) == plus_minus(0.942, (0.940, 0.9425)) == "0.942 ± 0.002", (
        "the larger arm"
    )
    assert (
        number(0.5, ".1%", (0.4, 0.55)) == "50.0% ± 10.0%"
        and number(None, ".3f") == "–"
        and number(1500, ",.0f") == "1,500"
    )


def test_a_steady_time_left() -> None:
    pace, done = Pace(0.0, 5000), 5000.0
    rates = []
    for second in range(1, 200):
        done += 0 if second <= 20 else 0 if second % 10 else 100  # a slow start; then a block every tenth second
        rates.append(pace.at(float(second), done))
    assert rates[10] is None and 8.5 < (rates[-1] or 0) < 11.5
    late = [rate for rate in rates[100:] if rate]
    assert max(late) / min(late) < 1.4
    assert pace.at(201.0, 0.0) is None, "another round"
    assert [left(s) for s in (0.2, 8.4, 127, 2105, 7440)] == ["1 s", "8 s", "2 min 10 s", "35 min", "2 h 05 min"]


def test_what_cannot_be_seen_is_a_sign_and_one_line_is_one_line() -> None:
    assert visible("a\nb\tc\x1b[31m\r\ud83d é…") == "a⏎b⇥c␛[31m␍\\ud83d é…"
    assert reason(ValueError("a" * 100 + " and more of it\nb")) == "a" * 100 + " and more of it"
    assert reason(ValueError("please unset " * 20)).endswith("unset …") and reason(OSError()) == "OSError"
    assert visible("\u202egpj") == "\\u202egpj" and one_line("a\n  b\n") == "a; b"


# -- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_numbers_layers_and_ids_are_never_cut(width: int) -> None:
    rows = Rows(["layer", "note", "explained variance", "L0", "artifact"], texts=(1,))
    ids = [f"sae/a-model-of-twenty-let-L{i}-topk-25d1dd88328f" for i in (7, 23)]
    for i, name in zip((7, 23), ids, strict=True):
        rows.add(str(i), "a long note [/x] that gives way " * 3, "0.974 ± 0.001", "32.0", name)
    shown = drawn(rows, width)
    text = "\n".join(shown)
    assert all(name in text for name in ids) and text.count("0.974 ± 0.001") == 2 and text.count("32.0") == 2
    assert re.search(r"^7 ", text, re.M) and re.search(r"^23 ", text, re.M) and "…" not in text
    longest = max(len("explained variance"), *(len(name) for name in ids)) + 2
    assert max(map(len, shown)) <= max(width, longest) and not any(line != line.rstrip() for line in shown)


def test_nothing_printed_is_markup() -> None:
    rows = Rows(["id", "[bold]"])
    rows.add("[/x]", "[topk,relu] :smile:")
    assert drawn(rows, 80) == ["id    [bold]", "[/x]  [topk,relu] :smile:"]


# -- prose -------------------------------------------------------------------------------------------------------


def test_prose_is_folded_between_words_and_nothing_that_is_copied_is_cut() -> None:
    path = "/home/somebody/" + "a-long-folder/" * 6 + "prompts.jsonl"
    command = "python launch.py task=sae 'layer=range(10,25)' name='a; b' data=text data.path=corpus.txt sae.k=64"
    text = f"error: {path}, line 3: no field target (or correct_answer); it has prompt 猫猫猫猫 and foil; make it with: {command}"
    lines = fold(text, 80)
    assert " ".join(line.strip() for line in lines) == text and lines[0].startswith("error: ")
    assert any(path in line for line in lines) and any(command in line for line in lines), "to be copied as they are"
    assert all(cells(line) <= 80 for line in lines if path not in line and command not in line) and len(lines) > 2
    for width in (0, cells(text)):
        assert fold(text, width) == [text], "no terminal, or room enough"
    assert fold("  0  layer=1  " + "word " * 20, 40)[0].startswith("  0  layer=1  word")


def test_an_error_is_folded_on_a_terminal_and_one_line_elsewhere(cli: Cli) -> None:
    words = ["task=sae", "data.max_tokens=500", "layer=0"]
    code, text = terminal(cli, *words)
    assert code == 2 and text.splitlines() == [
        "error: data.max_tokens=500: data=embedded does not read it; data=text, jsonl,",
        "  datasets do",
    ]
    assert cli(*words).errors == [" ".join(line.strip() for line in text.splitlines())]


# -- the end of a sweep ------------------------------------------------------------------------------------------


def test_a_gate_is_no_failure_and_a_finding_is_said_once(tmp_path: Path) -> None:
    gate = {"state": "gate", "error": "3 of 9 succeed", "artifacts": [{}], "exit_code": 3}
    bad = {"state": "failed", "error": "f.jsonl, line 1: no\nf.jsonl, line 2: no", "exit_code": 1, "wrong_input": True}
    lost = {"state": "killed", "error": "killed", "exit_code": -9}

    def told(*facts: dict[str, object]) -> str:
        return "\n".join(
            line for _, line in summary_lines([(i, f"seed={i}", tmp_path, one) for i, one in enumerate(facts)])
        )

    assert "failed" not in told(gate, {"state": "done"}) and "1 of 2 stopped at a gate (1 done, kept)" in told(
        gate, {"state": "done"}
    )
    both = told(bad, bad, gate, {"state": "cached"})
    assert both.count("line 1") == both.count("line 2") == 1 and "2 of 4 failed, 1 stopped at a gate" in both
    assert "again: the same command" not in both, "it would end the same way"
    assert "again: the same command (0 answer from the store, 1 resume)" in told(bad, lost)


def test_markup_in_a_prompt_id_fails_one_element_in_one_line(cli: Cli) -> None:
    (cli.folder / "p.jsonl").write_text(
        json.dumps({"id": "[/x]", "prompt": "The cat", "target": " sits", "foil": " sits"}) + "\n"
    )
    done = cli("task=prompts", "behaviour=p.jsonl", "seed=0,1", "tracking=off", COLUMNS="80")
    assert done.code == 1 and "Traceback" not in done.err + done.out
    assert (
        done.err.count("target and foil are the same") == 1 and "2 of 2 failed" in done.out and "again:" not in done.out
    )


def test_the_live_table_shows_markup_as_it_was_written(cli: Cli) -> None:
    """A folder called ``[`` and in it ``x].jsonl``: rich would end a style that was never begun."""
    (cli.folder / "[").mkdir()
    (cli.folder / "[" / "x].jsonl").write_text(
        json.dumps({"id": "[/x]", "prompt": "The cat", "target": " sits", "foil": " sits"}) + "\n"
    )
    code, text = terminal(cli, "task=prompts", 'behaviour="[/x].jsonl"', "seed=0,1,2", "tracking=off", COLUMNS="160")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert code == 1 and "Traceback" not in plain and "3 of 3 failed" in plain
    assert "[/x].jsonl, line 1: target and foil are the same" in plain.replace("\r\n", "")


# -- terminals ---------------------------------------------------------------------------------------------------


def terminal(cli: Cli, *words: str, **extra: str) -> tuple[int, str]:
    """What a command writes to a terminal of 80 columns."""
    master, slave = pty.openpty()
    env = {
        k: v
        for k, v in cli.environment(**{"COLUMNS": "80", "LINES": "40", "TERM": "xterm", **extra}).items()
        if k != "NO_COLOR"
    }
    process = subprocess.Popen(cli.command(*words), cwd=cli.folder, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    found = b""
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.2)[0]:
            try:
                found += os.read(master, 65536)
            except OSError:
                break
    os.close(master)
    return process.wait(), found.decode()


def test_a_dumb_terminal_gets_plain_lines(warm: Cli) -> None:
    long = "sae.steps=400"  # a line is printed of a phase that lasts a moment
    code, text = terminal(warm, "task=sae", "layer=0", QUICK, *SMALL[1:], long, TERM="dumb")
    assert code == 0 and "\x1b" not in text and "layer=0  running  training" in text and "artifact" in text


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.soak)])
def test_a_poor_encoding_loses_signs_and_nothing_else(cli: Cli, encoding: str) -> None:
    extra = {"PYTHONIOENCODING": encoding, "MPLBACKEND": "module://no_such.backend"}
    done = subprocess.run(
        cli.command("task=prompts", "behaviour=induction", "tracking=off", "note=ünï → 字"), cwd=cli.folder,
        env=cli.environment(**extra), capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert (
        done.returncode == 0 and "Traceback" not in err and "no report" not in err and "prompts/induction-tiny" in out
    )
    shown = subprocess.run(
        cli.command("task=status"), cwd=cli.folder, env=cli.environment(**extra), capture_output=True, check=True
    ).stdout.decode(encoding)
    assert "\\u5b57" in shown and "->" in shown and ("ünï" in shown) == (encoding == "latin-1")
    for words in (["--help"], ["task=sae", "--help"], ["task=sae", "--cfg", "job"]):
        shown = subprocess.run(
            cli.command(*words), cwd=cli.folder, env=cli.environment(**extra), capture_output=True, check=False
        )
        assert shown.returncode == 0 and not shown.stderr and "sae" in shown.stdout.decode(encoding), shown.stderr


def test_bytes_that_are_no_text_are_one_line(cli: Cli) -> None:
    words = [os.fsencode(word) for word in cli.command("task=sae", "data=text", "data.path=")]
    done = subprocess.run(
        [*words[:-1], words[-1] + b"b\xe9.txt"], cwd=cli.folder, env=cli.environment(), capture_output=True, check=False
    )
    assert done.returncode == 2 and done.stderr.decode().startswith("error: data.path=b\\xe9.txt: not UTF-8")
    codecs.register_error(streams.ERRORS, streams._plain)
    assert "\udce9 → ±".encode("ascii", streams.ERRORS) == b"\\xe9 -> +/-"


# -- names -------------------------------------------------------------------------------------------------------


def test_names_that_file_systems_refuse_are_one_line(cli: Cli) -> None:
    long = "n" * 300
    (cli.folder / "file").touch()
    cases = {
        "multirun=file": "multirun=", "outputs=file/x": "outputs=", f"outputs={long}": "outputs=", f"model={long}": "model:",
        f"behaviour={long}.jsonl": "behaviour:", f"sae.from={long}": "sae.from:",
    }  # fmt: skip
    for word, named in cases.items():
        done = cli("task=sae", "layer=0,1", QUICK, *SMALL, word)
        assert done.code == 2 and len(done.errors) == 1 and done.errors[0].startswith(f"error: {named}"), (
            word,
            done.err,
        )
        assert "Traceback" not in done.err and len(done.errors[0]) < 600
    assert cli("task=status", f"of={long}").code == 2


def test_a_long_name_makes_a_short_id(cli: Cli) -> None:
    name, note = "字" * 150 + "n" * 150, "it's (done): ${5}, [/x] \\ 50%"
    done = cli("task=prompts", "behaviour=induction", "tracking=off", f"name={name}", f"note={note}")
    assert done.code == 0, done.err
    (run,) = (cli.outputs / "runs").glob("*/*")
    assert len(os.fsencode(run.name)) <= 200 and json.loads((run / "sweep.json").read_text())["note"] == note
    again = cli("task=report", f"of={name}")
    assert again.code == 0 and "${5}, [/x]" in (run / "report.html").read_text(encoding="utf-8"), again.err


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a ${x} [b] 50%j {0} 字"
    folder.mkdir()
    made = Cli(folder)
    done = made("task=prompts", "behaviour=induction", "seed=0,1", "tracking=off")
    assert done.code == 0 and len(made.artifacts("prompts")) == 2, done.err
    made.end()


def test_the_hint_on_quotes_is_what_a_shell_keeps(cli: Cli) -> None:
    done = cli("task=prompts", "behaviour=file", "behaviour.path=null", "data.field=a (b")
    assert done.code == 2 and """"data.field='a (b'\"""" in done.errors[0]
    kept = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c 'import sys; print(sys.argv[1])' {done.errors[0].rpartition('shell: ')[2]}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert kept == "data.field='a (b'"
    assert "override grammar" not in cli("task=prompts", kept).err


# -- pages and notebooks -----------------------------------------------------------------------------------------


def test_line_ends_in_a_page_are_signs(tmp_path: Path) -> None:
    from circuits.report.content import Cell, Column, Part, Table
    from circuits.report.page import write
    from circuits.report.types import ReportInput

    table = Table("t", (Column("prompt"),), ((Cell("one\ntwo\t<b>", code=True),),))
    page = write(ReportInput("t", "q", "s", "c", "a", [], "now"), [Part("p", "", (table,))], tmp_path, [])
    assert "one⏎two⇥&lt;b&gt;" in page.read_text(encoding="utf-8")


def test_what_a_notebook_prints_is_short() -> None:
    from circuits.data.prompts import Prompt, PromptSet
    from circuits.store.store import Artifact

    assert (
        repr(Artifact(Path("outputs/artifacts/sae/x-1"), {"kind": "sae", "files": {str(i): {} for i in range(99)}}))
        == "Artifact(sae/x-1)"
    )
    fields = dict.fromkeys(Prompt.__dataclass_fields__)
    prompts = tuple(Prompt(**{**fields, "prompt": "The cat " * 99}) for _ in range(500))  # type: ignore[arg-type]
    assert len(repr(PromptSet(prompts))) < 120 and "500 prompts" in repr(PromptSet(prompts))
