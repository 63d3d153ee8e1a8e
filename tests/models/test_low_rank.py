"""Many adapters in one forward pass are each adapter merged alone, and leave nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from models.low_rank import AdapterMismatch, LowRank, attached


class Small(nn.Module):
    """A convolution with stride, one with a 1 x 1 kernel, and a linear layer over positions and over pooled rows."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, stride=2, padding=1)
        self.point = nn.Conv2d(8, 6, 1)
        self.mix = nn.Linear(6, 6)
        self.pooled = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(self.down(x).relu())
        tokens = self.mix(h.flatten(2).transpose(1, 2))
        return self.pooled(tokens.mean(1))


def make_adapters(models: int, seed: int = 0, rank: int = 2) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.3).requires_grad_()

    shapes = {"down": (8, 3, 4, 4), "point": (6, 8, 1, 1), "mix": (6, 6), "pooled": (5, 6)}
    return {
        name: LowRank(draw(models, rank, *taken), draw(models, out, rank), scale=0.5 + len(name) / 10)
        for name, (out, *taken) in shapes.items()
    }


def merged(network: nn.Module, adapters: dict[str, LowRank], index: int) -> nn.Module:
    alone = copy.deepcopy(network)
    for name, adapter in adapters.items():
        layer = alone.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        with torch.no_grad():
            layer.weight += adapter.delta(index)
    return alone


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().requires_grad_(False)


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_each_row_goes_through_its_own_adapter_as_if_it_were_merged(rows: list[int]) -> None:
    torch.manual_seed(0)
    network, adapters = Small().requires_grad_(False), make_adapters(4)
    x = torch.randn(len(rows), 3, 8, 8)
    with torch.no_grad(), attached(network, adapters, torch.tensor(rows)):
        together = network(x)
    with torch.no_grad():
        alone = torch.cat([merged(network, adapters, row)(x[b : b + 1]) for b, row in enumerate(rows)])
    assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [2, 0, 1, 1, 0, 2], [1, 1, 1, 1, 1, 1]])
def test_gradients_are_those_of_each_adapter_trained_alone(network: nn.Module, rows: list[int]) -> None:
    adapters = make_adapters(3)
    x, target = torch.randn(6, 3, 8, 8), torch.randn(6, 5)
    leaves = [tensor for adapter in adapters.values() for tensor in (adapter.down, adapter.up)]
    with attached(network, adapters, torch.tensor(rows)):
        together = torch.autograd.grad((network(x) - target).square().sum(), leaves)
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    for b, row in enumerate(rows):
        with attached(network, adapters, torch.tensor([row])):
            alone = torch.autograd.grad((network(x[b : b + 1]) - target[b : b + 1]).square().sum(), leaves)
        sums = [total + one for total, one in zip(sums, alone, strict=True)]
    for a, b in zip(together, sums, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_an_adapter_whose_up_is_zero_changes_nothing(network: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8)
    zero = {name: LowRank(adapter.down, torch.zeros_like(adapter.up), adapter.scale) for name, adapter in make_adapters(2).items()}
    with torch.no_grad(), attached(network, zero, torch.tensor([0, 1, 1, 0])):
        inside = network(x)
    assert torch.equal(inside, network(x))


def test_the_network_is_given_back_untouched_also_after_an_exception(network: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    before = network(x)

    def fail_inside() -> None:
        with attached(network, make_adapters(2), torch.tensor([0, 1])):
            assert not torch.equal(network(x), before)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert torch.equal(network(x), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_wrong_layer_leaves_no_hook_of_the_right_ones(network: nn.Module) -> None:
    adapters = make_adapters(1) | {"nowhere": LowRank(torch.zeros(1, 1, 2), torch.zeros(1, 2, 1))}
    with pytest.raises(AdapterMismatch, match="nowhere is no layer"), attached(network, adapters, torch.tensor([0])):
        pass
    assert not any(module._forward_hooks for module in network.modules())


def test_layers_in_half_precision_keep_their_type(network: nn.Module) -> None:
    adapters = make_adapters(2)
    with torch.no_grad(), attached(network.to(torch.bfloat16), adapters, torch.tensor([0, 1])):
        assert network(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "adapter", "rows", "message"),
    [
        ("mix", LowRank(torch.zeros(1, 2, 7), torch.zeros(1, 6, 2)), [0], "takes down"),
        ("mix", LowRank(torch.zeros(1, 2, 6), torch.zeros(1, 6, 3)), [0], "takes down"),
        ("mix", LowRank(torch.zeros(2, 2, 6), torch.zeros(2, 6, 2)), [2], "has 2 adapters"),
        ("", LowRank(torch.zeros(1, 2, 6), torch.zeros(1, 6, 2)), [0], "adapters go on"),
        ("mix", LowRank(torch.zeros(1, 2, 6), torch.zeros(1, 6, 2)), [], "no rows"),
    ],
)
def test_what_does_not_fit_is_refused_on_entering(network: nn.Module, name: str, adapter: LowRank, rows: list[int], message: str) -> None:
    with pytest.raises(AdapterMismatch, match=message), attached(network, {name: adapter}, torch.tensor(rows, dtype=torch.long)):
        pass


def test_another_number_of_rows_is_refused_when_called(network: nn.Module) -> None:
    with attached(network, make_adapters(2), torch.tensor([0, 1])), pytest.raises(AdapterMismatch, match="3 rows"):
        network(torch.randn(3, 3, 8, 8))
