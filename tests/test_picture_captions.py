"""Captions that are written under edits: what the cache of keys and values gives is what whole passes give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT
from picture_fixtures import BOTH
from pieces import in_pieces
from small_models import MODELS, build
from small_models import rows as token_rows
from transformers import DynamicCache

from circuits.activations.pictures import PictureRows, image_token
from circuits.data.journal import Journal
from circuits.data.keeper import Keeper
from circuits.data.pictures.saved import PictureSet
from circuits.errors import UserError
from circuits.interventions import feature_edits
from circuits.interventions.bias_effects import summarise
from circuits.interventions.captioning import Hooks, captions, nothing
from circuits.model_input import ModelInput, padded
from circuits.models.attention import _last
from circuits.models.hooks import Edit, forward, make_prefix
from circuits.models.load import LM
from circuits.sae.modules import SAE, SAEConfig, architectures
from circuits.store.layers import parse_layers

STEPS = 7
Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def saes(seeing: tuple[LM, PictureSet]) -> dict[int, SAE]:
    """Random ones, of features that are often active; the untrained model never says the token of a picture."""
    lm = seeing[0]
    unsaid = torch.tensor([image_token(lm)])
    lm.model.get_output_embeddings().register_forward_hook(lambda _, args, out: out.index_fill(-1, unsaid, -1e9))
    found = {}
    for layer in range(2):
        torch.manual_seed(layer)
        found[layer] = architectures()["relu"].sae(SAEConfig(seeing[0].dims.width, 96))
        for name in ("W_enc", "W_dec"):
            getattr(found[layer], name).copy_(torch.randn(getattr(found[layer], name).shape))
    return found


def ways(saes: dict[int, SAE]) -> list[tuple[str, Hooks]]:
    """Without edits, then by both kinds, at one layer and at two; the first tokens are left alone."""
    features = {layer: tuple(range(20)) for layer in saes}

    def made(kind: str, factor: float, layers: Sequence[int], skip: int, rows: ModelInput) -> list[Edit]:
        chosen = {layer: features[layer] for layer in layers}
        return feature_edits.edits(saes, dict(chosen), "resid_post", rows, kind=kind, factor=factor, skip_first=skip)

    return [
        ("none", nothing),
        ("ablated", partial(made, "scale", 0.0, [0], 1)),
        ("amplified", partial(made, "scale", 3.0, [0, 1], 2)),
        ("projected", partial(made, "project", 0.0, [1], 12)),  # within the caption of the shorter prompts
    ]


@torch.inference_mode()
def slowly(lm: LM, rows: PictureRows, start: Ids, picture: int, hooks: Hooks, end: int | None) -> Ids:
    """One caption, the picture and every token looked at again for each further one."""
    said: Ids = ()
    for _ in range(STEPS):
        whole = rows.of_ids([start + said], [picture])
        token = int(forward(lm, whole, edits=hooks(whole), logits="last").read[0].argmax())
        if token == end:
            break
        said += (token,)
    return said


def asked(rows: PictureRows) -> tuple[list[int], list[Ids]]:
    """Prompts of three lengths, mixed."""
    pictures = list(range(9))
    starts = [tuple(rows.ids(rows.text(i, BOTH[i % 2]))) for i in pictures]
    return pictures, [start + start[-3:] * (i % 3 == 0) for i, start in enumerate(starts)]


def test_captions_are_those_of_whole_passes_under_every_edit(
    seeing: tuple[LM, PictureSet], saes: dict[int, SAE], request: pytest.FixtureRequest
) -> None:
    lm, pictures = seeing
    rows = PictureRows(pictures, lm)
    which, starts = asked(rows)
    cases = list(zip(starts, which, strict=True))
    free = {name: [slowly(lm, rows, start, i, hooks, None) for start, i in cases] for name, hooks in ways(saes)}
    assert len({tuple(texts) for texts in free.values()}) == 4, "every edit changes what is said"
    # Some captions are to end before others: a token that some of them say on the way becomes the end.
    end = free["none"][0][3]
    before, lm.tokenizer.eos_token = lm.tokenizer.eos_token, lm.tokenizer.convert_ids_to_tokens(end)
    request.addfinalizer(lambda: setattr(lm.tokenizer, "eos_token", before))
    expected = [[slowly(lm, rows, start, i, hooks, end) for start, i in cases] for _, hooks in ways(saes)]
    assert len({len(text) for texts in expected for text in texts}) > 2
    for batch in (2, 64):
        assert captions(lm, rows, which, starts, STEPS, batch, ways(saes)) == expected


def test_captions_go_on_where_they_were_stopped(
    seeing: tuple[LM, PictureSet], saes: dict[int, SAE], tmp_path: Path
) -> None:
    lm, pictures = seeing
    rows = PictureRows(pictures, lm)
    which, starts = asked(rows)
    whole = captions(lm, rows, which, starts, STEPS, 2, ways(saes))

    def work(keeper: Keeper[str]) -> list[list[Ids]]:
        return captions(lm, rows, which, starts, STEPS, 2, ways(saes), Journal(keeper))

    assert in_pieces({"effects": tmp_path / "kept"}, work, (3, 5)) == whole


@pytest.mark.parametrize("family", MODELS)
def test_a_pass_that_goes_on_from_a_cache_gives_what_the_whole_gives(family: str) -> None:
    """Also where attention sees the last few tokens only, and where columns come one at a time or several."""
    lm = build(family)
    ids, mask = token_rows(11, 11)
    whole = forward(lm, ModelInput(ids, mask), logits="all", capture=[("resid_post", 1)])
    cache = DynamicCache(config=lm.model.config)
    for stop in (6, 7, 8, 11):
        before = cache.get_seq_length()
        part = ModelInput(ids[:, :stop], mask[:, :stop])
        found = forward(lm, part, logits="last", capture=[("resid_post", 1)], cache=cache)
        assert torch.allclose(found.read, whole.read[:, stop - 1], atol=1e-4)
        sites = whole.sites["resid_post", 1][:, before:stop]
        assert torch.allclose(found.sites["resid_post", 1], sites, atol=1e-4)


def test_what_does_not_go_with_a_cache_is_refused() -> None:
    lm = build("llama")
    rows, cache = padded([[5, 6, 7, 8], [9, 10, 11, 12]]), DynamicCache()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"positions": 1, "capture": [("resid_post", 1)]}, "positions="),
        ({"logits": torch.zeros(2, 1, dtype=torch.long)}, "columns of logits"),
        ({"logits": "last", "prefix": make_prefix(lm, rows, 1)}, "at layer 0"),
    ]
    for options, told in wrong:
        with pytest.raises(UserError, match=told):
            forward(lm, rows, cache=cache, **options)
    forward(lm, rows, logits="last", cache=cache)
    with pytest.raises(UserError, match="the cache holds 4 columns, and a row has no valid token after them"):
        forward(lm, padded([[5, 6, 7, 8, 1], [9, 10, 11, 12]]), logits="last", cache=cache)


def test_what_tokens_see_is_that_of_their_own_rows(seeing: tuple[LM, PictureSet]) -> None:
    """Masks are handed from pass to pass: other lengths, other places of the picture, a cache between them change nothing."""
    lm, pictures = seeing
    rows = PictureRows(pictures, lm)
    pair = [rows.rows([rows.text(i, language) for i in (0, 1)], [0, 1]) for language in BOTH]
    short, (ids, token) = pair[0].take(slice(0, 1)), (pair[0].ids, image_token(lm))
    start = int((ids[0] == token).nonzero()[0, 0])
    moved = rows.of_ids([[*ids[0, :start].tolist(), 5, *ids[0, start:].tolist()]] * 2, [0, 1])
    inputs = [*pair, short, moved, pair[0], moved, pair[1]]
    for given in inputs:
        found = forward(lm, given, logits="last").read
        _last.clear()
        assert torch.equal(found, forward(lm, given, logits="last").read)
        with torch.inference_mode():
            forward(lm, given, logits="last")
        (site,) = forward(lm, given, capture=[("resid_post", 1)], logits="last", detach=False).sites.values()
        assert site.requires_grad, "what an inference pass made is in no graph"
        prefilled = forward(lm, given, logits="last", cache=DynamicCache(config=lm.model.config)).read
        assert torch.allclose(prefilled, found, atol=1e-5)


def test_words_of_gender_are_counted_beside_those_under_random_sets(seeing: tuple[LM, PictureSet]) -> None:
    """One word fewer in every caption of one language: half a word a picture; random sets take a tenth of that."""
    pictures, rng = seeing[1], np.random.default_rng(0)
    which = [i for i, one in enumerate(pictures) if one.split == "test"]
    effects, texts = [], []
    before = {(language, i): int(rng.integers(2, 5)) for language in BOTH for i in which}
    for control in (None, *range(10)):
        for language in BOTH:
            for number, i in enumerate(which):
                fewer = 0 if control is None or language == "arabic" else 1 if control == 0 else int(number == control)
                named = {"condition": "none" if control is None else "L0 both ×0", "layers": "0", "which": "both"}
                named |= {"kind": "none" if control is None else "scale", "factor": 0.0, "control": control or 0}
                row = {**named, "language": language, "picture": i}
                effects.append({**row, "base": 0.7, "preference": 0.6})
                said = {"says": "unknown", "gender_words": before[language, i] - fewer, "tokens": 9, "nll": 1.0}
                texts.append({**row, **said})
    table = summarise(pd.DataFrame(effects), pd.DataFrame(texts), pictures, alpha=0.05, resamples=200, seed=0)
    (row,) = table.to_dict("records")
    assert row["words_change"] == row["words_low"] == row["words_high"] == -0.5
    assert row["control_words_change"] == pytest.approx(-0.5 / len(which)) and row["caption_controls"] == 9
    assert row["p_words"] < 1e-3 and row["p_words_controls"] == 0.1
    assert row["gender_rate"] < row["base_gender_rate"], "of the edit itself, not of the random sets"


def test_an_edit_is_significant_where_pictures_and_random_sets_say_so(seeing: tuple[LM, PictureSet]) -> None:
    """Of twelve edits beside 25 random sets each: those that move every picture, and farther than random sets do."""
    pictures, rng = seeing[1], np.random.default_rng(1)
    which = range(len(pictures))
    effects = []
    for number in range(12):
        for control in range(26):
            # The first four move all pictures toward parity, the next four as much as random sets do, the rest move none.
            size = 0.1 if control == 0 and number < 4 else 0.05 if 4 <= number < 8 else 0.0
            for i in which:
                named = {"condition": f"L{number} both ×0", "layers": str(number), "which": "both", "kind": "scale"}
                moved = size + rng.normal(0, 0.01)
                row = {**named, "factor": 0.0, "control": control, "language": "english", "picture": i}
                effects.append({**row, "base": 0.9, "preference": 0.9 - moved})
    texts = [
        {"condition": name, "control": 0, "picture": i, "gender_words": 1, "tokens": 5, "says": "male", "nll": 1.0}
        for name in ["none", *(f"L{number} both ×0" for number in range(12))]
        for i in which
    ]
    table = summarise(pd.DataFrame(effects), pd.DataFrame(texts), pictures, alpha=0.05, resamples=100, seed=0)
    assert table["significant"].tolist() == [True] * 4 + [False] * 8
    assert (table["q"][:8] < 0.05).all() and (table["p_controls"][:4] == 1 / 26).all()
    assert (table["p_controls"][4:8] > 0.05).all()


@pytest.mark.parametrize("ways", [4, 8])
def test_the_presets_of_extraction_cover_every_layer_once(ways: int) -> None:
    given = yaml.safe_load((ROOT / "conf" / "experiment" / f"extract_{ways}.yaml").read_text())
    parts = str(given["hydra"]["sweeper"]["params"]["layer"]).split(",")
    layers = [layer for part in parts for layer in parse_layers(part, 34)]
    assert len(parts) == ways and layers == list(range(34))
