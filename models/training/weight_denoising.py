"""Training the weight denoiser: its data, a LoRA file a concept, and its loss.

L = mean over blocks of the mean over weights (not padding) of |target - f(sqrt(a_t) w + sqrt(1 - a_t) n, t, index, text)|^2, where the target is
w (x0), n (eps) or v. Source: arXiv 2407.11966 (eps); x0, the mask and the share of noisiest times are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.lora_files import ForeignBase, read_lora
from models.methods.weight_diffusion import TIMES, Prediction, scheduler
from models.nets.weight_blocks import concatenated
from models.nets.weight_denoiser import WeightDenoiser


@dataclass(frozen=True)
class Collection:
    """C trained LoRAs (name -> (C,*shape)) with the text of each one's concept, in order of the text."""

    concepts: tuple[str, ...]
    lora: dict[str, Tensor]

    def take(self, indices: Sequence[int]) -> Collection:
        """The concepts at these places."""
        return Collection(tuple(self.concepts[at] for at in indices), {name: tensor[list(indices)] for name, tensor in self.lora.items()})


def read_collection(folder: Path, base_hash: str) -> Collection:
    """The LoRA files below a folder, such as the artifacts/ of a translate job.

    Raises ValueError where there are fewer than two, where the job is not finished, where two are of one concept or one
    names none, ForeignBase for another translator's.
    """
    if (folder / "job.json").is_file() and not (folder / "_SUCCESS").is_file():
        raise ValueError(f"{folder} is a job that is not finished; run it to its end (calotype run), then train on it")
    files = sorted((folder / "artifacts" if (folder / "artifacts").is_dir() else folder).rglob("*.safetensors"))
    found: dict[str, dict[str, Tensor]] = {}
    for file in files:
        lora, metadata = read_lora(file)
        concept = metadata.get("concept")
        if concept is None or concept in found:
            why = "names no concept" if concept is None else f"is the second file of {concept!r}"
            raise ValueError(f"{file} {why}; --data takes the folder of one translate job of mode collect")
        if metadata.get("base_hash") != base_hash:
            raise ForeignBase(str(file), metadata.get("base_hash", "(none named)"), base_hash)
        found[concept] = lora
    if len(found) < 2:
        raise ValueError(f"{folder} holds {len(found)} LoRA files; --data takes the folder of a translate job of mode collect")
    concepts = tuple(sorted(found))
    return Collection(concepts, concatenated([found[concept] for concept in concepts]))


def denoising_loss(
    network: WeightDenoiser,
    blocks_CNE: Tensor,
    mask_NE: Tensor,
    text_CTD: Tensor,
    generator: torch.Generator,
    *,
    prediction: Prediction = "x0",
    noisiest: float = 0.0,
    drawn: int | None = None,
) -> Tensor:
    """The loss of the blocks of C concepts, normalised: of all, or of `drawn` of each concept's.

    Each block has its own time; `noisiest`: the share of blocks at the last one, T. Padding decides nothing, whatever it holds.
    """
    C, N, E = blocks_CNE.shape
    index_CN = torch.arange(N).expand(C, N)
    if drawn is not None and drawn < N:
        index_CN = torch.rand(C, N, generator=generator).argsort(1)[:, :drawn]
        N = drawn
    mask_CNE = mask_NE[index_CN]
    blocks_CNE = torch.where(mask_CNE, blocks_CNE.take_along_dim(index_CN[:, :, None], 1), 0.0)
    t_CN = torch.randint(TIMES, (C, N), generator=generator)
    t_CN = torch.where(torch.rand(C, N, generator=generator) < noisiest, TIMES - 1, t_CN)
    noise_CNE = torch.randn(C, N, E, generator=generator)
    target_CNE, noisy_CNE = noised(blocks_CNE, noise_CNE, t_CN, prediction)
    predicted = network(noisy_CNE * mask_CNE, t_CN, index_CN, text_CTD)
    errors_CN = ((predicted - target_CNE).square() * mask_CNE).sum(-1) / mask_CNE.sum(-1)
    return errors_CN.mean()


def noised(blocks_CNE: Tensor, noise_CNE: Tensor, t_CN: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """What the network is to predict, and w_t, (C,N,E) each."""
    diffusion = scheduler(prediction)
    flat, noise, t = blocks_CNE.flatten(0, 1), noise_CNE.flatten(0, 1), t_CN.flatten()
    targets: Mapping[Prediction, Tensor] = {"x0": flat, "eps": noise, "v": diffusion.get_velocity(flat, noise, t)}  # pyright: ignore[reportArgumentType]
    noisy = diffusion.add_noise(flat, noise, t)  # pyright: ignore[reportArgumentType]
    return targets[prediction].view_as(blocks_CNE), noisy.view_as(blocks_CNE)
