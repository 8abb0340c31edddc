"""The rules of the house, read from the code: who may import whom, what stays light, what every file must have."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, Cli
from omegaconf import OmegaConf

import circuits
from circuits import schema
from circuits.run import config
from circuits.store import places, registry
from circuits.store.kinds import Kind

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "wandb",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "sae_lens",
    "submitit",
)
LEVELS = ("schema", "store", "run", "command", "launch")
"""The framework, from what others stand on to what stands on all of it."""
LIBRARY: dict[str, tuple[str, ...]] = {
    "stats": (),
    "models": (),
    "data": (),
    "tiny": ("models", "data"),
    "activations": ("models", "data"),
    "sae": ("activations", "models", "data", "stats"),
    "interventions": ("sae", "activations", "models", "data", "stats"),
    "attribution": ("interventions", "sae", "activations", "models", "data", "stats"),
    "features": ("sae", "activations", "models", "data", "stats"),
    "geometry": ("models", "data", "stats"),
    "drawing": (),
    "compare": ("report", "drawing", "stats"),
    "report": ("drawing", "stats", "features", "geometry"),
}
"""The library rooms, and what each may import of the others."""
FRAMEWORK = ("hydra", "omegaconf", "wandb", "submitit", "circuits.tasks", *(f"circuits.{name}" for name in LEVELS))
NOT_ROOMS = ("tasks", *LEVELS)
LARGEST = 0.15  # of the house, in one room


# -- reading the code --------------------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    """The python files below folders of the checkout."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module(file: Path) -> str:
    """``circuits.store.keys``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(file: Path) -> ast.Module:
    """A parsed file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    """``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements(file: Path, inside_functions: bool) -> Iterator[ast.stmt]:
    """The import statements of a file that can run; at import time only, unless `inside_functions`."""
    waiting: list[ast.AST] = [tree(file)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        if is_type_checking(node) or (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions
        ):
            continue
        waiting += ast.iter_child_nodes(node)


@cache
def imports(file: Path, inside_functions: bool = True) -> frozenset[str]:
    """The modules that a file imports; ``from circuits.run import config`` is ``circuits.run.config``."""
    known = {module(path) for path in sources("circuits", "hydra_plugins")}
    found = set()
    for node in statements(file, inside_functions):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name for name in names if name in known} or {str(node.module)}
    return frozenset(found)


def of(names: frozenset[str], forbidden: tuple[str, ...]) -> list[str]:
    """Those of `names` that are, or are inside of, a forbidden package."""
    return sorted(n for n in names if any(n == f or n.startswith(f + ".") for f in forbidden))


def rooms() -> list[Path]:
    """The files of the library rooms."""
    return [file for folder in room_names() for file in sources(f"circuits/{folder}")]


def room_names() -> list[str]:
    """The library rooms: every package of circuits but the framework's."""
    return sorted(
        path.parent.name for path in (ROOT / "circuits").glob("*/__init__.py") if path.parent.name not in NOT_ROOMS
    )


# -- who may import whom -----------------------------------------------------------------------------------------


def test_library_rooms_know_nothing_of_the_framework() -> None:
    wrong = {module(file): found for file in rooms() if (found := of(imports(file), FRAMEWORK))}
    assert len(rooms()) > 30 and not wrong


def test_stats_and_report_know_nothing_of_models_or_torch() -> None:
    files = sources("circuits/stats", "circuits/drawing", "circuits/report")
    assert not {
        module(f): found for f in files if (found := of(imports(f), ("circuits.models", "torch", "transformers")))
    }


def test_the_arrows_between_rooms_run_one_way() -> None:
    assert set(room_names()) == set(LIBRARY), "a new room says what it may import"
    allowed = {name: set(others) for name, others in LIBRARY.items()}
    allowed |= {name: {*LEVELS[:i], *LIBRARY} for i, name in enumerate(LEVELS)}
    allowed |= {"schema": set(), "tasks": {*LIBRARY, "schema", "store", "run", "command", "launch"}}
    for room, others in allowed.items():
        files = sources(f"circuits/{room}")
        found = {name.split(".")[1] for file in files for name in imports(file) if name.count(".") > 1}
        found &= {*allowed}
        assert not found - others - {room}, f"{room} imports {sorted(found - others - {room})}"


def test_no_room_holds_more_than_its_share_of_the_house() -> None:
    lines = dict.fromkeys((*LIBRARY, *LEVELS, "tasks"), 0)
    for room in lines:
        lines[room] = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in sources(f"circuits/{room}"))
    whole = sum(lines.values())
    assert not {room: round(n / whole, 3) for room, n in lines.items() if n > LARGEST * whole}


def test_the_framework_imports_no_torch_and_no_task() -> None:
    tasks = tuple(f"circuits.tasks.{name}" for name in registry.modules())
    files = sources(*(f"circuits/{level}" for level in LEVELS), "hydra_plugins")
    assert not {module(f): found for f in files if (found := of(imports(f), ("torch", "transformers", *tasks)))}


