"""Blocks of weights: there and back bit for bit in every grouping, padding that means nothing, layouts that do not fit refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.nets.weight_blocks import Grouping, Layout, LayoutMismatch, concatenated, normalisation

TENSORS = (("down.lora_A", (2, 3, 3, 3)), ("down.lora_B", (8, 2)), ("attention.q.lora_A", (2, 8)), ("attention.q.lora_B", (8, 2)))
GROUPINGS: tuple[Grouping, ...] = ("layerwise", "padded", "shuffled")


def random_lora(tensors: tuple[tuple[str, tuple[int, ...]], ...] = TENSORS, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in tensors}


@pytest.mark.parametrize("grouping", GROUPINGS)
@given(shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=6), block_size=st.sampled_from([1, 4, 8, 64]))
def test_weights_come_back_from_their_blocks_bit_for_bit(grouping: Grouping, shapes: list[tuple[int, int]], block_size: int) -> None:
    tensors = tuple((f"layer{i // 2}.{'lora_A' if i % 2 == 0 else 'lora_B'}", shape) for i, shape in enumerate(shapes))
    layout, lora = Layout(tensors, block_size, grouping), random_lora(tensors)
    blocks = layout.to_blocks(lora)
    assert blocks.shape == (layout.blocks, block_size)
    assert int(layout.mask.sum()) == layout.elements
    assert not blocks[~layout.mask].any()
    back = layout.from_blocks(torch.where(layout.mask, blocks, torch.nan))  # padding is not read
    assert list(back) == [name for name, _shape in tensors]
    assert all(torch.equal(back[name], lora[name]) for name in lora)


def test_stacked_weights_are_grouped_like_each_alone() -> None:
    loras = [random_lora(seed=seed) for seed in range(3)]
    layout = Layout(TENSORS, 16, "padded")
    together = layout.to_blocks(concatenated(loras))
    assert all(torch.equal(together[i], layout.to_blocks(lora)) for i, lora in enumerate(loras))
    assert torch.equal(layout.from_blocks(together)["down.lora_A"][2], loras[2]["down.lora_A"])


def test_the_groupings_differ_in_what_stands_together() -> None:
    lora = random_lora()
    layerwise, padded, shuffled = (Layout(TENSORS, 16, grouping) for grouping in GROUPINGS)
    assert layerwise.blocks == shuffled.blocks == -(-102 // 16)
    assert padded.blocks == -(-70 // 16) + -(-32 // 16)
    assert torch.equal(layerwise.to_blocks(lora).flatten()[:54], lora["down.lora_A"].flatten())  # layers in order, A first
    assert torch.equal(padded.to_blocks(lora)[5].flatten(), lora["attention.q.lora_A"].flatten())  # a layer begins a block
    assert not torch.equal(shuffled.to_blocks(lora), layerwise.to_blocks(lora))
    assert torch.equal(shuffled.to_blocks(lora).flatten().sort().values, layerwise.to_blocks(lora).flatten().sort().values)


def test_weights_of_another_layout_are_refused_by_name() -> None:
    layout, lora = Layout(TENSORS), random_lora()
    with pytest.raises(LayoutMismatch, match=r"missing down.lora_B.*made for the same translator"):
        layout.to_blocks({name: tensor for name, tensor in lora.items() if name != "down.lora_B"})
    with pytest.raises(LayoutMismatch, match=r"unknown up.lora_A"):
        layout.to_blocks({**lora, "up.lora_A": torch.zeros(1)})
    with pytest.raises(LayoutMismatch, match=r"attention.q.lora_A of shape \(4, 8\) instead of \(2, 8\)"):
        layout.to_blocks({**lora, "attention.q.lora_A": torch.zeros(4, 8)})


def test_a_layout_is_what_its_json_says() -> None:
    layout = Layout(TENSORS, 32, "shuffled")
    facts = json.loads(json.dumps(layout.to_json()))
    assert Layout.from_json(facts) == layout
    assert [tensor["offset"] for tensor in facts["tensors"]] == [0, 54, 70, 86]
    assert [tensor["rank"] for tensor in facts["tensors"]] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="no layout of blocks"):
        Layout.from_json({"tensors": []})


def test_normalising_leaves_what_never_moved_as_it_is() -> None:
    layout = Layout(TENSORS, 64)
    loras = [random_lora(seed=seed) for seed in range(4)]
    for lora in loras:
        lora["down.lora_B"] = torch.ones(8, 2)  # no training changed it
    blocks = layout.to_blocks(concatenated(loras))
    mean, std = normalisation(blocks, layout.mask)
    whitened = (blocks - mean) / std
    moving = layout.to_blocks({**{name: torch.ones_like(t) for name, t in loras[0].items()}, "down.lora_B": torch.zeros(8, 2)}).bool()
    torch.testing.assert_close(whitened.std(0)[moving], torch.ones(int(moving.sum())))
    assert not whitened[:, ~moving].any()
    assert std[layout.mask].min() == pytest.approx(1e-2 * std[moving].median().item())
