"""Bounded layers: which there are, that a mask holds exactly, and that packing changes nothing."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.methods.bounded_layers import Bounding, Call, Entry, Layer, LayerTable, attached, attention_layers, layer_table
from models.methods.bounded_layout import Bounds, Box, Layout
from tests.models.methods.tiny_bounded_attention import LEFT, RIGHT
from tests.models.tiny_bases import tiny_unet

TABLE = LayerTable((Layer("attn1", 0), Layer("attn2", 0)), (0, 1), (0, 1))
SIDE, TOKENS = 6, 9
EMPTY = Bounds(Layout([], [], [], [1], 8))


def bounds(*boxes: Box) -> Bounds:
    return Bounds(Layout(boxes, [[2 + i] for i in range(len(boxes))], [2 + i for i in range(len(boxes))], [1], 8))


def queries_keys_values(rows: int, seed: int, keys: int = SIDE * SIDE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, n, 2, 8, generator=generator) for n in (SIDE * SIDE, keys, keys))
    return q, k, v


def call(*entries: Entry, packed: bool = False, watched: frozenset[int] = frozenset()) -> Call:
    return Call(entries, TABLE, (SIDE, SIDE), packed=packed, watched=watched, watch=lambda *_: None)


@pytest.mark.parametrize("form", ["mask", "packed", "explicit"])
def test_one_subjects_keys_and_values_change_nothing_in_anothers_cells(form: str) -> None:
    bound = bounds(LEFT, RIGHT)
    first, second = bound.regions((SIDE, SIDE))
    q, k, v = queries_keys_values(1, seed=0)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, first] += 3.0
    changed_v[:, first] -= 5.0

    def attention(k: Tensor, v: Tensor) -> Tensor:
        watched = frozenset({0}) if form == "explicit" else frozenset()
        return call(Entry(0, bound, True), packed=form == "packed", watched=watched).attention(0, q, k, v)

    difference = (attention(k, v) - attention(changed_k, changed_v)).abs().amax((0, 2, 3))
    assert difference[second].max() == 0
    assert difference[first].min() > 0
    assert difference[~(first | second)].min() > 0


@settings(max_examples=15, deadline=None)
@given(split=st.integers(1, 5), top=st.integers(0, 3), seed=st.integers(0, 99))
def test_packed_self_attention_is_the_masked_one_for_any_layouts_in_one_batch(split: int, top: int, seed: int) -> None:
    x, y = split / SIDE, top / SIDE
    entries = [
        Entry(0, bounds((0.0, y, x, 1.0), (x, 0.0, 1.0, 0.5)), False),
        Entry(1, bounds((0.0, 0.0, 1.0, 1.0)), True),
        Entry(2, EMPTY, True),
        Entry(3, bounds((x - 1 / SIDE, y, x, y + 1 / SIDE)), True),
    ]
    q, k, v = queries_keys_values(len(entries), seed)
    masked, packed = (call(*entries, packed=form).attention(0, q, k, v) for form in (False, True))
    explicit = call(*entries, watched=frozenset({0})).attention(0, q, k, v)
    assert (packed - masked).abs().max() < 1e-5
    assert (explicit - masked).abs().max() < 1e-5


def test_overlapping_regions_are_masked_where_packing_was_asked_for() -> None:
    entry = Entry(0, bounds((0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)), True)
    q, k, v = queries_keys_values(1, seed=0)
    assert call(entry, packed=True).attention(0, q, k, v).equal(call(entry).attention(0, q, k, v))


@pytest.mark.parametrize("number", [0, 1])
def test_a_row_in_a_layer_does_not_depend_on_other_layouts_in_the_batch(number: int) -> None:
    entries = [Entry(0, bounds(LEFT, RIGHT), True), Entry(1, EMPTY, True), Entry(2, bounds(RIGHT), False)]
    q, k, v = queries_keys_values(3, seed=1, keys=TOKENS if number else SIDE * SIDE)
    together = call(*entries).attention(number, q, k, v)
    for row, entry in enumerate(entries):
        alone = call(entry).attention(number, q[row : row + 1], k[row : row + 1], v[row : row + 1])
        assert (alone - together[row : row + 1]).abs().max() < 1e-5


def test_text_is_bounded_in_the_conditional_half_only() -> None:
    q, k, v = queries_keys_values(2, seed=2, keys=TOKENS)
    q, k, v = (x[:1].expand(2, -1, -1, -1) for x in (q, k, v))
    bound = bounds(LEFT)
    free, bounded = call(Entry(0, bound, False), Entry(0, bound, True)).attention(1, q, k, v)
    plain = call(Entry(0, EMPTY, True)).attention(1, q[:1], k[:1], v[:1])[0]
    assert (free - plain).abs().max() < 1e-6
    assert (bounded - plain).abs().max() > 0.01


def sd15() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layout at a tenth of its width."""
    return UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=2, attention_head_dim=2, norm_num_groups=8,
        cross_attention_dim=8,
    )  # fmt: skip


def test_the_rule_gives_the_authors_table_for_stable_diffusion() -> None:
    table = layer_table(attention_layers(sd15()), None)
    assert len(table.layers) == 32
    assert table.loss == tuple(range(12, 20))
    assert table.mask == tuple(range(14, 20))
    assert {table.layers[number].name.split(".attentions")[0] for number in table.mask} == {"up_blocks.1"}
    assert [table.grid(number, (64, 48)) for number in (0, 12, 14, 31)] == [(64, 48), (8, 6), (16, 12), (64, 48)]


def test_layers_are_numbered_as_they_are_called() -> None:
    layers = attention_layers(tiny_unet(0))
    assert [(layer.name.split(".attentions")[0], layer.level) for layer in layers[::2]] == [
        ("down_blocks.0", 0), ("down_blocks.1", 1), ("mid_block", 1), ("up_blocks.0", 1), ("up_blocks.0", 1), ("up_blocks.1", 0), ("up_blocks.1", 0),
    ]  # fmt: skip
    assert layer_table(layers, None).loss == tuple(range(4, 10))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"loss": [4, 5]}, "needs exactly loss and mask"),
        ({"loss": [4, 99], "mask": [6, 7]}, "this U-Net has the layers 0 to 13"),
        ({"loss": [4], "mask": [6, 7]}, "needs self-attentions"),
        ({"loss": [4, 5], "mask": [6, 7, 10, 11]}, "several grids"),
    ],
)
def test_a_table_that_cannot_be_is_refused(chosen: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_table(attention_layers(tiny_unet(0)), chosen)


def test_processors_come_out_again_also_after_an_exception() -> None:
    unet = tiny_unet(0)
    before = dict(unet.attn_processors)
    layers = attention_layers(unet)
    with pytest.raises(ZeroDivisionError), attached(unet, layers, Bounding()):
        _ = 1 // len(set(map(id, before.values())) & set(map(id, unet.attn_processors.values())))  # no processor is the one before
    assert unet.attn_processors == before
