"""Attention over batches and packed rows: one place that chooses who computes it.

Packing puts rows of different length in one line, on the token axis of a batch of one; `q_lens` and `kv_lens` say where each ends. A row's
queries then see its own keys only, and nothing is padded. Backends, best first: xformers (CUDA), torch's variable-length kernel (CUDA, half
precision, packed rows), and `scaled_dot_product_attention` anywhere, one call a row (or a single one where all rows are equally long).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax

logger = logging.getLogger(__name__)

Backend = Literal["auto", "xformers", "varlen", "sdpa"]
HALF = (torch.float16, torch.bfloat16)


class AttentionBackendError(RuntimeError):
    """An attention backend was asked for by name and cannot run here."""


def attend(
    q_BNHD: Tensor,
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    *,
    bias: Tensor | None = None,
    q_lens: Sequence[int] | None = None,
    kv_lens: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias) V for B rows of N queries and M keys, H heads, D channels. Returns BNHD.

    Packed (`q_lens` and `kv_lens`, both or neither): B is 1, the lengths of the rows sum to N and M, and each row sees its own keys only.
    `bias` is additive, broadcastable to BHNM, also when packed (of which only the rows' own blocks are read).
    Raises ValueError for shapes that do not fit and AttentionBackendError for a backend, asked for by name, that cannot run.
    """
    _check_shapes(q_BNHD, k_BMHD, v_BMHD, q_lens, kv_lens)
    chosen = resolve_backend(
        q_BNHD.device,
        q_BNHD.dtype,
        packed=q_lens is not None,
        biased=bias is not None,
        channels=(q_BNHD.shape[-1], v_BMHD.shape[-1]),
        backend=backend,
    )
    if chosen == "xformers":
        return _xformers(q_BNHD, k_BMHD, v_BMHD, q_lens, kv_lens)
    if q_lens is None or kv_lens is None:
        return _sdpa(q_BNHD, k_BMHD, v_BMHD, bias)
    if chosen == "varlen":
        return _varlen(q_BNHD, k_BMHD, v_BMHD, q_lens, kv_lens)
    return _sdpa_per_row(q_BNHD, k_BMHD, v_BMHD, bias, q_lens, kv_lens)


def attention_probabilities(q_BNHD: Tensor, k_BMHD: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias) as BHNM, materialised: where somebody reads the probabilities, not for plain attention."""
    logits_BHNM = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BMHD) * q_BNHD.shape[-1] ** -0.5
    return softmax(logits_BHNM if bias is None else logits_BHNM + bias, dim=-1)


def resolve_backend(
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    packed: bool = True,
    biased: bool = False,
    channels: tuple[int, int] = (64, 64),
    backend: str = "auto",
) -> str:
    """The backend that `attend` uses for such inputs: "xformers", "varlen" or "sdpa". A job logs it.

    `channels` are those of a head in Q, K and in V. Raises AttentionBackendError if `backend` names one that cannot run, ValueError if
    there is none of that name.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"There is no attention backend {backend!r}; choose one of {', '.join(get_args(Backend))}.")
    device_type = torch.device(device).type
    obstacles = {
        "xformers": _xformers_obstacle(device_type, dtype, biased, channels),
        "varlen": _varlen_obstacle(device_type, dtype, packed, biased, channels),
        "sdpa": None,
    }
    if backend == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[backend] is not None:
        raise AttentionBackendError(f"Attention backend {backend!r} cannot run: {obstacles[backend]}. Use 'auto' or 'sdpa'.")
    return backend


def _xformers_obstacle(device_type: str, dtype: torch.dtype, biased: bool, channels: tuple[int, int]) -> str | None:
    # Asked first: on CPU xformers imports and even accepts being chosen, and fails only at the first call.
    if device_type != "cuda":
        return f"it needs CUDA, the tensors are on {device_type}"
    step = 8 if dtype in HALF else 4
    if dtype not in (*HALF, torch.float32):
        return f"it has no kernel for {dtype}"
    if biased:
        return "an additive bias is computed by sdpa only"
    if any(c % step for c in channels):
        return f"heads of {channels} channels are no multiples of {step}"
    if _xformers_ops() is None:
        return "package xformers is not usable; `pip install 'calotype[gpu]'`"
    return None


