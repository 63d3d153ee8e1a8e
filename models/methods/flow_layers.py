"""Layers of a FLUX transformer, shared between rows or left out, while the transformer itself stays as it is.

Layers are counted through: the double blocks (a stream for the text, one for the picture) first, then the single ones (both in one stream).
In shared layers the keys and values of a row's image tokens are those of its reference row, taken after the projections and before the norms
of queries and keys and the rotary positions. Text keys and values, queries and feed-forward maps stay each row's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from torch import Tensor, nn

from models.attention import attend


class UnknownLayer(ValueError):
    """A layer was named that this transformer does not have."""


class Rows:
    """What the rows of a batch take from each other and how long their texts are: one object that all layers of a pass read.

    references[i]: the row whose image keys and values row i takes, i itself for none. text_tokens: T, as the transformer is given them.
    text_lengths[i]: how many of them belong to row i, the rest being padding that nobody looks at; None: all T do.
    `injecting` may be switched between two passes.
    """

    def __init__(
        self,
        references: Sequence[int],
        text_tokens: int,
        text_lengths: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        self.references = torch.tensor(references, device=device)
        self.text_tokens, self.text_lengths, self.backend = text_tokens, text_lengths, backend
        self.injecting = True

    def attend(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Attention of every row over its own S = T + N tokens; padding neither looks nor is looked at and comes out as zeros."""
        if self.text_lengths is None:
            return attend(q_BSHD, k_BSHD, v_BSHD, backend=self.backend)
        S = q_BSHD.shape[1]
        lengths = torch.tensor(self.text_lengths, device=q_BSHD.device)
        place_S = torch.arange(S, device=q_BSHD.device)
        kept_BS = (place_S < lengths[:, None]) | (place_S >= self.text_tokens)
        lens = [length + S - self.text_tokens for length in self.text_lengths]
        q, k, v = (x[kept_BS][None] for x in (q_BSHD, k_BSHD, v_BSHD))
        out_BSHD = torch.zeros_like(q_BSHD)
        out_BSHD[kept_BS] = attend(q, k, v, q_lens=lens, kv_lens=lens, backend=self.backend)[0]
        return out_BSHD


class SharingAttention:
    """Attention processor of one layer: softmax(Q_i [Kt_i, Ki_r]^T / sqrt D) [Vt_i, Vi_r] for row i and its reference row r.

    Kt, Vt belong to the row's text tokens, Ki, Vi to the reference's image tokens; without `shared` r is i. It takes what diffusers' own
    processor takes: image tokens (B,N,C) beside the text's (B,T,C) in a double block, (B,T+N,C) alone in a single one.
    Source: arXiv 2411.14430, attention injection.
    """

    def __init__(self, rows: Rows, shared: bool) -> None:
        self.rows, self.shared = rows, shared

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        assert attention_mask is None
        assert image_rotary_emb is not None
        text = 0 if encoder_hidden_states is not None else self.rows.text_tokens  # before the picture's in hidden_states
        q_BSHD, k_BSHD, v_BSHD = (to(hidden_states).unflatten(-1, (-1, attn.head_dim)) for to in (attn.to_q, attn.to_k, attn.to_v))
        if self.shared and self.rows.injecting:
            k_BSHD, v_BSHD = (torch.cat([x[:, :text], x[self.rows.references, text:]], dim=1) for x in (k_BSHD, v_BSHD))
        q_BSHD, k_BSHD = attn.norm_q(q_BSHD), attn.norm_k(k_BSHD)
        if encoder_hidden_states is not None:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            tq_BTHD, tk_BTHD, tv_BTHD = (to(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)) for to in added)
            q_BSHD = torch.cat([attn.norm_added_q(tq_BTHD), q_BSHD], dim=1)
            k_BSHD = torch.cat([attn.norm_added_k(tk_BTHD), k_BSHD], dim=1)
            v_BSHD = torch.cat([tv_BTHD, v_BSHD], dim=1)
        q_BSHD, k_BSHD = (_rotated(x, image_rotary_emb) for x in (q_BSHD, k_BSHD))
        out_BSC = self.rows.attend(q_BSHD, k_BSHD, v_BSHD).flatten(2)
        if encoder_hidden_states is None:
            return out_BSC
        text_BTC, image_BNC = out_BSC.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        for module in attn.to_out:
            image_BNC = module(image_BNC)
        return image_BNC, attn.to_add_out(text_BTC)


def _rotated(x_BSHD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    turned = apply_rotary_emb(x_BSHD, rotary, sequence_dim=1)  # pyright: ignore[reportArgumentType]
    assert isinstance(turned, Tensor)
    return turned


class Skipped(nn.Module):
    """In place of a block: both streams leave as they came."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns (text (B,T,C), image (B,N,C)), as a block does."""
        return encoder_hidden_states, hidden_states


def layer_count(transformer: FluxTransformer2DModel) -> int:
    """Double and single blocks together."""
    return len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)


def layer_number(transformer: FluxTransformer2DModel, *, double: Sequence[int] = (), single: Sequence[int] = ()) -> tuple[int, ...]:
    """Layers counted through, from the numbers of double and of single blocks."""
    return (*double, *(len(transformer.transformer_blocks) + i for i in single))


def check_layers(layers: Collection[int], count: int) -> None:
    """Raises UnknownLayer for a layer outside 0 to count - 1."""
    wrong = sorted(layer for layer in layers if not 0 <= layer < count)
    if wrong:
        raise UnknownLayer(f"There is no layer {', '.join(map(str, wrong))}; this transformer has 0 to {count - 1}, double blocks first.")


@contextmanager
def shared_layers(transformer: FluxTransformer2DModel, layers: Collection[int], rows: Rows) -> Iterator[None]:
    """Within: every attention is computed by `attend`, and in `layers` image keys and values are the reference rows'. After, also after an
    exception: the processors that were there. Raises UnknownLayer."""
    check_layers(layers, layer_count(transformer))
    attentions = [_block(transformer, layer).attn for layer in range(layer_count(transformer))]
    originals = [attention.processor for attention in attentions]
    try:
        for layer, attention in enumerate(attentions):
            attention.set_processor(SharingAttention(rows, layer in layers))
        yield
    finally:
        for attention, original in zip(attentions, originals, strict=True):
            attention.set_processor(original)


@contextmanager
def skipped_layers(transformer: FluxTransformer2DModel, layers: Collection[int]) -> Iterator[None]:
    """Within: each of `layers` gives back what it gets, in both streams. After, also after an exception: as before. Raises UnknownLayer."""
    check_layers(layers, layer_count(transformer))
    originals = {layer: _block(transformer, layer) for layer in layers}
    try:
        for layer in layers:
            _replace(transformer, layer, Skipped())
        yield
    finally:
        for layer, block in originals.items():
            _replace(transformer, layer, block)


def _block(transformer: FluxTransformer2DModel, layer: int) -> Any:
    double = len(transformer.transformer_blocks)
    return transformer.transformer_blocks[layer] if layer < double else transformer.single_transformer_blocks[layer - double]


def _replace(transformer: FluxTransformer2DModel, layer: int, block: nn.Module) -> None:
    double = len(transformer.transformer_blocks)
    if layer < double:
        transformer.transformer_blocks[layer] = block
    else:
        transformer.single_transformer_blocks[layer - double] = block
