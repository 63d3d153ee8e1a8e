"""The weight denoiser: a 1-D U-Net over one block of weights, told which block it is, how noisy, and the concept's text.

Source: arXiv 2407.11966 (no code exists). Two levels of residual block and transformer down, a middle, two levels up with skips; the block's
index and the time enter every residual block, text enters every transformer by cross-attention. Ours: widths, that neighbouring elements are
channels (`patch`), that index and time scale and shift, and that the index is also told element by element (`place`): what an element is
depends on its block, and a convolution alone would treat all alike. Letters: C concepts, N blocks of each, E elements of a block, T tokens,
R = C * N rows, L positions, W channels, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attend


@dataclass(frozen=True)
class DenoiserSizes:
    """What a denoiser is built for. E must be a multiple of 4 * patch, widths of their heads and of `groups`."""

    blocks: int  # of a whole LoRA: rows of the index table
    text_width: int
    block_size: int = 256
    patch: int = 8  # neighbouring elements taken as channels
    widths: tuple[int, int, int] = (64, 128, 256)
    heads: tuple[int, int, int] = (4, 4, 8)
    embedding: int = 256  # of index and time
    groups: int = 8  # of the normalisation
    directions: int = 32  # a block of its own to write in, beside what the U-Net gives element by element
    use_index: bool = True  # False: for the arm of the proof that does not tell


class WeightDenoiser(nn.Module):
    """x0, v or eps of noisy blocks; which of them is a matter of training."""

    def __init__(self, sizes: DenoiserSizes) -> None:
        super().__init__()
        if sizes.block_size % (4 * sizes.patch):
            raise ValueError(f"block_size {sizes.block_size} must be a multiple of 4 * patch, {4 * sizes.patch}")
        self.sizes = sizes
        a, b, c = sizes.widths
        self.index_table = nn.Embedding(sizes.blocks, sizes.embedding)
        self.place = nn.Linear(sizes.embedding, sizes.block_size)
        self.time = nn.Sequential(nn.Linear(sizes.embedding, sizes.embedding), nn.SiLU(), nn.Linear(sizes.embedding, sizes.embedding))
        self.enter = nn.Conv1d(2 * sizes.patch, a, 3, padding=1)
        self.down_1, self.shrink_1 = Level(a, a, sizes.heads[0], sizes), nn.Conv1d(a, b, 3, stride=2, padding=1)
        self.down_2, self.shrink_2 = Level(b, b, sizes.heads[1], sizes), nn.Conv1d(b, c, 3, stride=2, padding=1)
        self.middle, self.leave_middle = Level(c, c, sizes.heads[2], sizes), ResBlock1d(c, c, sizes)
        self.grow_2, self.up_2 = nn.Conv1d(c, b, 3, padding=1), Level(2 * b, b, sizes.heads[1], sizes)
        self.grow_1, self.up_1 = nn.Conv1d(b, a, 3, padding=1), Level(2 * a, a, sizes.heads[0], sizes)
        self.leave = nn.Sequential(nn.GroupNorm(sizes.groups, a), nn.SiLU(), nn.Conv1d(a, sizes.patch, 3, padding=1))
        self.directions = nn.Parameter(torch.zeros(sizes.blocks, sizes.directions, sizes.block_size))
        self.along = nn.Linear(a, sizes.directions)
        nn.init.zeros_(self.along.weight)
        nn.init.zeros_(self.along.bias)
        last = self.leave[-1]
        assert isinstance(last, nn.Conv1d)
        nn.init.zeros_(last.weight)  # an untrained denoiser gives the mean of the training concepts
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, x_CNE: Tensor, t_CN: Tensor, index_CN: Tensor, text_CTD: Tensor) -> Tensor:
        """(C,N,E). `t_CN` 0 to 999; `index_CN` int64: which blocks of the LoRA these are, any of them in any order; `text_CTD`: text states."""
        patch = self.sizes.patch
        C, N, E = x_CNE.shape
        index_RD = self.index_table(index_CN.flatten()) if self.sizes.use_index else x_CNE.new_zeros(C * N, self.sizes.embedding)
        told = F.silu(index_RD + self.time(sinusoids(t_CN.flatten(), self.sizes.embedding).to(x_CNE.dtype)))
        both = torch.stack([x_CNE.reshape(C * N, E), self.place(index_RD)], dim=1)  # R2E
        h = self.enter(both.reshape(C * N, 2, E // patch, patch).transpose(2, 3).reshape(C * N, 2 * patch, E // patch))
        first = self.down_1(h, told, text_CTD)
        second = self.down_2(self.shrink_1(first), told, text_CTD)
        h = self.leave_middle(self.middle(self.shrink_2(second), told, text_CTD), told)
        h = self.up_2(torch.cat([self.grow_2(_twice(h)), second], dim=1), told, text_CTD)
        h = self.up_1(torch.cat([self.grow_1(_twice(h)), first], dim=1), told, text_CTD)
        x_CNE = self.leave(h).transpose(1, 2).reshape(C, N, E)
        if not self.sizes.use_index:
            return x_CNE
        along_CNK = self.along(h.mean(-1)).unflatten(0, (C, N))
        # an embedding and not an index: the backward pass of indexing adds in any order on several threads, and no training would repeat itself
        directions_CNKE = F.embedding(index_CN, self.directions.flatten(1)).unflatten(-1, self.directions.shape[1:])
        return x_CNE + torch.einsum("cnk,cnke->cne", along_CNK, directions_CNKE)


class Level(nn.Module):
    """A residual block, then a transformer."""

    def __init__(self, takes: int, width: int, heads: int, sizes: DenoiserSizes) -> None:
        super().__init__()
        self.block = ResBlock1d(takes, width, sizes)
        self.transformer = Transformer1d(width, heads, sizes)

    def forward(self, x_RWL: Tensor, told_RD: Tensor, text_CTD: Tensor) -> Tensor:
        return self.transformer(self.block(x_RWL, told_RD), text_CTD)


class ResBlock1d(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale) + shift)); scale and shift from index and time."""

    def __init__(self, takes: int, width: int, sizes: DenoiserSizes) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(sizes.groups, takes), nn.Conv1d(takes, width, 3, padding=1)
        self.told = nn.Linear(sizes.embedding, 2 * width)
        self.norm_2, self.conv_2 = nn.GroupNorm(sizes.groups, width), nn.Conv1d(width, width, 3, padding=1)
        self.past = nn.Identity() if takes == width else nn.Conv1d(takes, width, 1)

    def forward(self, x_RWL: Tensor, told_RD: Tensor) -> Tensor:
        scale, shift = self.told(told_RD)[..., None].chunk(2, dim=1)
        h = self.norm_2(self.conv_1(F.silu(self.norm_1(x_RWL)))) * (1 + scale) + shift
        return self.past(x_RWL) + self.conv_2(F.silu(h))