def test_a_task_imports_no_task_and_its_library_only_inside_functions() -> None:
    files = sources("circuits/tasks")
    tasks = tuple(f"circuits.tasks.{name}" for name in registry.modules())
    assert not {module(f): found for f in files if (found := of(imports(f), tasks))}
    library = (*(f"circuits.{room}" for room in room_names()), *HEAVY)
    found = {module(f): of(imports(f, inside_functions=False), library) for f in files}
    # A library's settings are plain values, which its task's options are made of.
    assert not {
        name: left for name, imported in found.items() if (left := [n for n in imported if not n.endswith(".settings")])
    }


def test_the_foundations_are_standard_library_only() -> None:
    folder = ROOT / "circuits"
    for file in (folder / "errors.py", folder / "files.py", *sources("circuits/schema")):
        outside = {n for n in imports(file) if n.split(".")[0] not in sys.stdlib_module_names}
        assert not [n for n in outside if n != "circuits.errors" and not n.startswith("circuits.schema")], file.name


def test_benchmarks_drive_library_rooms_only() -> None:
    assert not {f.name: found for f in sources("benchmarks") if (found := of(imports(f), FRAMEWORK))}


def test_no_import_cycles() -> None:
    """Nor of imports inside functions: two files that need each other are one, or want a third."""
    files = {module(file): file for file in sources("circuits", "hydra_plugins")}
    edges = {name: {n for n in imports(file) if n in files} for name, file in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in files:
        visit(name, ())
    assert done == set(files)


# -- what stays light --------------------------------------------------------------------------------------------


def loaded_by(code: str, *arguments: str, folder: Path, of: Sequence[str] = HEAVY) -> set[str]:
    """The heavy modules in memory after `code`."""
    end = f"\nimport sys; print('loaded', *sorted(set(sys.modules) & set({tuple(of)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code + end, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_framework_and_all_tasks_loads_no_library(tmp_path: Path) -> None:
    framework = (f"circuits/{level}" for level in LEVELS)
    names = [module(file) for file in sources(*framework, "circuits/tasks", "hydra_plugins")]
    assert loaded_by("import " + ", ".join(["launch", "circuits.schema", *names]), folder=tmp_path) == set()


@pytest.mark.parametrize(
    "words", [["--help"], ["--cfg", "job"], ["task=sae", "layer=0", "sae=relu", "--cfg", "job"], ["task=status"]]
)
def test_what_only_shows_loads_no_library(words: list[str], tmp_path: Path) -> None:
    code = "import sys; from circuits.launch.cli import main; code = main(sys.argv[1:]); assert code == 0, code"
    assert loaded_by(code, *words, folder=tmp_path) == set()
    assert list(tmp_path.iterdir()) == [], "and writes nothing"


def test_a_config_is_shown_without_what_only_other_tasks_print_fetch_or_record_with(tmp_path: Path) -> None:
    code = "import sys; from circuits.launch.cli import main; assert main(sys.argv[1:]) == 0"
    slow = ("rich.console", "urllib.request", "ssl", "importlib.metadata", "numpy")
    assert loaded_by(code, "task=sae", "--cfg", "job", folder=tmp_path, of=slow) == set()


def test_a_page_loads_only_the_sections_that_it_has(tmp_path: Path) -> None:
    code = "from circuits.report.registry import sections; assert 'sae' in sections(['sae'])"
    assert loaded_by(code, folder=tmp_path, of=("scipy", "circuits.report.sections.interventions")) == set()


def test_planning_loads_no_reader_of_tables(tmp_path: Path) -> None:
    code = "import sys; from circuits.launch.cli import main; assert main(sys.argv[1:]) == 2"
    assert loaded_by(code, "task=sae", "layer=0-1,2", "reuse=readonly", folder=tmp_path) == set()


def test_wrong_input_is_told_before_any_library_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from circuits.launch.cli import main; assert main(sys.argv[1:]) == 2"
    assert loaded_by(code, "task=sae", "layer=9", folder=tmp_path) == set()


# -- the command line shows what there is ------------------------------------------------------------------------


def test_help_shows_every_task_and_every_choice(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0 and not done.err
    for group in places.config_groups():
        (line,) = [line for line in done.out.splitlines() if line.split()[:1] == [group] and "·" not in line]
        assert line.split()[1:] == list(places.choices(group))


def test_the_resolved_config_is_shown_as_yaml_and_nothing_is_run(cli: Cli) -> None:
    done = cli("task=sae", "sae.k=7", "-m", "--cfg", "job")
    shown = OmegaConf.create(done.out)
    assert done.code == 0 and shown.sae.k == 7 and shown.task.name == "sae" and "hydra" not in shown
    assert list(cli.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("task=", {f"task={name}" for name in places.choices("task")}),
        ("sae=", {f"sae={name}" for name in places.choices("sae")}),
        ("sae.site", {"sae.site="}),
    ],
)
def test_completion_offers_real_choices_only(cli: Cli, typed: str, offered: set[str]) -> None:
    line = f"python launch.py {typed}"
    done = cli("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2")
    assert done.code == 0, done.err
    assert set(done.out.split()) == offered


# -- config and code belong together -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", places.choices("task"))
def test_every_task_yaml_names_a_function_that_exists(task: str) -> None:
    tree = OmegaConf.load(places.CONF / "task" / f"{task}.yaml")
    assert tree.name == task
    name, function = tree["_target_"].rsplit(".", 1)
    assert name == f"circuits.tasks.{task}"
    found = importlib.import_module(name)
    assert callable(getattr(found, function))
    if tree.where == "cluster":
        assert found.KIND.name == task
    else:
        assert registry.reads(task), "what a service task reads is declared"


def test_every_task_module_is_a_task_or_makes_an_artifact_that_tasks_need() -> None:
    needed = {name for kind in registry.kinds().values() for name in kind.needed}
    for name, found in registry.modules().items():
        assert name in places.choices("task") or (
            found.KIND.name in needed and found.KIND.inline and type(found.KIND).make is not Kind.make
        )


@pytest.mark.parametrize("name", sorted(registry.kinds()))
def test_every_kind_declares_sections_and_inputs_that_exist(name: str) -> None:
    kind = registry.kind(name)
    for section in kind.sections:
        value = schema.root_schema(registry.options())()
        for part in section.split("."):
            assert hasattr(value, part) or (section == "model.embedded"), section
            value = getattr(value, part)
    assert all(other in registry.kinds() for other in kind.needed)


def test_a_notebook_opens_the_embedded_model(warm: Cli) -> None:
    name, value = QUICK.split("=")
    lm = circuits.open("tiny", outputs=warm.outputs, **{name.replace(".", "__"): int(value)})
    assert lm.dims.layers == 4 and lm.tokenizer.bos_token_id is not None


def _choices() -> list[str]:
    return [f"{group}={choice}" for group in places.config_groups() for choice in places.choices(group)]


NEEDED = {"model=hf": ["model.id=a/b"], "behaviour=file": ["behaviour.path=prompts.jsonl"]}  # what a preset leaves open


@pytest.mark.parametrize("word", _choices())
def test_every_yaml_of_every_group_composes_and_fits_the_schema(word: str) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
        cfg = config.to_object(compose("config", overrides=[word, *NEEDED.get(word, [])]))
    group, choice = word.split("=")
    if group in ("task", "cluster"):
        assert getattr(cfg, group).name == choice
    missing = [e for e in schema.check(cfg) if "needs data.path" not in e]
    assert missing == []


@pytest.mark.parametrize(
    ("group", "member", "choices"),
    [("sae", "architecture", schema.Architecture), ("data", "source", schema.DataSource)],
)
def test_every_choice_of_the_schema_has_its_yaml(group: str, member: str, choices: type[schema.Architecture]) -> None:
    trees = [OmegaConf.load(places.CONF / group / f"{name}.yaml") for name in places.choices(group)]
    assert {tree[member] for tree in trees} == {choice.value for choice in choices}


def test_the_schema_and_the_models_name_the_same_sites_in_the_order_of_a_forward_pass() -> None:
    from circuits.models.sites import SITES

    assert tuple(site.value for site in schema.Site) == SITES


# -- every file --------------------------------------------------------------------------------------------------


def test_files_stay_small() -> None:
    folders = ("circuits", "hydra_plugins", "tests", "benchmarks")
    long = {file.name for file in sources(*folders) if len(file.read_text().splitlines()) > 500}
    assert not long
    assert len((ROOT / "launch.py").read_text().splitlines()) < 60


def test_every_module_says_what_it_is() -> None:
    assert not [module(f) for f in sources("circuits") if f.read_text().strip() and not ast.get_docstring(tree(f))]


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the dotted name of what is called."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_library_rooms_print_nothing_and_assert_nothing() -> None:
    printing = [module(f) for f in rooms() if any(name == "print" for name, _ in calls(f))]
    asserting = [module(f) for f in rooms() if any(isinstance(node, ast.Assert) for node in ast.walk(tree(f)))]
    assert not printing and not asserting


def test_library_rooms_swallow_no_error() -> None:
    for file in rooms():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                broad = caught in ("everything", "Exception", "BaseException")
                assert not broad or any(isinstance(n, ast.Raise) for n in ast.walk(node)), (
                    f"{module(file)}:{node.lineno}"
                )


def test_nothing_of_ours_is_a_pickle() -> None:
    for file in sources("circuits", "hydra_plugins"):
        assert not of(imports(file), ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")), file
        for name, call in calls(file):
            if name == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), file
            if name == "torch.save" and file.name == "source_layout.py":
                continue  # plain dicts for others to read, with weights_only=True; we never read one
            assert name not in ("torch.save", "np.save", "numpy.save") or any(
                k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in call.keywords
            ), f"{module(file)}: {name}"
            assert not any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in call.keywords), (
                file
            )
