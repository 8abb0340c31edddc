"""The record of what goes into a model: one for text alone and for text with images."""

from __future__ import annotations

import pytest
import torch
from small_models import IMAGE_TOKEN, IMAGE_TOKENS, build, every_site

from circuits.errors import UserError
from circuits.model_input import ModelInput, joined, padded, position_ids
from circuits.models.hooks import forward
from circuits.models.positions import last_positions


def test_rows_say_their_positions_whatever_the_padding_side() -> None:
    right, left = padded([[5, 6, 7], [8]]), padded([[5, 6, 7], [8]], side="left")
    assert right.ids.tolist() == [[5, 6, 7], [8, 0, 0]] and left.ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    for rows in (right, left):
        assert rows.lengths.tolist() == [3, 1] and rows.samples.tolist() == [0, 1]
        assert torch.equal(rows.positions, position_ids(rows.mask))
        assert torch.equal(rows.last, last_positions(rows.mask, 1).index[:, 0])
        assert [int(rows.ids[i, last]) for i, last in enumerate(rows.last)] == [7, 8]
        one = rows.take(torch.tensor([1]))
        assert one.ids.tolist() == [[8]] and one.samples.tolist() == [1]
    assert joined([right, padded([[1, 2, 3, 4]], [9])]).ids.shape == (3, 4)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(UserError, match=r"needs ids and mask \[batch, pos\]"):
        ModelInput(ids, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(UserError, match=r"pixel_values \(1, 3\): a row for each of 2 is needed"):
        ModelInput(ids, torch.ones_like(ids, dtype=torch.bool), extra={"pixel_values": torch.zeros(1, 3)})


def test_a_batch_with_images_and_its_text_only_twin_pass_through_the_same_record() -> None:
    lm = build("gemma3")
    words = [3, *[IMAGE_TOKEN] * IMAGE_TOKENS, 7, 9]
    ids = torch.tensor([words, words])
    mask, kinds = torch.ones_like(ids, dtype=torch.bool), (ids == IMAGE_TOKEN).long()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = ModelInput(ids, mask, extra={"pixel_values": pixels, "token_type_ids": kinds})
    both = forward(lm, images, capture=every_site(lm), logits="last")
    for row in range(2):
        alone = forward(lm, images.take(slice(row, row + 1)), capture=every_site(lm), logits="last")
        torch.testing.assert_close(alone.logits, both.logits[row : row + 1], atol=1e-5, rtol=1e-4)
    text = padded([[3, 7, 9], [3, 7, 9]])
    twin = forward(lm, text, capture=every_site(lm), logits="last")
    assert {key: x.shape[0] for key, x in twin.sites.items()} == {key: x.shape[0] for key, x in both.sites.items()}
    assert text.extra == {} and images.take(slice(0, 1)).extra["pixel_values"].shape[0] == 1
    assert images.to(torch.device("cpu")).extra.keys() == images.extra.keys()
