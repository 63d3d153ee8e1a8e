"""Training the weight denoiser: padding decides nothing, the three predictions mean the same, a collection is read whole or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.lora_files import ForeignBase, lora_bytes
from models.methods.weight_diffusion import TIMES, Prediction, scheduler
from models.nets.weight_blocks import Layout
from models.training.weight_denoising import denoising_loss, noised, read_collection
from tests.models.nets.test_weight_blocks import TENSORS, random_lora
from tests.models.nets.test_weight_denoiser import BLOCKS, CONCEPTS, TINY, inputs, tiny_denoiser

PREDICTIONS: tuple[Prediction, ...] = ("x0", "v", "eps")


def half_padded() -> Tensor:
    mask = torch.ones(BLOCKS, TINY.block_size, dtype=torch.bool)
    mask[-1, 9:] = False
    return mask


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_stands_in_the_padding_changes_neither_loss_nor_gradients(prediction: Prediction) -> None:
    blocks, _t, _index, text = inputs()
    mask, found = half_padded(), []
    for padding in (0.0, 7.0, -1e4):
        network = tiny_denoiser().requires_grad_(True)
        value = denoising_loss(
            network, torch.where(mask, blocks, padding), mask, text, torch.Generator().manual_seed(3), prediction=prediction
        )
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    for value, gradients in found[1:]:
        assert torch.equal(value, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0][1], strict=True))


def test_a_block_counts_the_same_however_much_of_it_is_padding() -> None:
    blocks, _t, _index, text = inputs()
    network = tiny_denoiser()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)  # predicts zeros: the loss is the mean square of the target
    mask = half_padded()
    value = denoising_loss(network, blocks, mask, text, torch.Generator().manual_seed(0))
    each = torch.cat([blocks[:, :-1].square().mean(-1), blocks[:, -1:, :9].square().mean(-1)], dim=1)
    torch.testing.assert_close(value, each.mean())


def test_the_three_predictions_agree_on_what_was_there() -> None:
    blocks = inputs()[0].double()
    noise = torch.randn(blocks.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for t in (0, 1, 250, 600, 899):
        found = []
        for prediction in PREDICTIONS:
            diffusion = scheduler(prediction)
            diffusion.set_timesteps(TIMES)
            target, noisy = noised(blocks, noise, torch.full((CONCEPTS, BLOCKS), t), prediction)
            found.append(diffusion.step(target, t, noisy).pred_original_sample)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        for one in found:
            torch.testing.assert_close(one, blocks, atol=1e-5, rtol=0)


def test_generation_begins_where_nothing_is_left_of_the_weights() -> None:
    diffusion = scheduler("x0")
    diffusion.set_timesteps(1)
    assert diffusion.timesteps.tolist() == [TIMES - 1]
    assert diffusion.alphas_cumprod[TIMES - 1].sqrt() < 1e-3


def test_the_noisiest_time_can_be_all_there_is() -> None:
    seen = []
    network = tiny_denoiser()
    network.register_forward_pre_hook(lambda _module, given: seen.append(given[1]))
    blocks, _t, _index, text = inputs()
    for share in (0.0, 1.0):
        denoising_loss(network, blocks, half_padded(), text, torch.Generator().manual_seed(0), noisiest=share)
    assert (seen[1] == TIMES - 1).all()
    assert (seen[0] == TIMES - 1).float().mean() < 0.2


def test_a_collection_is_read_in_order_of_its_concepts(tmp_path: Path) -> None:
    for seed, concept in enumerate(["noir", "ink", "sepia"]):
        write(tmp_path / f"artifacts/{seed}/{seed}.safetensors", seed, concept)
    found = read_collection(tmp_path, "base")
    assert found.concepts == ("ink", "noir", "sepia")
    assert torch.equal(found.lora["down.lora_A"][0], random_lora(seed=1)["down.lora_A"])
    assert found.take([2]).concepts == ("sepia",)
    assert Layout(TENSORS).to_blocks(found.take([2, 0]).lora).shape[0] == 2


def test_a_collection_with_something_wrong_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 LoRA files; --data takes the folder of a translate job"):
        read_collection(tmp_path, "base")
    write(tmp_path / "a.safetensors", 0, "noir")
    write(tmp_path / "b.safetensors", 1, "noir")
    with pytest.raises(ValueError, match="second file of 'noir'"):
        read_collection(tmp_path, "base")
    write(tmp_path / "b.safetensors", 1, "ink", base_hash="another")
    with pytest.raises(ForeignBase, match=r"b.safetensors was made for the base another.*make it again"):
        read_collection(tmp_path, "base")
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="not finished; run it to its end"):
        read_collection(tmp_path, "base")


def write(file: Path, seed: int, concept: str, base_hash: str = "base") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lora_bytes(random_lora(seed=seed), {"concept": concept, "base_hash": base_hash, "state": "trained"}))
