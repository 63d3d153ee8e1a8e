"""Times at which a denoiser is trained."""

from __future__ import annotations

import torch

from models.training.times import even_times, noisy_share


def test_even_times_have_one_in_each_part() -> None:
    times = even_times(16, torch.Generator().manual_seed(0))
    assert sorted((times * 16).long().tolist()) == list(range(16))


def test_a_share_of_the_times_is_noisy_and_the_rest_stays() -> None:
    before = 0.5 * torch.rand(4000, generator=torch.Generator().manual_seed(1))
    after = noisy_share(before, 0.4, torch.Generator().manual_seed(2))
    anew = after >= 0.9
    assert abs(float(anew.float().mean()) - 0.4) < 0.03
    assert torch.equal(after[~anew], before[~anew])
    assert torch.equal(noisy_share(before, 0.0, torch.Generator().manual_seed(2)), before)
