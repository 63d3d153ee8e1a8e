"""Photographs to coefficients: the gradient, rows that know nothing of each other, masks, and a base given back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.bases import UNetBase
from models.denoising import denoising_errors
from models.low_rank import attached
from models.methods.weights2weights import Request as Drawn
from models.methods.weights2weights import Settings as Drawing
from models.methods.weights2weights import Weights2Weights
from models.methods.weights2weights_files import Start
from models.methods.weights2weights_inversion import EmptyMask, Inversion, Request, Settings
from models.methods.weights2weights_space import Space
from tests.models.methods.tiny_space import tiny_space
from tests.models.tiny_bases import tiny_unet_base


def tiny_inversion(base: UNetBase | None = None, **options: object) -> Inversion:
    base = base or tiny_unet_base()
    return Inversion(base, tiny_space(base), Settings(prompt="a dog", num_steps=4).with_options(options))


def photograph(seed: int, side: int = 16) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def left_half(side: int = 16) -> Tensor:
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    return mask


def in_double(base: UNetBase, space: Space) -> tuple[UNetBase, Space]:
    base.to("cpu", torch.float64)
    base.scheduler.alphas_cumprod = base.scheduler.alphas_cumprod.double()
    return base, replace(space, mean_n=space.mean_n.double(), std_n=space.std_n.double(), V_nk=space.V_nk.double())


def test_the_gradient_on_the_coefficients_is_that_of_finite_differences() -> None:
    base, space = in_double(tiny_unet_base(), tiny_space(tiny_unet_base()))
    inversion = Inversion(base, space, Settings(prompt="a dog"))
    generator = torch.Generator().manual_seed(0)
    p_Bk = (torch.randn(2, space.components, generator=generator) * space.proj_std_k * 0.3).double().requires_grad_()
    clean_BChw, noise_BSChw = (
        torch.randn(2, 4, 8, 8, generator=generator).double(),
        torch.randn(2, 1, 4, 8, 8, generator=generator).double(),
    )
    masks_B1hw = torch.rand(2, 1, 8, 8, generator=generator).double()
    times_BS, states_1TC = torch.tensor([[300], [700]]), base.encode_text(["a dog"]).states

    def losses(p: Tensor) -> Tensor:
        return inversion.step_backward(p.detach().requires_grad_(), clean_BChw, masks_B1hw, times_BS, noise_BSChw, states_1TC)

    inversion.step_backward(p_Bk, clean_BChw, masks_B1hw, times_BS, noise_BSChw, states_1TC)
    assert p_Bk.grad is not None
    for component in (0, 4, 9):
        step_Bk = torch.zeros_like(p_Bk)
        step_Bk[:, component] = 1e-4
        slope_B = (losses(p_Bk + step_Bk) - losses(p_Bk - step_Bk)) / 2e-4
        assert_close(p_Bk.grad[:, component], slope_B, rtol=1e-4, atol=1e-9)


def test_photographs_inverted_together_are_those_inverted_alone() -> None:
    inversion = tiny_inversion()
    requests = [
        Request(image=photograph(1), seed=1),
        Request(image=photograph(2), seed=2, mask=left_half()),
        Request(image=photograph(3, 24), seed=3),
    ]
    together = inversion(requests)
    for request, result in zip(requests, together, strict=True):
        alone = inversion([request])[0]
        assert_close(result.coefficients_k, alone.coefficients_k, atol=1e-4, rtol=0)
        assert_close(result.final_loss, alone.final_loss, atol=1e-5, rtol=0)
    assert inversion([]) == []


def test_the_loss_falls_and_the_coefficients_leave_zero() -> None:
    """On a photograph that someone of the space looks like: the loss at the same noises is lower with what was found than with the mean."""
    base = tiny_unet_base()
    space = tiny_space(base)
    inversion = tiny_inversion(base, num_steps=60, learning_rate=0.5, noises=4)
    someone = Weights2Weights(base, space, Drawing(num_inference_steps=4, negative_prompt=""))
    image = someone([Drawn(prompt="a dog", seed=0, start=Start(coefficients_k=3 * space.proj_std_k))])[0].image
    result = inversion([Request(image=image, seed=5)])[0]
    assert result.coefficients_k.abs().max() > 0.1
    clean_1Chw = base.encode(image[None])
    times_1S = torch.arange(25, 1000, 50)[None]
    noise_1SChw = torch.randn(1, 20, *clean_1Chw.shape[1:], generator=torch.Generator().manual_seed(9))
    states_1TC, whole = base.encode_text(["a dog"]).states, torch.ones(1, 1, 8, 8)

    def loss(p_1k: Tensor) -> float:
        return float(inversion.step_backward(p_1k.requires_grad_(), clean_1Chw, whole, times_1S, noise_1SChw, states_1TC))

    assert loss(result.coefficients_k[None].clone()) < loss(torch.zeros(1, space.components))


def test_what_the_mask_leaves_out_has_no_say() -> None:
    inversion = tiny_inversion()
    clean_1Chw, states_1TC = torch.randn(1, 4, 8, 8), inversion.base.encode_text(["a dog"]).states
    noise_1SChw, times_1S = torch.randn(1, 1, 4, 8, 8), torch.tensor([[500]])
    mean_1k = torch.zeros(1, inversion.space.components)
    with torch.no_grad(), attached(inversion.base.unet, inversion.space.layout.adapters(inversion.space.mean_n[None]), torch.tensor([0])):
        errors_1Chw = denoising_errors(inversion.base, clean_1Chw, times_1S[0], noise_1SChw[0], states_1TC)
    for mask, wanted in ((torch.ones(16, 16), errors_1Chw.mean()), (left_half(), errors_1Chw[..., :4].mean())):
        masks_1hw = inversion._mask(Request(image=photograph(1), seed=1, mask=mask), torch.Size((8, 8)))
        loss_1 = inversion.step_backward(mean_1k.clone().requires_grad_(), clean_1Chw, masks_1hw[None], times_1S, noise_1SChw, states_1TC)
        assert_close(loss_1[0], wanted)


def test_a_curve_ends_with_the_last_step_and_its_mean_is_that_of_all_losses() -> None:
    result = tiny_inversion(num_steps=7)([Request(image=photograph(1), seed=1)])[0]
    assert result.curve_steps == [1, 2, 3, 4, 5, 6, 7]
    assert result.final_loss == pytest.approx(sum(result.curve) / 7, rel=1e-5)
    longer = tiny_inversion(num_steps=45)([Request(image=photograph(1), seed=1)])[0]
    assert len(longer.curve) == len(longer.curve_steps) == 20
    assert longer.curve_steps[-1] == 45


def test_checkpointing_changes_memory_and_not_the_result() -> None:
    request = Request(image=photograph(1), seed=1)
    plain, checkpointed = (tiny_inversion(checkpointing=on)([request])[0] for on in (False, True))
    assert_close(plain.coefficients_k, checkpointed.coefficients_k, atol=1e-5, rtol=0)


def test_the_base_is_given_back_untouched() -> None:
    inversion = tiny_inversion(checkpointing=True)
    before = {name: tensor.clone() for name, tensor in inversion.base.unet.state_dict().items()}
    inversion([Request(image=photograph(1), seed=1)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in inversion.base.unet.state_dict().items())
    assert not any(module._forward_hooks for module in inversion.base.unet.modules())
    assert not inversion.base.unet.is_gradient_checkpointing
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in inversion.base.unet.parameters())


def test_a_diverged_inversion_says_so_and_leaves_its_neighbour_alone() -> None:
    inversion = tiny_inversion()
    broken = photograph(1)
    broken[:] = float("nan")
    lost, well = inversion([Request(image=broken, seed=1), Request(image=photograph(2), seed=2)])
    assert not torch.isfinite(torch.tensor(lost.final_loss))
    assert_close(well.coefficients_k, inversion([Request(image=photograph(2), seed=2)])[0].coefficients_k, atol=1e-4, rtol=0)


def test_an_empty_mask_or_one_of_another_size_is_refused() -> None:
    with pytest.raises(EmptyMask, match="mark the face"):
        tiny_inversion()([Request(image=photograph(1), seed=1, mask=torch.zeros(16, 16))])
    with pytest.raises(ValueError, match=r"the mask is \(8, 8\), the photograph \(16, 16\)"):
        tiny_inversion()([Request(image=photograph(1), seed=1, mask=torch.ones(8, 8))])
    with pytest.raises(ValueError, match="inversion has no setting 'steps'"):
        Settings().with_options({"steps": 3})


def test_a_base_in_half_precision_is_inverted_too() -> None:
    base = tiny_unet_base()
    space = tiny_space(base)
    base.to("cpu", torch.bfloat16)
    result = Inversion(base, space, Settings(prompt="a dog", num_steps=3))([Request(image=photograph(1), seed=1)])[0]
    assert bool(torch.isfinite(result.coefficients_k).all())
    assert result.coefficients_k.abs().max() > 0
