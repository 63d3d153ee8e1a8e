"""Guidance: the loss and its step by hand, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.methods.bounded_guidance import Guided, NonFiniteLoss, descend, foreground_background, iou, losses_of, step_size, token_contexts
from models.methods.bounded_layers import Bounding, Call, Entry, attached, attention_layers, layer_table
from models.methods.bounded_layout import Bounds, Layout
from tests.models.methods.tiny_bounded_attention import LEFT, RIGHT
from tests.models.tiny_bases import TEXT_WIDTH, tiny_unet

LAYOUT = Layout([LEFT, RIGHT], [[2, 3], [6, 7]], [3, 7], [1, 4, 5], 8)


def test_the_step_falls_from_the_first_towards_the_last() -> None:
    assert [step_size(i, 3, 8, 2) for i in range(3)] == [8, 6, 4]
    assert step_size(0, 15, 18, 5) == 18
    assert step_size(14, 15, 8, 2) == pytest.approx(2.4)


def test_iou_weighs_the_background_by_the_number_of_subjects() -> None:
    assert iou(torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.0])).tolist() == [0.75, 1.0]


def test_attention_is_summed_over_a_regions_cells_and_its_context() -> None:
    attention = torch.arange(16.0).reshape(4, 4)
    regions = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    contexts = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    found = foreground_background(attention, contexts, regions)
    assert found[0].tolist() == [1 + 2 + 5 + 6, 8]
    assert found[1].tolist() == [13 + 14, 12]


def test_a_subjects_context_is_its_tokens_and_the_end() -> None:
    assert token_contexts(Bounds(LAYOUT), 10).nonzero().tolist() == [[0, 2], [0, 3], [0, 8], [1, 6], [1, 7], [1, 8]]


def squares(z: Tensor, _rows: list[int]) -> Tensor:
    return z.flatten(1).square().sum(1)


def test_rows_stop_each_for_itself_and_stay_as_they_are() -> None:
    z = torch.tensor([[[[1.0]]], [[[0.1]]]])
    guided, calls = [Guided(), Guided()], []

    def losses(x: Tensor, rows: list[int]) -> Tensor:
        calls.append(list(rows))
        return squares(x, rows)

    found = descend(losses, z, [1, 1], guided, beta=0.25, iterations=3, threshold=0.2)
    assert calls == [[0, 1], [0], [0]]  # the second row is done at once, 0.01 < 0.2
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.25, 0.1])  # 1 -> 0.5 -> 0.25, where 0.0625 < 0.2
    assert [one.updates for one in guided] == [2, 0]
    assert guided[0].losses == pytest.approx([1.0, 0.25, 0.0625])
    assert z[0].item() == 1.0


def test_the_threshold_is_of_the_loss_a_subject() -> None:
    z = torch.full((1, 1, 1, 1), 0.7)  # loss 0.49
    for subjects, updates in ((1, 1), (3, 0)):
        guided = [Guided()]
        descend(squares, z, [subjects], guided, beta=0.1, iterations=1, threshold=0.2)
        assert guided[0].updates == updates


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fails(value: float) -> None:
    with pytest.raises(NonFiniteLoss, match="lower step_size"):
        descend(lambda z, rows: squares(z, rows) * value, torch.ones(1, 1, 1, 1), [1], [Guided()], beta=1.0, iterations=1, threshold=0.2)


def test_the_gradient_is_that_of_finite_differences() -> None:
    unet = tiny_unet(0).double().requires_grad_(False)
    table = layer_table(attention_layers(unet), None)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    states = torch.randn(2, 10, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    bounding, bounds = Bounding(), [Bounds(LAYOUT), Bounds(Layout([RIGHT], [[2]], [2], [1], 3))]

    def losses(x: Tensor) -> Tensor:
        call = Call([Entry(row, bounds[row], True) for row in range(2)], table, (8, 8), guidance=True)

        def forward(latents: Tensor, during: Call) -> None:
            with bounding.during(during):
                unet(latents, 500, encoder_hidden_states=states)

        return losses_of(forward, x, call, (1.5, 0.5), [0, 1], stop=True)

    with attached(unet, table.layers, bounding):
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(leaf).sum(), leaf)
        directions = torch.randn(3, *z.shape, generator=generator, dtype=torch.float64)
        for direction in directions:
            difference = (losses(z + 1e-4 * direction) - losses(z - 1e-4 * direction)).sum() / 2e-4
            assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-3)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
