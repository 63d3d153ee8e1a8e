from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from models.attention import AttentionBackendError, attend, attention_probabilities, resolve_backend


def random_heads(*tokens: int, heads: int = 2, dim: int = 8, batch: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, heads, dim, generator=generator) for n in tokens]


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """The definition, written out."""
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5 + bias
    return torch.einsum("bhnm,bmhd->bnhd", logits.exp() / logits.exp().sum(-1, keepdim=True), v)


def plain_packed(q: Tensor, k: Tensor, v: Tensor, q_lens: list[int], kv_lens: list[int]) -> Tensor:
    rows = zip(q.split(q_lens, 1), k.split(kv_lens, 1), v.split(kv_lens, 1), strict=True)
    return torch.cat([plain(*row) for row in rows], dim=1)


def test_attention_is_the_softmax_of_its_definition() -> None:
    q, k, v = random_heads(5, 7, 7, batch=3)
    assert_close(attend(q, k, v), plain(q, k, v), atol=1e-6, rtol=0)
    assert_close(attention_probabilities(q, k).sum(-1), torch.ones(3, 2, 5))


def test_a_bias_is_added_to_the_logits() -> None:
    q, k, v = random_heads(5, 7, 7, batch=3)
    bias = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    assert_close(attend(q, k, v, bias=bias), plain(q, k, v, bias), atol=1e-6, rtol=0)
    assert (attend(q, k, v, bias=bias) - attend(q, k, v)).abs().max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(lens=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_packing_rows_of_any_length_changes_no_row(lens: list[tuple[int, int]]) -> None:
    q_lens, kv_lens = [a for a, _ in lens], [b for _, b in lens]
    q, k, v = random_heads(sum(q_lens), sum(kv_lens), sum(kv_lens))
    packed = attend(q, k, v, q_lens=q_lens, kv_lens=kv_lens)
    assert_close(packed, plain_packed(q, k, v, q_lens, kv_lens), atol=1e-6, rtol=0)


def test_equally_long_rows_give_the_same_packed_as_in_a_batch() -> None:
    q, k, v = random_heads(5, 7, 7, batch=3)
    packed = attend(*(x.flatten(0, 1)[None] for x in (q, k, v)), q_lens=[5] * 3, kv_lens=[7] * 3)
    assert_close(packed.reshape(q.shape), attend(q, k, v), atol=1e-6, rtol=0)


def test_a_packed_bias_counts_only_inside_its_row() -> None:
    q, k, v = random_heads(5, 7, 7)
    bias = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    packed = attend(q, k, v, bias=bias, q_lens=[2, 3], kv_lens=[3, 4])
    alone = torch.cat([plain(q[:, :2], k[:, :3], v[:, :3], bias[:2, :3]), plain(q[:, 2:], k[:, 3:], v[:, 3:], bias[2:, 3:])], dim=1)
    assert_close(packed, alone, atol=1e-6, rtol=0)


def test_gradients_flow_through_packed_rows() -> None:
    q, k, v = (x.requires_grad_() for x in random_heads(5, 7, 7))
    attend(q, k, v, q_lens=[2, 3], kv_lens=[3, 4])[:, :2].sum().backward()
    assert v.grad is not None
    assert v.grad[:, :3].abs().min() > 0
    assert v.grad[:, 3:].abs().max() == 0  # the second row's values had no part in the first row


@pytest.mark.parametrize(
    ("shapes", "lens", "message"),
    [
        ((5, 7, 6), {}, "attend takes Q"),
        ((5, 7, 7), {"q_lens": [5]}, "both q_lens and kv_lens"),
        ((5, 7, 7), {"q_lens": [2, 3], "kv_lens": [3, 3]}, "not a packing"),
        ((5, 7, 7), {"q_lens": [2, 3], "kv_lens": [7, 0]}, "without keys"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: tuple[int, int, int], lens: dict[str, list[int]], message: str) -> None:
    q, k, v = random_heads(*shapes)
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, **lens)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", ["xformers", "varlen"])
def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error(backend: str) -> None:
    q, k, v = random_heads(5, 5, 5)
    with pytest.raises(AttentionBackendError, match="needs CUDA"):
        attend(q, k, v, q_lens=[5], kv_lens=[5], backend=backend)


def test_an_unknown_backend_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"flash.*auto, xformers, varlen, sdpa"):
        resolve_backend("cpu", torch.float32, backend="flash")


def test_without_cuda_auto_is_sdpa() -> None:
    assert resolve_backend("cpu", torch.float32) == "sdpa"
    assert resolve_backend(torch.device("cpu"), torch.bfloat16, packed=False) == "sdpa"


def test_on_cuda_a_bias_goes_to_sdpa_and_full_precision_never_to_varlen() -> None:
    assert resolve_backend("cuda", torch.float16, biased=True) == "sdpa"
    assert resolve_backend("cuda", torch.float32) != "varlen"
    with pytest.raises(AttentionBackendError, match="half precision"):
        resolve_backend("cuda", torch.float32, backend="varlen")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["xformers", "varlen", "sdpa", "auto"])
def test_every_cuda_backend_computes_the_definition(backend: str) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers")
    q_lens, kv_lens = [16, 16, 16], [16, 48, 32]
    q, k, v = random_heads(48, 96, 96, dim=64)
    half = [x.cuda().half() for x in (q, k, v)]
    computed = attend(*half, q_lens=q_lens, kv_lens=kv_lens, backend=backend)
    exact = plain_packed(*(x.float() for x in half), q_lens, kv_lens)
    assert_close(computed.float(), exact, atol=2e-3, rtol=0)
