"""Bounded Attention inside a U-Net: which layers there are, and the processors that bound them.

A layer's number is its place in the order of computation, self-attentions even, cross-attentions odd. Letters: E entries of a network call
(a row's unconditional or conditional half), H heads, n cells, T tokens, M keys (n or T), D channels, S subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from models.attention import attend, attention_probabilities
from models.methods.bounded_layout import Bounds, Grid, Packing, disjoint, packing

SDXL_LAYERS = 140
SDXL_BOUNDED = range(70, 82)  # up_blocks.0.attentions.0, blocks 1 to 6, as the authors chose

Watch: TypeAlias = Callable[[int, Tensor, Sequence["Entry"]], None]
"""Called in a watched layer with its number, the probabilities of the call's entries (E,H,n,M), and these."""


@dataclass(frozen=True)
class Layer:
    """An attention of the U-Net: its name, and the level whose grid it works on (0: the latents' own, each further one half as fine)."""

    name: str
    level: int


@dataclass(frozen=True)
class LayerTable:
    """All attentions by number, which of them the loss reads, and from which masks are refined."""

    layers: tuple[Layer, ...]
    loss: tuple[int, ...]
    mask: tuple[int, ...]

    def grid(self, number: int, latents: Grid) -> Grid:
        """Rows and columns of a layer's cells, of a picture's latents."""
        level = self.layers[number].level
        return latents[0] >> level, latents[1] >> level


@torch.no_grad()
def attention_layers(unet: UNet2DConditionModel) -> tuple[Layer, ...]:
    """The attentions of transformer blocks in the order in which a forward pass calls them, found by hooks. Raises ValueError if none alternate."""
    side = 2 ** (len(unet.config["block_out_channels"]) - 1)
    names = {module: name for name, module in unet.named_modules() if isinstance(module, Attention) and ".transformer_blocks." in name}
    called: list[tuple[str, int]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        assert isinstance(module, Attention)
        called.append((names[module], hidden.shape[1]))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in names]
    parameter = next(unet.parameters())
    like = {"device": parameter.device, "dtype": parameter.dtype}
    try:
        text = torch.zeros(1, 1, unet.config["cross_attention_dim"], **like)
        unet(torch.zeros(1, unet.config["in_channels"], 2 * side, 2 * side, **like), 0, encoder_hidden_states=text)
    finally:
        for hook in hooks:
            hook.remove()
    level_of = {(2 * side >> level) ** 2: level for level in range(side.bit_length())}
    layers = tuple(Layer(name, level_of[cells]) for name, cells in called)
    if not layers or any(layer.name.endswith("attn2") != bool(number % 2) for number, layer in enumerate(layers)):
        raise ValueError("This U-Net's attentions do not alternate between self (attn1) and cross (attn2); Bounded Attention needs that.")
    return layers


def layer_table(layers: Sequence[Layer], chosen: Mapping[str, Sequence[int]] | None) -> LayerTable:
    """The layers as `chosen` ({loss, mask}), or: loss in the middle block and the decoder's first block with attention, masks in the latter.

    That rule gives the authors' table for SD 1.5 (12-19, 14-19); SDXL has its own. Raises ValueError for numbers that are none, for a loss
    without self- or cross-attention, and for mask layers without both, or on several grids.
    """
    layers = tuple(layers)
    if chosen is not None:
        if set(chosen) != {"loss", "mask"}:
            raise ValueError(f"bounded_layers has {sorted(chosen)}; it needs exactly loss and mask, each a list of layer numbers.")
        loss, mask = (tuple(sorted(set(chosen[name]))) for name in ("loss", "mask"))
    elif len(layers) == SDXL_LAYERS:
        loss = mask = tuple(SDXL_BOUNDED)
    else:
        decoder = [number for number, layer in enumerate(layers) if layer.name.startswith("up_blocks.")]
        if not decoder:
            raise ValueError("This U-Net's decoder has no attention; name bounded_layers.")
        first = layers[decoder[0]].name.split(".attentions.")[0] + "."
        mask = tuple(number for number in decoder if layers[number].name.startswith(first))
        loss = tuple(number for number, layer in enumerate(layers) if layer.name.startswith("mid_block.")) + mask
    for name, numbers in (("loss", loss), ("mask", mask)):
        if not all(0 <= number < len(layers) for number in numbers):
            raise ValueError(f"bounded_layers.{name} {list(numbers)}: this U-Net has the layers 0 to {len(layers) - 1}.")
        if {number % 2 for number in numbers} != {0, 1}:
            raise ValueError(f"bounded_layers.{name} {list(numbers)} needs self-attentions (even) and cross-attentions (odd).")
    if len({layers[number].level for number in mask}) != 1:
        raise ValueError(f"bounded_layers.mask {list(mask)} lie on several grids; masks are refined on one.")
    return LayerTable(layers, loss, mask)


@dataclass(frozen=True)
class Entry:
    """One half of one row in a network call."""

    row: int  # the row's number in its group
    bounds: Bounds
    conditional: bool


