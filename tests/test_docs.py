"""What the documents say is what happens: their commands are accepted, their examples run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, Cli, Done

from circuits.command import overrides
from circuits.errors import UserError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every ``python launch.py …`` in the documents."""
    found = []
    for page in PAGES:
        found += re.findall(r"(?:^\$ |`)python launch\.py ([^`\n]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return sorted(set(found))


def test_there_are_commands_in_the_readme() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documents_is_accepted(line: str, tmp_path: Path) -> None:
    words = [word.replace("DIR", str(tmp_path)).replace("SWEEP", "sae-0000") for word in shlex.split(line)]
    arguments = overrides.normalise(words)
    try:
        overrides.check(arguments)
    except UserError as e:
        meant_to_fail = f"$ python launch.py {line}\nerror: " in (ROOT / "README.md").read_text(encoding="utf-8")
        assert meant_to_fail, e


def test_every_page_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the program, to be changed."""
    made = tmp_path / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # with its bytecode
    shutil.copy(ROOT / "launch.py", made)
    return made


def test_an_input_kind_is_one_schema_one_yaml_and_one_library_file(warm: Cli, checkout: Path) -> None:
    before = _files(checkout)

    def change(name: str, old: str, new: str) -> None:
        file = checkout / name
        assert old in file.read_text(), (name, old)
        file.write_text(file.read_text().replace(old, new, 1))

    change(
        "circuits/schema/data.py",
        '    jsonl = "jsonl"',
        '    verses = "verses"  # a document a line\n    jsonl = "jsonl"',
    )
    corpora = "circuits/data/corpora.py"
    change(corpora, 'KINDS = ("text",', 'KINDS = ("text", "verses",')
    change(corpora, 'of_file = {"text": hash_text,', 'of_file = {"text": hash_text, "verses": hash_text,')
    change(
        corpora,
        '    if kind == "text":\n        return text_documents(file, part)\n',
        '    if kind == "verses":\n        return (line.text.strip() for line in lines(file, part) if line.text.strip())\n'
        '    if kind == "text":\n        return text_documents(file, part)\n',
    )
    (checkout / "conf" / "data" / "verses.yaml").write_text("source: verses\ncontext: 16\nheldout: 0.1\n")
    touched = {name for name, facts in _files(checkout).items() if before.get(name) != facts}
    assert touched == {"circuits/schema/data.py", "conf/data/verses.yaml", corpora}
    poem = warm.folder / "poem.txt"
    verse = "the cat is near the dogs . {}\nthe dogs are near the cat . {}"
    poem.write_text("\n\n".join(verse.format("suppose " * (i % 17), "suppose " * (i % 13)) for i in range(200)))
    (model,) = warm.artifacts("tiny")
    words = ["task=sae", "layer=1", f"model={model}", "data.path=poem.txt", "sae.steps=3", "sae.batch_size=32"]
    words += [
        "sae.block_rows=512",
        "sae.heldout_sequences=4",
        "sae.allow_small=true",
        "data.context=16",
        "tracking=off",
    ]

    def launch(*given: str) -> Done:
        return warm.python(str(checkout / "launch.py"), *given)

    for kind in ("verses", "text"):
        done = launch(*words, f"data={kind}")
        assert done.code == 0, done.out + done.err
    said = "".join(log.read_text() for log in (warm.outputs / "runs").glob("*/*/run.log"))
    assert "400 documents" in said and "200 documents" in said, "each as it is read"
    assert len(warm.artifacts("tokens")) == len(warm.artifacts("sae")) == 2
    assert "cached" in launch(*words, "data=verses").out
    refused = launch(*words, "data=verses", "data.field=x")
    assert refused.code == 2 and "data.field" in refused.err, refused.err


def test_a_new_task_is_one_module_and_one_yaml(warm: Cli, checkout: Path) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (yaml,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (module,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (checkout / "conf" / "task" / "norms.yaml").write_text(yaml)
    (checkout / "circuits" / "tasks" / "norms.py").write_text(module)

    def launch(*words: str) -> Done:
        return warm.python(str(checkout / "launch.py"), *words)

    done = launch("task=norms", "layer=1,2", QUICK, "tracking=off", "cluster.workers=0")
    assert done.code == 0, done.out + done.err
    assert "mean norm" in done.out
    assert len(warm.artifacts("norms")) == 2
    assert json.loads((warm.artifacts("norms")[0] / "metrics.json").read_text())["norm"] > 0
    assert "2 cached" in launch("task=norms", "layer=1,2", QUICK, "tracking=off", "cluster.workers=0").out
    assert "norms" in launch("--help").out
    assert "  norms.order=2.0 " in launch("task=norms", "--help").out
    wrong = launch("task=norms", "layer=1,2", "norms.order=-1", QUICK)
    assert wrong.code == 2 and wrong.err == "error: norms.order=-1.0: more than 0\n"
    (model,) = warm.artifacts("tiny")
    other = launch("task=norms", "layer=1", f"model={model}", "norms.order=1", "tracking=off")
    assert other.code == 0 and len(warm.artifacts("norms")) == 3, other.out + other.err
    refused = launch("task=norms", "sae.k=3")
    assert refused.code == 2 and "sae.k: task=norms does not read it; " in refused.err
    before = _files(checkout)
    (checkout / "conf" / "norms").mkdir()
    (checkout / "conf" / "norms" / "default.yaml").write_text("order: 2.0\n")
    (checkout / "conf" / "norms" / "taxi.yaml").write_text("order: 1.0\n")
    (checkout / "circuits" / "report" / "sections" / "norms.py").write_text(SECTION)
    (code,) = re.findall(r"```python\n(.*?)\n```", (ROOT / "docs" / "behaviours.md").read_text(), re.DOTALL)
    (checkout / "circuits" / "data" / "behaviours" / "colours.py").write_text(
        code.replace("draw=draw)", "draw=draw, natural_only=True)")
    )
    (checkout / "conf" / "behaviour" / "colours.yaml").write_text("name: colours\nn_samples: 20\nn_test: 10\n")
    taxi = launch("task=norms", "layer=1", "norms=taxi", QUICK, "tracking=off")
    assert taxi.code == 0, taxi.out + taxi.err
    pages = [page.read_text() for page in warm.outputs.glob("runs/*/norms-*/report.html")]
    assert any("Norms of 1 artifact" in page for page in pages), "its own section"
    assert "norms=default" in launch("task=norms", "--help").out and "norms" in launch("--help").out
    wrong = launch("task=norms", "norms=taxy", QUICK)
    assert wrong.code == 2 and "norms=taxy: no such norms; did you mean taxi?" in wrong.err
    only = launch("task=prompts", "behaviour=colours")
    assert only.code == 2 and "behaviour=colours: asked of models of natural language only" in only.err
    schema = checkout / "circuits" / "schema" / "sae.py"
    schema.write_text(
        schema.read_text().replace(
            "    k: int | None", "    fancy: bool = added(False)  # a new option of SAEs\n    k: int | None", 1
        )
    )
    assert "sae.fancy=false" in launch("task=sae", "--help").out
    touched = {name for name, facts in _files(checkout).items() if before.get(name) != facts}
    assert touched == {
        "conf/norms/default.yaml", "conf/norms/taxi.yaml", "circuits/report/sections/norms.py",
        "circuits/data/behaviours/colours.py", "conf/behaviour/colours.yaml", "circuits/schema/sae.py",
    }  # fmt: skip
    again = launch("task=norms", "layer=1,2", QUICK, "tracking=off", "cluster.workers=0")
    assert "2 cached" in again.out, "what was added has re-keyed nothing"


SECTION = '''
from circuits.report.content import Part
from circuits.report.registry import View, section


@section("norms", order=90)
def norms(view: View) -> Part:
    """The norms."""
    return Part("Norms", f"Norms of {len(view.entries)} artifact.", ())
'''


def _files(checkout: Path) -> dict[str, str]:
    """The checkout's files and what is in them."""
    found = [*checkout.rglob("*.py"), *checkout.rglob("*.yaml")]
    return {str(file.relative_to(checkout)): file.read_text() for file in found}


def test_the_python_page_runs_as_it_stands(warm: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks, one after the other, on small artifacts: the options that made them small are added to every kind's own."""
    from circuits.launch import api

    text = [QUICK, "sae.heldout_sequences=16"]
    sae = [
        *text,
        "sae.steps=6",
        "sae.batch_size=64",
        "sae.block_rows=1024",
        "sae.forward_batch=16",
        "sae.dead_after=64",
        "sae.warmup=2",
    ]
    small = {
        "tiny": [QUICK],
        "prompts": ["behaviour.n_samples=40", "behaviour.n_test=10"],
        "baseline": [QUICK, "behaviour.n_samples=40", "behaviour.n_test=10", "behaviour.success_threshold=0"],
        "sae": sae,
        "activations": [QUICK, "activations.n_sequences=32"],
        "interpret": [*sae, "interpret.n_sequences=16", "interpret.max_features=8", "interpret.shuffles=2",
                      "behaviour.n_samples=40", "behaviour.n_test=10"],
    }  # fmt: skip
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for line in re.findall(r"^\$ python launch\.py (.+)$", page, re.MULTILINE):
        words = shlex.split(line)
        done = warm(*words, *small[words[0].removeprefix("task=")], "tracking=off", "cluster.workers=0")
        assert done.code == 0, done.out + done.err
    (made,) = (path for path in warm.artifacts("sae"))
    original = api.find_artifact

    def found(kind: str, given: dict[str, object]) -> object:
        extra = dict(word.replace(".", "__").split("=") for word in small[kind])
        return original(kind, {**extra, **given})

    monkeypatch.setattr(api, "find_artifact", found)
    monkeypatch.chdir(warm.folder)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(re.sub(r"sae/tiny-L2-topk-\w{12}", f"sae/{made.name}", block), "docs/python.md", "exec"), names)
    assert repr(names["sae"]) == "SAE(topk: 128 → 1,024 features → 128, k=32, cpu)"
    assert len(blocks) >= 5 and names["f"].min() >= 0  # type: ignore[attr-defined]
    assert names["sae"].W_dec.norm(dim=1).allclose(names["sae"].W_dec.new_ones(1024), atol=1e-4)  # type: ignore[attr-defined]
    assert "".join(names["rows"]["token"].head(5)).startswith(" ")  # type: ignore[index]
    for name in ("lm", "found", "store", "measured", "prompts"):
        assert len(repr(names[name])) < 300, name
    with pytest.raises(UserError, match=f"no such artifact in outputs/artifacts; nearest: sae/{made.name}"):
        names["circuits"].open(f"sae/{made.name[:-1]}x")  # type: ignore[attr-defined]