def _varlen_obstacle(device_type: str, dtype: torch.dtype, packed: bool, biased: bool, channels: tuple[int, int]) -> str | None:
    if device_type != "cuda" or dtype not in HALF:
        return f"it needs CUDA and half precision, the tensors are {dtype} on {device_type}"
    if not packed or biased:
        return "it computes packed rows without a bias only"
    if channels[0] != channels[1] or channels[0] % 8 or channels[0] > 256:
        return f"it needs equal heads of a multiple of 8, at most 256 channels, not {channels}"
    if _varlen_attn() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return None


@functools.cache
def _xformers_ops() -> Any | None:
    try:
        import xformers.ops  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    except Exception as error:  # raises ImportError and others at import when torch's flash schema changed
        logger.warning("xformers_unusable error=%s", error)
        return None
    return xformers.ops


@functools.cache
def _varlen_attn() -> Any | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, q_lens: Sequence[int] | None, kv_lens: Sequence[int] | None) -> None:
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"attend takes Q (B,N,H,D) and K, V (B,M,H,D), not {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}.")
    if q_lens is None and kv_lens is None:
        return
    if q_lens is None or kv_lens is None:
        raise ValueError("Packed rows need both q_lens and kv_lens.")
    if q.shape[0] != 1 or len(q_lens) != len(kv_lens) or sum(q_lens) != q.shape[1] or sum(kv_lens) != k.shape[1]:
        raise ValueError(
            f"{len(q_lens)} rows of {sum(q_lens)} queries and {len(kv_lens)} rows of {sum(kv_lens)} keys "
            f"are not a packing of Q {tuple(q.shape)} and K {tuple(k.shape)}."
        )
    if min(kv_lens, default=1) < 1:
        raise ValueError("A row without keys has no attention; give each row at least one.")


def _sdpa(q_BNHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, bias: Tensor | None) -> Tensor:
    q_BHND, k_BHMD, v_BHMD = (x.transpose(1, 2) for x in (q_BNHD, k_BMHD, v_BMHD))
    return scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=bias).transpose(1, 2)


def _sdpa_per_row(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, q_lens: Sequence[int], kv_lens: Sequence[int]) -> Tensor:
    rows = len(q_lens)
    if bias is None and len(set(q_lens)) == 1 and len(set(kv_lens)) == 1:  # equal rows are an ordinary batch
        q_rows, k_rows, v_rows = (x.reshape(rows, -1, *x.shape[2:]) for x in (q, k, v))
        batch = _sdpa(q_rows, k_rows, v_rows, None)
        return batch.reshape(1, -1, *batch.shape[2:])
    if bias is not None:
        bias = bias.expand(1, q.shape[2], q.shape[1], k.shape[1])
    outputs = []
    q_ends, kv_ends = accumulate(q_lens), accumulate(kv_lens)
    for q_len, q_end, kv_len, kv_end in zip(q_lens, q_ends, kv_lens, kv_ends, strict=True):
        queries, keys = slice(q_end - q_len, q_end), slice(kv_end - kv_len, kv_end)
        outputs.append(_sdpa(q[:, queries], k[:, keys], v[:, keys], None if bias is None else bias[:, :, queries, keys]))
    return torch.cat(outputs, dim=1)


def _xformers(q: Tensor, k: Tensor, v: Tensor, q_lens: Sequence[int] | None, kv_lens: Sequence[int] | None) -> Tensor:
    ops = _xformers_ops()
    assert ops is not None
    mask = None
    if q_lens is not None and kv_lens is not None:
        mask = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(q_lens), list(kv_lens), device=q.device)
    return ops.memory_efficient_attention(q, k, v, attn_bias=mask)


def _varlen(q: Tensor, k: Tensor, v: Tensor, q_lens: Sequence[int], kv_lens: Sequence[int]) -> Tensor:
    varlen_attn = _varlen_attn()
    assert varlen_attn is not None
    q_starts, kv_starts = (torch.tensor([0, *accumulate(lens)], dtype=torch.int32, device=q.device) for lens in (q_lens, kv_lens))
    return varlen_attn(q[0], k[0], v[0], q_starts, kv_starts, max(q_lens), max(kv_lens)).unsqueeze(0)
