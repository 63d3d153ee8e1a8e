"""The order of the weights, the space and its coefficients (spec weights2weights, section 6)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from models.checkpoints import UnreadableCheckpoint
from models.lora_files import ForeignBase
from models.methods.weights2weights_layout import Layout, LayoutMismatch
from models.methods.weights2weights_space import Space, fit_space
from tests.models.methods.tiny_space import tiny_layout, tiny_space, tiny_weights
from tests.models.tiny_bases import tiny_unet, tiny_unet_base

SD15 = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@pytest.fixture(scope="module")
def space() -> Space:
    return tiny_space(tiny_unet_base())


def test_stable_diffusion_has_99648_weights_in_128_tensors_from_down_over_mid_to_up() -> None:
    with torch.device("meta"):
        layout = Layout.of(UNet2DConditionModel(**SD15))  # pyright: ignore[reportArgumentType]
    assert (layout.size, len(layout.entries)) == (99_648, 128)
    keys = [entry.key.removeprefix("base_model.model.") for entry in layout.entries]
    assert keys[0] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert keys[1].endswith("attn1.to_q.lora_B.weight")
    assert keys[2].endswith("attn1.to_v.lora_A.weight")
    assert keys[4].endswith("attn2.to_q.lora_A.weight")
    assert keys[-1] == "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.lora_B.weight"
    assert [key.split("_")[0] for key in keys] == sorted(key.split("_")[0] for key in keys)
    assert layout.scale == 27


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_weights_come_back_bit_for_bit_from_their_tensors_however_keys_are_written(seed: int, dtype: torch.dtype) -> None:
    layout = Layout.of(tiny_unet(0))
    w_n = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    tensors = layout.unflatten(w_n)
    assert torch.equal(layout.flatten(tensors), w_n.float())
    shuffled = dict(sorted(tensors.items(), key=lambda item: item[0][::-1]))
    authors = {key.replace(".weight", ".identity1.weight"): tensor for key, tensor in shuffled.items()}
    diffusers = {key.replace("base_model.model.", "unet."): tensor for key, tensor in shuffled.items()}
    assert torch.equal(layout.flatten(authors), w_n.float())
    assert torch.equal(layout.flatten(diffusers), w_n.float())


def test_weights_of_another_base_are_refused_by_name() -> None:
    layout = Layout.of(tiny_unet(0))
    tensors = layout.unflatten(torch.zeros(layout.size))
    lost = next(iter(tensors))
    with pytest.raises(LayoutMismatch, match=f"1 of {len(tensors)} tensors missing.*missing {lost}"):
        layout.flatten({key: tensor for key, tensor in tensors.items() if key != lost})
    with pytest.raises(LayoutMismatch, match=r"1 of a wrong shape, e.g. .*is \(3, 3\)"):
        layout.flatten({**tensors, lost: torch.zeros(3, 3)})
    with pytest.raises(LayoutMismatch, match="7 weights were given"):
        layout.unflatten(torch.zeros(7))


def test_what_was_made_for_another_base_or_another_scale_is_refused() -> None:
    layout = Layout.of(tiny_unet(0), base_hash="this")
    layout.check_same(replace(layout, base_hash=None), "the space")
    with pytest.raises(ForeignBase, match="the space was made for the base other, this one is this"):
        layout.check_same(replace(layout, base_hash="other"), "the space")
    with pytest.raises(LayoutMismatch, match="rank 1, alpha 1; this base takes"):
        layout.check_same(replace(layout, alpha=1.0), "the space")


def test_coefficients_come_back_from_their_weights(space: Space) -> None:
    p_Bk = torch.randn(5, space.components, generator=torch.Generator().manual_seed(1)) * space.proj_std_k
    back = space.project(space.unproject(p_Bk))
    assert (back - p_Bk).norm() / p_Bk.norm() < 1e-4


def test_a_space_of_full_rank_holds_every_model_it_was_made_of() -> None:
    layout = tiny_layout(tiny_unet_base())
    weights = tiny_weights(layout, models=20)
    full = fit_space(weights, layout)
    assert full.components == 19
    assert_close(full.unproject(full.project(weights)), weights, atol=1e-5, rtol=0)


def test_coefficients_of_zero_are_the_mean_model_exactly(space: Space) -> None:
    assert torch.equal(space.unproject(torch.zeros(1, space.components))[0], space.mean_n)
    assert torch.equal(space.unproject(torch.zeros(1, 3))[0], space.mean_n)


def test_fewer_coefficients_are_the_first_ones_and_more_are_refused(space: Space) -> None:
    p_13 = torch.tensor([[1.0, -2.0, 0.5]])
    padded = torch.nn.functional.pad(p_13, (0, space.components - 3))
    assert_close(space.unproject(p_13), space.unproject(padded))
    with pytest.raises(LayoutMismatch, match=f"11 coefficients were given; this space has {space.components}"):
        space.unproject(torch.zeros(1, 11))


def test_both_decompositions_find_the_same_space() -> None:
    layout = tiny_layout(tiny_unet_base())
    weights = tiny_weights(layout, models=30)
    gram = fit_space(weights, layout, n_components=8, svd="gram")
    randomised = fit_space(weights, layout, n_components=8, svd="randomised", generator=torch.Generator().manual_seed(3))
    assert_close(gram.V_nk, randomised.V_nk, atol=1e-4, rtol=0)
    assert_close(gram.V_nk.T @ gram.V_nk, torch.eye(8), atol=1e-5, rtol=0)
    assert bool((gram.proj_std_k.diff() <= 0).all())


def test_weights_that_hardly_vary_are_not_blown_up() -> None:
    layout = tiny_layout(tiny_unet_base())
    weights = tiny_weights(layout, models=10)
    weights[:, 5] = 0.25
    space = fit_space(weights, layout)
    assert space.std_n[5] == pytest.approx(1e-3 * space.std_n.median().item(), rel=0.01)
    assert bool((space.std_n > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_space_is_the_same_space(space: Space, dtype: torch.dtype, tmp_path: Path) -> None:
    space.save(tmp_path, dtype=dtype)
    again = Space.load(tmp_path)
    assert again.layout == space.layout
    assert torch.equal(again.V_nk, space.V_nk.to(dtype).float())
    for name in ("mean_n", "std_n", "proj_mean_k", "proj_std_k"):
        assert torch.equal(getattr(again, name), getattr(space, name))
    assert again.attributes.keys() == space.attributes.keys()
    assert again.attributes["tall"].score_std == space.attributes["tall"].score_std
    assert torch.equal(again.raw_directions["round"], space.raw_directions["round"])
    p_1k = space.proj_std_k[None]
    assert (again.project(again.unproject(p_1k)) - p_1k).norm() / p_1k.norm() < 1e-4


def test_negative_deviations_keep_their_sign(space: Space, tmp_path: Path) -> None:
    flipped = Space(space.layout, space.mean_n, -space.std_n, space.V_nk, space.proj_mean_k, space.proj_std_k)
    flipped.save(tmp_path, dtype=torch.float32)
    again = Space.load(tmp_path)
    assert bool((again.std_n < 0).all())
    p_1k = space.proj_std_k[None]
    assert_close(again.unproject(p_1k) - again.mean_n, space.mean_n - space.unproject(p_1k))


def test_a_layout_in_another_order_is_refused(space: Space, tmp_path: Path) -> None:
    space.save(tmp_path)
    file = tmp_path / "layout.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "layout": facts["layout"][::-1]}))
    with pytest.raises(LayoutMismatch, match="not in the order of the sorted PEFT keys"):
        Space.load(tmp_path)
    (tmp_path / "layout.json").unlink()
    with pytest.raises(UnreadableCheckpoint, match=r"a space is space\.safetensors and layout\.json"):
        Space.load(tmp_path)


def test_samples_are_drawn_from_each_row_s_own_generator_with_the_training_models_spread(space: Space) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = space.sample(generators(1, 2, 3))
    assert torch.equal(together[1:2], space.sample(generators(2)))
    many = space.sample(generators(*range(2000)), n_components=4, std_factor=0.5)
    assert torch.equal(many[:, 4:], torch.zeros(2000, space.components - 4))
    assert_close(many[:, :4].std(0) / space.proj_std_k[:4], torch.full((4,), 0.5), atol=0.05, rtol=0)


def test_too_few_models_or_too_many_components_are_no_space() -> None:
    layout = tiny_layout(tiny_unet_base())
    weights = tiny_weights(layout, models=5)
    with pytest.raises(ValueError, match="2 models span no space"):
        fit_space(weights[:2], layout)
    with pytest.raises(ValueError, match=r"5 models of \d+ weights have 1 to 4"):
        fit_space(weights, layout, n_components=5)
    with pytest.raises(ValueError, match="were they trained at all"):
        fit_space(weights[:1].expand(4, -1), layout)