class Transformer1d(nn.Module):
    """Self-attention within a block, cross-attention to the text, and a gated feed-forward layer, each on what its norm gives and added."""

    def __init__(self, width: int, heads: int, sizes: DenoiserSizes) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out_self = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(sizes.text_width, 2 * width, bias=False)
        self.out_cross = nn.Linear(width, width)
        self.feed_in, self.feed_out = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x_RWL: Tensor, text_CTD: Tensor) -> Tensor:
        x_RLW = x_RWL.transpose(1, 2)
        R, L, W = x_RLW.shape
        C, T, _ = text_CTD.shape
        q, k, v = (part.reshape(R, L, self.heads, -1) for part in self.qkv(self.norm_self(x_RLW)).chunk(3, dim=-1))
        x_RLW = x_RLW + self.out_self(attend(q, k, v).reshape(R, L, W))
        # all blocks of a concept are the queries of one row, so that its text's keys and values are neither copied nor computed twice
        q = self.q(self.norm_cross(x_RLW)).reshape(C, -1, self.heads, W // self.heads)
        k, v = (part.reshape(C, T, self.heads, -1) for part in self.kv(text_CTD).chunk(2, dim=-1))
        x_RLW = x_RLW + self.out_cross(attend(q, k, v).reshape(R, L, W))
        value, gate = self.feed_in(self.norm_feed(x_RLW)).chunk(2, dim=-1)
        return (x_RLW + self.feed_out(value * F.gelu(gate))).transpose(1, 2)


def sinusoids(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """(B,width) sines and cosines of times (B,)."""
    frequencies = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(longest) / (width // 2)))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _twice(x_RWL: Tensor) -> Tensor:
    return x_RWL.repeat_interleave(2, dim=-1)