@dataclass
class Call:
    """What the processors do in one call of the U-Net: whose masks hold, in which of their two forms, and who looks on.

    Self-attention is bounded in both halves, cross-attention in the conditional one.
    """

    entries: Sequence[Entry]
    table: LayerTable
    latents: Grid
    guidance: bool = False  # masks as in guidance: B sees subjects' tokens and the end token
    self_mask: bool = True
    cross_mask: bool = True
    watched: frozenset[int] = frozenset()
    watch: Watch | None = None
    packed: bool = False
    backend: str = "auto"
    _biases: dict[tuple[bool, Grid], Tensor | None] = field(default_factory=dict)
    _packings: dict[Grid, Packing | None] = field(default_factory=dict)

    def attention(self, number: int, q_EnHD: Tensor, k_EMHD: Tensor, v_EMHD: Tensor) -> Tensor:
        """Bounded attention of layer `number`, (E,n,H,D)."""
        grid, cross = self.table.grid(number, self.latents), bool(number % 2)
        if number in self.watched:
            assert self.watch is not None
            probabilities_EHnM = attention_probabilities(q_EnHD, k_EMHD, self._bias(cross, grid, k_EMHD))
            self.watch(number, probabilities_EHnM, self.entries)
            return torch.einsum("ehnm,emhd->enhd", probabilities_EHnM, v_EMHD)
        packed = None if cross or not self.packed else self._packing(grid)
        if packed is not None:
            return packed_attention(packed, q_EnHD, k_EMHD, v_EMHD, self.backend)
        return attend(q_EnHD, k_EMHD, v_EMHD, bias=self._bias(cross, grid, k_EMHD), backend=self.backend)

    def _bias(self, cross: bool, grid: Grid, keys_EMHD: Tensor) -> Tensor | None:
        """(E,1,n,M): 0 where a cell may look, -inf elsewhere; None where every cell may look everywhere."""
        key = (cross, grid)
        if key not in self._biases:
            allowed = [self._allowed(entry, cross, grid, keys_EMHD.shape[1]) for entry in self.entries]
            bias = None
            if not all(one is None for one in allowed):
                n, M = grid[0] * grid[1], keys_EMHD.shape[1]
                bias = torch.zeros(len(allowed), 1, n, M)
                for row, one in enumerate(allowed):
                    if one is not None:
                        bias[row, 0].masked_fill_(~one, float("-inf"))
                bias = bias.to(keys_EMHD)
            self._biases[key] = bias
        return self._biases[key]

    def _allowed(self, entry: Entry, cross: bool, grid: Grid, tokens: int) -> Tensor | None:
        if not len(entry.bounds):
            return None
        if cross:
            bounded = self.cross_mask and entry.conditional
            return entry.bounds.cross_allowed(grid, tokens, guidance=self.guidance) if bounded else None
        return entry.bounds.self_allowed(grid) if self.self_mask else None

    def _packing(self, grid: Grid) -> Packing | None:
        """None where nothing is bounded or masks overlap, which only a boolean mask can say."""
        if grid not in self._packings:
            masks = [entry.bounds.masks(grid) for entry in self.entries]
            bounded = self.self_mask and any(len(mask) for mask in masks)
            self._packings[grid] = packing(masks) if bounded and all(map(disjoint, masks)) else None
        return self._packings[grid]


def packed_attention(packed: Packing, q_EnHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, backend: str = "auto") -> Tensor:
    """Self-attention region by region, all entries in one line, nothing masked and nothing padded; (E,n,H,D)."""
    queries, keys = packed.queries.to(q_EnHD.device), packed.keys.to(q_EnHD.device)
    q, k, v = q_EnHD.flatten(0, 1)[queries][None], k_EnHD.flatten(0, 1)[keys][None], v_EnHD.flatten(0, 1)[keys][None]
    out = attend(q, k, v, q_lens=packed.query_lens, kv_lens=packed.key_lens, backend=backend)[0]
    back = torch.empty_like(queries)
    back[queries] = torch.arange(len(queries), device=queries.device)
    return out[back].reshape(q_EnHD.shape)


@dataclass
class Bounding:
    """What all processors of a U-Net look at: the call that is going on, if it is bounded."""

    call: Call | None = None

    @contextmanager
    def during(self, call: Call) -> Iterator[None]:
        """Within: `call` holds; after: what held before."""
        before, self.call = self.call, call
        try:
            yield
        finally:
            self.call = before


class BoundedProcessor:
    """Attention processor of one layer."""

    def __init__(self, number: int, bounding: Bounding) -> None:
        self.number, self.bounding = number, bounding

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_args: Any, **_kwargs: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        assert self.bounding.call is not None
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        out = self.bounding.call.attention(self.number, q, k, v).flatten(2)
        for module in attn.to_out:
            out = module(out)
        return out


@contextmanager
def attached(unet: UNet2DConditionModel, layers: Sequence[Layer], bounding: Bounding) -> Iterator[None]:
    """Within: every attention is bounded by `bounding`. After, also after an exception: as before."""
    attentions: list[Any] = [unet.get_submodule(layer.name) for layer in layers]
    originals = [attention.processor for attention in attentions]
    try:
        for number, attention in enumerate(attentions):
            attention.processor = BoundedProcessor(number, bounding)
        yield
    finally:
        for attention, original in zip(attentions, originals, strict=True):
            attention.processor = original
