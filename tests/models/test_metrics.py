"""Measures of pictures, faces and certainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.metrics import bootstrap, gmsd, ms_ssim, psnr, rank_1, ssim


def pictures(count: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)


def test_psnr_of_a_known_error_is_the_known_number() -> None:
    original = torch.zeros(2, 3, 8, 8)
    assert_close(psnr(original + 0.2, original), torch.full((2,), 20.0), atol=1e-4, rtol=0)  # error 0.1 of the range


@pytest.mark.parametrize("measure", [ssim, lambda a, b: 1 - gmsd(a, b)])
def test_equal_pictures_are_best_and_more_noise_is_worse(measure) -> None:
    original = pictures()
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    values = [measure(original + strength * noise, original) for strength in (0.0, 0.1, 0.4)]
    assert_close(values[0], torch.ones(3), atol=1e-5, rtol=0)
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()


def test_each_picture_has_a_number_of_its_own() -> None:
    original = pictures()
    damaged = original.clone()
    damaged[1] += 0.3 * torch.randn(damaged[1].shape, generator=torch.Generator().manual_seed(2))
    assert ssim(damaged, original)[[0, 2]].min() > 0.999 > ssim(damaged, original)[1]
    assert_close(gmsd(damaged, original)[1:2], gmsd(damaged[1:2], original[1:2]))


def test_ms_ssim_refuses_pictures_too_small_for_its_scales() -> None:
    with pytest.raises(ValueError, match="above 160 px"):
        ms_ssim(pictures(), pictures())
    large = pictures(1, 176)
    assert_close(ms_ssim(large, large), torch.ones(1), atol=1e-5, rtol=0)


def test_rank_1_counts_who_is_nearest_to_himself() -> None:
    gallery = torch.eye(4)
    probes = gallery[[0, 1, 3, 2]] * 0.9
    assert rank_1(probes, gallery) == 0.5


def test_a_bootstrap_interval_covers_the_mean_about_nineteen_times_in_twenty() -> None:
    draws = np.random.default_rng(3).normal(1.0, 2.0, size=(200, 40))
    intervals = [bootstrap(sample.tolist(), draws=400) for sample in draws]
    covered = sum(interval.low <= 1.0 <= interval.high for interval in intervals)
    assert 0.88 <= covered / 200 <= 0.98
    assert math.isclose(intervals[0].mean, float(draws[0].mean()))


def test_an_interval_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="two values"):
        bootstrap([1.0])
