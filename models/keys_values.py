"""Keys and values of reference images by attention layer: what one pass computes and many rows look at.

U distinct references, T references over all rows, N tokens of a layer, M keys, C channels over all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ADAIN_EPS = 1e-5


@dataclass(frozen=True)
class LayerKeysValues:
    """Raw keys and values of U references in one layer, and the values' mean and unbiased deviation over tokens."""

    k: Tensor  # (U,N,C)
    v: Tensor  # (U,N,C)
    v_mean: Tensor  # (U,1,C)
    v_std: Tensor  # (U,1,C)

    @classmethod
    def of(cls, k_UNC: Tensor, v_UNC: Tensor) -> LayerKeysValues:
        return cls(k_UNC, v_UNC, v_UNC.mean(1, keepdim=True), v_UNC.std(1, keepdim=True))

    @classmethod
    def concatenated(cls, parts: Sequence[LayerKeysValues]) -> LayerKeysValues:
        """The references of all `parts`, one after the other."""
        return cls(*(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k, self.v, self.v_mean, self.v_std

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def one(self, i: int) -> LayerKeysValues:
        """Reference `i` alone, copied, so that it does not keep the others' memory."""
        return LayerKeysValues(*(tensor[i : i + 1].clone() for tensor in self.tensors))

    def take(self, index_T: list[int]) -> LayerKeysValues:
        """References `index_T` of these, in that order; a reference may come more than once."""
        if index_T == list(range(self.k.shape[0])):
            return self
        index = torch.tensor(index_T, device=self.k.device, dtype=torch.long)
        return LayerKeysValues(*(tensor[index] for tensor in self.tensors))

    def with_zeros(self) -> LayerKeysValues:
        """These and one more reference whose keys and values are zero."""
        return LayerKeysValues(*(torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])]) for tensor in self.tensors))


@dataclass(frozen=True)
class References:
    """What a batch looks at: `layers`, one a shared layer, over U distinct references; `rows[b]`: which of them row b has, maybe none.

    `layers` may be empty where no row has a reference.
    """

    layers: Sequence[LayerKeysValues]
    rows: Sequence[Sequence[int]]


def adain(references: LayerKeysValues, own_v_TNC: Tensor) -> Tensor:
    """(V - mean V) / (std V + eps) * (std V_own + eps) + mean V_own, per reference and channel over tokens, std unbiased. Returns TNC.

    `own_v_TNC`: for each of the T references the values of the image that looks at it. Per channel is per head and channel: no head mixes.
    """
    own_mean, own_std = own_v_TNC.mean(1, keepdim=True), own_v_TNC.std(1, keepdim=True)
    normal_TNC = (references.v - references.v_mean) / (references.v_std + ADAIN_EPS)
    return normal_TNC * (own_std + ADAIN_EPS) + own_mean


def packed(own_BNC: Tensor | None, references_TNC: Tensor, rows: Sequence[Sequence[int]], own_kv: bool) -> tuple[Tensor, list[int]]:
    """Keys (or values) of all rows in one line, (1,M,C), and how many each row has: its own first where `own_kv` or without reference."""
    N, C = references_TNC.shape[1:]
    has_own = [own_kv or not row for row in rows]
    lens = [N * (own + len(row)) for own, row in zip(has_own, rows, strict=True)]
    if not any(has_own):
        return references_TNC.reshape(1, -1, C), lens
    assert own_BNC is not None
    pieces, start = [], 0
    for b, row in enumerate(rows):
        if has_own[b]:
            pieces.append(own_BNC[b])
        if row:
            pieces.append(references_TNC[start : start + len(row)].reshape(-1, C))
            start += len(row)
    return torch.cat(pieces)[None], lens
