"""Many low-rank adapters in one forward pass: every row of a batch goes through its own, and the network is given back untouched.

An adapter of a layer with weight W adds up @ down * scale to it. Here the adapters of G models lie stacked, and a batch is computed as the
frozen layer on all rows at once plus batched low-rank products. Letters: G adapters, B rows, R runs of n neighbouring rows with the same
adapter, r rank, C channels in, O channels out, k kernel side, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


class AdapterMismatch(ValueError):
    """Adapters do not fit the network, or the batch they are called with."""


@dataclass(frozen=True)
class LowRank:
    """One layer's adapters of G models: down (G,r,C) for nn.Linear or (G,r,C,k,k) for nn.Conv2d, up (G,O,r), one scale for all."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def delta(self, index: int) -> Tensor:
        """What adapter `index` adds to the layer's weight: (O,C) or (O,C,k,k)."""
        return torch.einsum("or,r...->o...", self.up[index], self.down[index]) * self.scale


@contextmanager
def attached(network: nn.Module, adapters: Mapping[str, LowRank], rows: Tensor) -> Iterator[nn.Module]:
    """Inside, row b of every batch goes through adapter rows[b]; it is differentiable in `down` and `up`.

    `adapters` by the names of `network.named_modules()`; rows (B,) int64. The first dimension of what a layer is given must be B; a caller
    that doubles its batch doubles the rows. Neighbouring rows of one adapter are computed together, fastest where all such runs are equally
    long. Layers in half precision keep their type; the products are computed in the adapters' own.
    Raises AdapterMismatch for an unknown layer or a wrong shape, on entering, and for another number of rows, when it is called.
    """
    runs = _runs(rows)
    with ExitStack() as hooks:
        for name, adapter in adapters.items():
            layer = _layer(network, name, adapter, rows)
            hook = partial(_add, name, LowRank(adapter.down[runs], adapter.up[runs], adapter.scale), len(rows))
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield network


def _runs(rows: Tensor) -> Tensor:
    """The adapter of each run (R,), where all runs are equally long; else each row is a run of its own (B,)."""
    values, counts = torch.unique_consecutive(rows, return_counts=True)
    if len(values) == 0:
        raise AdapterMismatch("A batch of no rows has no adapters; rows must hold an index for each row.")
    return values if bool((counts == counts[0]).all()) else rows


def _layer(network: nn.Module, name: str, adapter: LowRank, rows: Tensor) -> nn.Linear | nn.Conv2d:
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        raise AdapterMismatch(f"{name} is no layer of {type(network).__name__}; the adapters were made for another network.") from None
    if isinstance(layer, nn.Linear):
        takes, gives = (layer.in_features,), layer.out_features
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        takes, gives = (layer.in_channels, *layer.kernel_size), layer.out_channels
    else:
        raise AdapterMismatch(f"{name} is {layer}; adapters go on nn.Linear, and nn.Conv2d of one group padded by numbers of zeros.")
    models, rank = adapter.down.shape[:2]
    if tuple(adapter.down.shape[2:]) != takes or tuple(adapter.up.shape) != (models, gives, rank):
        raise AdapterMismatch(
            f"{name} takes down (G, r, {', '.join(map(str, takes))}) and up (G, {gives}, r), "
            f"not {tuple(adapter.down.shape)} and {tuple(adapter.up.shape)}."
        )
    if int(rows.min()) < 0 or int(rows.max()) >= models:
        raise AdapterMismatch(f"{name} has {models} adapters, but rows go from {int(rows.min())} to {int(rows.max())}.")
    return layer


def _add(name: str, own: LowRank, rows: int, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = inputs[0].to(own.down.dtype)
    if len(x) != rows:
        raise AdapterMismatch(
            f"{name} was called with {len(x)} rows, but adapters are attached for {rows}; hand over an index for each row."
        )
    if isinstance(layer, nn.Conv2d):
        return output + _convolved(x, own, layer).to(output.dtype)
    return _multiplied(x, own, output)


def _multiplied(x: Tensor, own: LowRank, output: Tensor) -> Tensor:
    """The output (B,L,O) or (B,O) of a layer on x (B,L,C) or (B,C), with the product added to it in one pass."""
    R = len(own.down)
    z_RPr = x.reshape(R, -1, x.shape[-1]) @ own.down.mT
    if output.dtype != z_RPr.dtype:
        return output + (z_RPr @ own.up.mT * own.scale).to(output.dtype).reshape(output.shape)
    return torch.baddbmm(output.reshape(R, -1, output.shape[-1]), z_RPr, own.up.mT, alpha=own.scale).reshape(output.shape)


def _convolved(x_BChw: Tensor, own: LowRank, layer: nn.Conv2d) -> Tensor:
    """(B,C,h,w) to (B,O,h',w'), run by run: on a CPU a grouped convolution is slower than its groups alone (docs/benchmarks.md)."""
    assert not isinstance(layer.padding, str)
    made = list[Tensor]()
    for x, down, up in zip(x_BChw.chunk(len(own.down)), own.down, own.up, strict=True):
        z = conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        made.append(conv2d(z, up[..., None, None] * own.scale))
    return torch.cat(made)
