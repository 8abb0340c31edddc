"""What ``task=X --help`` and docs/options.md say is what the schema has, and it is said of every key."""

from __future__ import annotations

import pytest
from conftest import Cli

from circuits.command import options, reading
from circuits.store import places


def test_every_key_that_a_task_reads_says_what_it_means() -> None:
    silent = {
        one.key
        for task in places.choices("task")
        for listed in options.options(task).values()
        for one in listed
        if not one.meaning
    }
    assert not silent


def test_the_page_of_all_options_is_current() -> None:
    assert options.PAGE.read_text(encoding="utf-8") == options.document(), "run: make docs"


@pytest.mark.parametrize(
    ("task", "has", "lacks"),
    [
        ("sae", "sae.k=32 ", "interpret.top_k"),
        ("interpret", "interpret.associate=true ", "sae.checkpoint_every"),
        ("status", "status.watch=false ", "layer="),
        ("prompts", "behaviour.n_samples=80 ", "behaviour.min_logit_diff"),
        ("activations", "behaviour.min_logit_diff=2.0 ", "baseline.batch_size"),
    ],
)
def test_help_of_a_task_lists_what_it_reads(task: str, has: str, lacks: str, cli: Cli) -> None:
    done = cli(f"task={task}", "--help")
    assert done.code == 0 and not done.err
    assert f"  {has}" in done.out and lacks not in done.out
    assert list(cli.folder.iterdir()) == []


def test_help_names_what_a_key_depends_on_and_its_choices(cli: Cli) -> None:
    lines = {line.split("=")[0].strip(): line for line in cli("task=sae", "--help").out.splitlines()}
    assert lines["sae.k"].endswith("; only with sae=topk, batchtopk, matryoshka")
    assert "stream | store" in lines["sae.source"]
    assert cli("task=sea", "--help").errors == [
        f"error: task=sea: no such task; did you mean sae? choices: {' '.join(places.choices('task'))}"
    ]


def test_what_help_lists_is_what_is_accepted() -> None:
    for task in places.choices("task"):
        listed = {one.key for found in options.options(task).values() for one in found}
        for key in listed - {"sae.from"}:
            assert reading.may(reading.CHOICE_OF.get(key, key), task), f"task={task} {key}"
