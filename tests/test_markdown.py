"""Texts of other people in what is written as Markdown: names of models, prompts, corpora."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuits.run import checklist
from circuits.sae import card
from circuits.sae.modules import SAEConfig, architectures
from circuits.words import markdown, markdown_code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("resid_post of gpt2", "resid_post of gpt2"),
        ("a*b* [x](y) <b>", r"a\*b\* \[x\](y) \<b\>"),
        ("two\nlines | cell", r"two lines \| cell"),
        ("_emphasis_ `code` \\", r"\_emphasis\_ \`code\` \\"),
    ],
)
def test_nothing_of_a_text_is_markup(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("plain", "`plain`"), ("a`b", "`` a`b ``"), ("``\nx", "``` `` x ```"), ("# [a]", "`# [a]`")]
)
def test_code_is_code_whatever_is_in_it(text: str, shown: str) -> None:
    assert markdown_code(text) == shown


def test_a_model_card_holds_names_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = architectures()["relu"].sae(SAEConfig(4, 8))
    names = {"model_name": "# <script>\n[x](y)", "hook_name": "h`\n# no heading", "dataset_path": "a`b\n---\n"}
    metrics = {"architecture": "relu", "layer": 1, "steps": 5, "n_rows": 10, "n_sequences": 2}
    lines = card.text(sae, metrics, names, "saelens", "sae/x").splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        r"# relu sparse autoencoder, # \<script\> \[x\](y), layer 1"
    ]
    assert lines.count("---") == 2, "the front matter alone"
    (body,) = [line for line in lines if "features" in line and line.startswith("A sparse")]
    assert "`` h` # no heading ``" in body and "`` a`b --- ``" in body


def test_a_checklist_is_a_list_whatever_a_reason_says() -> None:
    item = checklist.Item("code", "code", False, "- [x] **done**\n# no")
    assert checklist.as_markdown([item], "a_b*").splitlines()[2:] == [r"- [ ] **code**: - \[x\] \*\*done\*\* # no"]
