"""The `layer` grammar: every form, every one-line refusal, on the function and as Hydra hands the values over."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from circuits.errors import UserError
from circuits.store.layers import LayerOutOfRange, parse_layers, ranges

KEY9 = (0, 6, 10, 14, 18, 22, 26, 30, 33)


def typed(text: str) -> Any:
    """`layer=TEXT` as Hydra reads it from a command line: an int, a float, a list, a string …"""
    return OverridesParser.create().parse_override(f"layer={text}").value()


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("15", (15,)),
        ("0", (0,)),
        ("[10,12]", (10, 12)),
        ("[12,10,12]", (10, 12)),
        ("[0-8,14]", (*range(9), 14)),
        ("[0-2,1-4]", (0, 1, 2, 3, 4)),
        ("10-24", tuple(range(10, 25))),
        ("all", tuple(range(34))),
        ("[all]", tuple(range(34))),
        ("key9", KEY9),
        ("[key9,1]", (0, 1, *KEY9[1:])),
        ("'0-2'", (0, 1, 2)),
        ("' 7 '", (7,)),
        ("33", (33,)),
    ],
)
def test_every_form_of_the_grammar(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(typed(text), 34, {"key9": KEY9}) == layers


@pytest.mark.parametrize("text", ["10", "[10]", "10-10", "[10,10]", "'10'", "['10']", "[[10]]", "[10-10]"])
def test_equal_layers_have_one_canonical_form(text: str) -> None:
    assert parse_layers(typed(text), 28) == (10,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("true", "true is no layer"),
        ("1.5", "1.5 is no layer"),
        ("1e1", "10.0 is no layer"),
        ("null", "null is no layer"),
        ("[]", "no layer named"),
        ("''", "nothing is no layer"),
        ("3-1", "3-1 runs backwards; write 1-3"),
        ("[0,3-1]", "layer=[0,3-1]: 3-1 runs backwards; write 1-3"),
        ("010", "010 has a leading zero; write 10"),
        ("-1", "-1 is negative; layers count from 0"),
        ("[0,-2]", "-2 is negative"),
        ("1-", "1- is no layer"),
        ("1--3", "1--3 is no layer"),
        ("a-b", "a-b is no layer"),
        ("ALL", "ALL is no layer"),
        ("0-9999999999", "no model has 10000000000 layers"),
        ("{a:1}", "is no layer"),
    ],
)
def test_what_is_not_in_the_grammar_gets_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_layers(typed(text), 28)
    (message,) = caught.value.messages
    assert says in message and "\n" not in message
    assert message.startswith(f"layer={text}".replace("'", "").replace("1e1", "10.0").replace("{a:1}", "{'a'"))


@pytest.mark.parametrize("dash", ["–", "—", "−", "‐", "‑", "―"])
def test_a_dash_that_is_no_hyphen_is_named_with_the_right_spelling(dash: str) -> None:
    with pytest.raises(UserError, match=r"no hyphen; write 0-3$"):
        parse_layers(f"0{dash}3", 28)


def test_a_misspelt_set_names_the_sets() -> None:
    with pytest.raises(UserError, match="did you mean key9"):
        parse_layers("key8", 34, {"key9": KEY9})


@pytest.mark.parametrize(("text", "outside"), [("28", [28]), ("26-30", [28, 29, 30]), ("[0,40]", [40])])
def test_out_of_range_names_the_layers_and_the_depth(text: str, outside: list[int]) -> None:
    with pytest.raises(LayerOutOfRange) as caught:
        parse_layers(typed(text), 28)
    assert caught.value.outside == outside
    assert f"layer={text}: {ranges(outside)} out of range: 28 layers (0-27)" in str(caught.value)


def test_a_set_of_another_model_is_checked_against_this_one() -> None:
    with pytest.raises(LayerOutOfRange):
        parse_layers("key9", 28, {"key9": KEY9})


def test_without_a_known_depth_bounds_are_open_but_all_is_refused() -> None:
    assert parse_layers(99, None) == (99,)
    with pytest.raises(UserError, match="whose depth is known"):
        parse_layers("all", None)


@pytest.mark.parametrize(
    ("layers", "text"),
    [([0, 1, 2, 3, 7], "0-3,7"), ([5], "5"), ([3, 1, 2], "1-3"), ([0, 0, 8, 8], "0,8"), ([], "")],
)
def test_ranges_writes_layers_the_short_way(layers: list[int], text: str) -> None:
    assert ranges(layers) == text
