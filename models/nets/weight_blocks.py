"""A LoRA as blocks of equal length with a number each, which is what the weight denoiser works on, and back, bit for bit.

Letters: N blocks, E elements a block, D elements of a whole LoRA.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Grouping = Literal["layerwise", "padded", "shuffled"]
SHUFFLED_BY = 2407_11966  # seed of the one permutation of `shuffled`


class LayoutMismatch(ValueError):
    """Weights do not have the tensors that a layout names; nothing was used of them."""


@dataclass(frozen=True)
class Layout:
    """Which tensors a LoRA has, in order, and how their elements are grouped into blocks.

    grouping: `layerwise`, tensors one after the other and zeros at the end; `padded`, every layer filled up to whole blocks with zeros;
    `shuffled`, layerwise under one fixed permutation of the elements. The paper compares three rules without defining them
    (arXiv 2407.11966); these are ours.
    """

    tensors: tuple[
        tuple[str, tuple[int, ...]], ...
    ]  # (name, shape), such as ("down.lora_A", (4, 3, 3, 3)); a layer is the part before the last dot
    block_size: int = 256
    grouping: Grouping = "layerwise"

    def __post_init__(self) -> None:
        if self.grouping not in get_args(Grouping):
            raise ValueError(f"grouping: {self.grouping!r} is none of {', '.join(get_args(Grouping))}")
        if self.block_size < 1 or not self.tensors:
            raise ValueError("a layout needs a block_size of 1 or more, and at least one tensor")

    @property
    def elements(self) -> int:
        """D: elements of a LoRA without padding."""
        return sum(prod(shape) for _name, shape in self.tensors)

    @cached_property
    @torch.inference_mode(False)  # kept, and perhaps first asked for while generating; training must be able to use it afterwards
    def places(self) -> Tensor:
        """(D,) int64: where each element, tensors in order, stands in the N * E elements of the blocks."""
        if self.grouping == "shuffled":
            return torch.randperm(self.elements, generator=torch.Generator().manual_seed(SHUFFLED_BY))
        if self.grouping == "layerwise":
            return torch.arange(self.elements)
        parts, at = [], 0
        for _layer, tensors in itertools.groupby(self.tensors, key=lambda tensor: tensor[0].rsplit(".", 1)[0]):
            size = sum(prod(shape) for _name, shape in tensors)
            parts.append(torch.arange(at, at + size))
            at += -(-size // self.block_size) * self.block_size
        return torch.cat(parts)

    @cached_property
    def blocks(self) -> int:
        """N."""
        return int(self.places.max()) // self.block_size + 1

    @cached_property
    @torch.inference_mode(False)
    def mask(self) -> Tensor:
        """(N,E) bool: which elements of the blocks are weights, not padding."""
        mask = torch.zeros(self.blocks * self.block_size, dtype=torch.bool)
        mask[self.places] = True
        return mask.reshape(self.blocks, self.block_size)

    def to_blocks(self, lora: Mapping[str, Tensor]) -> Tensor:
        """(...,N,E) of tensors (...,*shape), padding 0. Raises LayoutMismatch, naming what is missing, unknown or of another shape."""
        named = dict(self.tensors)
        missing, unknown = named.keys() - lora.keys(), lora.keys() - named.keys()
        wrong = [
            f"{name} of shape {tuple(lora[name].shape)} instead of {shape}"
            for name, shape in self.tensors
            if name in lora and tuple(lora[name].shape[lora[name].ndim - len(shape) :]) != shape
        ]
        if problems := [*(f"missing {name}" for name in sorted(missing)), *(f"unknown {name}" for name in sorted(unknown)), *wrong]:
            raise LayoutMismatch(
                f"These weights are not of the layout: {'; '.join(problems[:3])}{' …' if len(problems) > 3 else ''}. "
                "Use weights and a denoiser that were made for the same translator."
            )
        flat = torch.cat([lora[name].flatten(lora[name].ndim - len(shape)) for name, shape in self.tensors], dim=-1)
        blocks = flat.new_zeros(*flat.shape[:-1], self.blocks * self.block_size)
        blocks[..., self.places] = flat
        return blocks.unflatten(-1, (self.blocks, self.block_size))

    def from_blocks(self, blocks: Tensor) -> dict[str, Tensor]:
        """Tensors (...,*shape) by name of blocks (...,N,E); padding has no influence."""
        flat = blocks.flatten(-2)[..., self.places]
        parts = flat.split([prod(shape) for _name, shape in self.tensors], dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.tensors, parts, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """As layout.json has it: each tensor with its shape, its offset in the flat vector and its rank."""
        offsets = itertools.accumulate((prod(shape) for _name, shape in self.tensors), initial=0)
        return {
            "block_size": self.block_size,
            "grouping": self.grouping,
            "tensors": [
                {"name": name, "shape": list(shape), "offset": offset, "rank": shape[0] if name.endswith("lora_A") else shape[1]}
                for (name, shape), offset in zip(self.tensors, offsets, strict=False)
            ],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Layout:
        """Of what `to_json` gave. Raises ValueError where something is missing or wrong."""
        try:
            tensors = tuple((str(tensor["name"]), tuple(map(int, tensor["shape"]))) for tensor in facts["tensors"])
            return cls(tensors, int(facts["block_size"]), facts["grouping"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no layout of blocks ({error!r}); fetch the denoiser's layout.json again") from error


def normalisation(blocks_CNE: Tensor, mask_NE: Tensor, floor: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over concepts, (N,E) each; 0 and 1 in padding. C training concepts, at least two.

    Deviations are at least `floor` of the median of those that are not 0: elements that no training changed stay what they are.
    """
    mean, std = blocks_CNE.mean(0), blocks_CNE.std(0)
    moving = std[mask_NE & (std > 0)]
    least = floor * moving.median() if len(moving) else torch.ones(())
    return mean * mask_NE, torch.where(mask_NE, std.clamp(min=least), 1.0)


def concatenated(loras: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """(C,*shape) by name, of C LoRAs with the same tensors."""
    return {name: torch.stack([lora[name] for lora in loras]) for name in loras[0]}
