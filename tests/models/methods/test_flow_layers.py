from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn

from models.methods import flow_layers
from models.methods.flow_layers import Rows, Skipped, UnknownLayer, layer_number, shared_layers, skipped_layers
from models.methods.flow_schedule import denoise, invert, realigned, shift_of, sigmas
from models.sampling import positions
from tests.models.tiny_bases import TEXT_WIDTH, tiny_flow_base, tiny_transformer

TEXT, IMAGE = 5, 16


def call(transformer: FluxTransformer2DModel, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        return transformer(
            hidden_states=torch.randn(rows, IMAGE, 16, generator=generator),
            encoder_hidden_states=torch.randn(rows, TEXT, TEXT_WIDTH, generator=generator),
            pooled_projections=torch.randn(rows, TEXT_WIDTH, generator=generator),
            timestep=torch.full((rows,), 0.7),
            img_ids=positions(8, 8),
            txt_ids=torch.zeros(TEXT, 3),
            return_dict=False,
        )[0]


def seen_by_attention(monkeypatch: pytest.MonkeyPatch, layers: tuple[int, ...], references: list[int]) -> list[tuple[Tensor, ...]]:
    """Q, K and V (B,T+N,H,D) of every layer."""
    seen: list[tuple[Tensor, ...]] = []

    def spying(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((q.clone(), k.clone(), v.clone()))
        return plain(q, k, v, **options)

    plain = flow_layers.attend
    with monkeypatch.context() as patch:
        patch.setattr(flow_layers, "attend", spying)
        with shared_layers(transformer := tiny_transformer(0), layers, Rows(references, TEXT)):
            call(transformer)
    return seen


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sharing_changes_image_keys_and_values_of_its_layer_and_nothing_else(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    references = [0, 0, 2]
    plain, shared = seen_by_attention(monkeypatch, (), references), seen_by_attention(monkeypatch, (layer,), references)
    for before in range(layer):
        assert all(torch.equal(a, b) for a, b in zip(plain[before], shared[before], strict=True))
    (q, k, v), (q_shared, k_shared, v_shared) = plain[layer], shared[layer]
    assert torch.equal(q, q_shared)
    for own, taken in ((k, k_shared), (v, v_shared)):
        assert torch.equal(taken[:, :TEXT], own[:, :TEXT])
        assert torch.equal(taken[:, TEXT:], own[references, TEXT:])
        assert not torch.equal(taken[1, TEXT:], own[1, TEXT:])


def test_a_batch_holds_several_references() -> None:
    transformer = tiny_transformer(0)
    with shared_layers(transformer, (0, 1, 2), Rows([0, 0, 2, 2], TEXT)):
        both = call(transformer, 4)
    with shared_layers(transformer, (0, 1, 2), Rows([0, 0, 0, 0], TEXT)):
        one = call(transformer, 4)
    plain = call(transformer, 4)
    assert torch.allclose(both[:2], one[:2], atol=1e-6)
    assert torch.allclose(both[2], plain[2], atol=1e-6)
    assert (both[3] - one[3]).abs().max() > 1e-4


def test_without_shared_layers_attention_is_that_of_diffusers() -> None:
    transformer = tiny_transformer(0)
    with shared_layers(transformer, (), Rows([0, 1, 2], TEXT)):
        ours = call(transformer)
    assert torch.allclose(ours, call(transformer), atol=1e-6)


def test_processors_come_out_again_also_after_an_exception() -> None:
    transformer = tiny_transformer(0)
    before = dict(transformer.attn_processors)
    with shared_layers(transformer, (1,), Rows([0] * 3, TEXT)):
        assert before.items().isdisjoint(transformer.attn_processors.items())
    assert transformer.attn_processors == before
    with pytest.raises(RuntimeError), shared_layers(transformer, (1,), Rows([0] * 3, TEXT)):
        raise RuntimeError
    assert transformer.attn_processors == before


def test_skipping_all_layers_leaves_the_streams_as_the_embedders_made_them() -> None:
    transformer = tiny_transformer(0)
    streams: dict[str, Tensor] = {}
    hooks: list[Any] = [transformer.norm_out.register_forward_pre_hook(lambda _, args: streams.update(end=args[0].clone()))]
    for name in ("x_embedder", "context_embedder"):
        module: Any = transformer.get_submodule(name)
        hooks.append(module.register_forward_hook(lambda _m, _i, out, name=name: streams.update({name: out.clone()})))
    text: list[Tensor] = []
    with skipped_layers(transformer, (0, 1, 2)):
        last = transformer.single_transformer_blocks[1]
        hooks.append(last.register_forward_hook(lambda _m, _i, out: text.append(out[0].clone())))
        call(transformer)
    for hook in hooks:
        hook.remove()
    assert torch.equal(streams["end"], streams["x_embedder"])
    assert torch.equal(text[0], streams["context_embedder"])


def test_skipped_layers_come_back_also_after_an_exception() -> None:
    transformer = tiny_transformer(0)
    blocks: list[nn.Module] = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    plain = call(transformer)
    with skipped_layers(transformer, (0, 2)):
        assert isinstance(transformer.transformer_blocks[0], Skipped)
        assert (call(transformer) - plain).abs().max() > 1e-3
    with pytest.raises(RuntimeError), skipped_layers(transformer, (0, 2)):
        raise RuntimeError
    assert [*transformer.transformer_blocks, *transformer.single_transformer_blocks] == blocks
    assert torch.equal(call(transformer), plain)


def test_layers_are_counted_through_and_unknown_ones_are_named() -> None:
    transformer = tiny_transformer(0)
    assert layer_number(transformer, double=[0], single=[0, 1]) == (0, 1, 2)
    with pytest.raises(UnknownLayer, match="no layer 3, 7; this transformer has 0 to 2"), skipped_layers(transformer, (1, 7, 3)):
        pass


def test_a_constant_velocity_leads_back_to_where_it_began() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    schedule = sigmas(9, 0.7)
    levels = invert(lambda x, _: torch.full_like(x, 0.3), x, schedule)
    assert len(levels) == 10
    assert torch.equal(levels[-1], x)
    back = denoise(lambda x, _: torch.full_like(x, 0.3), levels[0], schedule)
    assert (back - x).abs().max() < 1e-6


def test_inversion_takes_the_velocity_at_the_sigma_it_goes_to() -> None:
    visited: list[float] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        visited.append(sigma)
        return torch.zeros_like(x)

    schedule = sigmas(3, 0.0)
    invert(velocity, torch.zeros(1), schedule)
    assert visited == schedule[2::-1]


@pytest.mark.parametrize("shifting", [True, False])
@pytest.mark.parametrize("tokens", [16, 256, 4096])
def test_the_schedule_is_the_one_that_diffusers_sets(shifting: bool, tokens: int) -> None:
    scheduler = tiny_flow_base(shifting=shifting).scheduler
    scheduler.set_timesteps(sigmas=[1 - i / 7 for i in range(7)], mu=shift_of(scheduler.config, tokens) if shifting else None)
    ours = torch.tensor(sigmas(7, shift_of(scheduler.config, tokens)))
    assert (ours - scheduler.sigmas).abs().max() < 1e-6
    with pytest.raises(ValueError, match="0 steps"):
        sigmas(0, 1.0)


def test_realignment_knows_two_ways() -> None:
    levels = [torch.tensor(float(i)) for i in range(5)]
    assert [realigned(levels, i, "aligned").item() for i in range(4)] == [1, 2, 3, 4]
    assert [realigned(levels, i, "authors_index").item() for i in range(4)] == [3, 0, 1, 2]
    with pytest.raises(ValueError, match="no realignment 'index'"):
        realigned(levels, 0, "index")
