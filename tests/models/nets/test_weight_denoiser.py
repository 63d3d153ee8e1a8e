"""The weight denoiser: every block by itself, every concept by itself, the index and the text heard."""

from __future__ import annotations

import pytest
import torch

from models.nets.weight_denoiser import DenoiserSizes, WeightDenoiser

BLOCKS, CONCEPTS, TOKENS = 5, 3, 7
TINY = DenoiserSizes(blocks=BLOCKS, text_width=12, block_size=32, patch=4, widths=(8, 16, 16), heads=(2, 2, 2), embedding=16, groups=4)


def tiny_denoiser(sizes: DenoiserSizes = TINY) -> WeightDenoiser:
    """Random in every layer, also the last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WeightDenoiser(sizes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(CONCEPTS, BLOCKS, 32, generator=generator)
    t = torch.randint(1000, (CONCEPTS, BLOCKS), generator=generator)
    return x, t, torch.arange(BLOCKS).expand(CONCEPTS, BLOCKS), torch.randn(CONCEPTS, TOKENS, 12, generator=generator)


def test_one_batch_of_all_blocks_is_the_same_as_block_by_block() -> None:
    network, (x, t, index, text) = tiny_denoiser(), inputs()
    together = network(x, t, index, text)
    alone = [network(x[:, [n]], t[:, [n]], index[:, [n]], text) for n in range(BLOCKS)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


def test_concepts_in_one_batch_are_the_same_as_each_alone() -> None:
    network, given = tiny_denoiser(), inputs()
    together = network(*given)
    alone = [network(*(part[[c]] for part in given)) for c in range(CONCEPTS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("told", [True, False])
def test_two_swapped_indices_change_the_output_if_the_index_is_told(told: bool) -> None:
    network = tiny_denoiser(DenoiserSizes(**{**vars(TINY), "use_index": told}))
    x, t, index, text = inputs()
    swapped = index[:, [1, 0, 2, 3, 4]]
    difference = (network(x, t, swapped, text) - network(x, t, index, text)).abs()
    assert (difference[:, :2].max() > 1e-3) == told
    assert difference[:, 2:].max() < 1e-5


def test_time_and_every_word_are_heard() -> None:
    network, (x, t, index, text) = tiny_denoiser(), inputs()
    before = network(x, t, index, text)
    assert (network(x, (t + 500) % 1000, index, text) - before).abs().max() > 1e-3
    for word in range(TOKENS):
        other = text.clone()
        other[:, word] += 1
        assert (network(x, t, index, other) - before).abs().max() > 1e-4


def test_an_untrained_denoiser_predicts_nothing_but_the_mean() -> None:
    x, t, index, text = inputs()
    assert not WeightDenoiser(TINY)(x, t, index, text).any()


def test_blocks_that_can_t_be_halved_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        WeightDenoiser(DenoiserSizes(blocks=1, text_width=4, block_size=40, patch=4))
