"""The trained denoiser of weights, and the diffusion that it was trained for.

w_t = sqrt(a_t) w + sqrt(1 - a_t) n, a_t of the cosine schedule of T = 1000 times; generation begins at T, and with one step ends there too.
Source: arXiv 2407.11966; that x0 is predicted is ours: at T, eps divides by sqrt(a_T), about 0, and a single step would magnify every error.
Letters: C concepts, N blocks, E elements a block, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor

from models.catalog import ModelNotFound
from models.checkpoints import load_strict, read_tensors
from models.nets.weight_blocks import Layout
from models.nets.weight_denoiser import DenoiserSizes, WeightDenoiser

DENOISER, LAYOUT = "denoiser.safetensors", "layout.json"
TIMES = 1000
Prediction = Literal["x0", "v", "eps"]
PREDICTIONS: Mapping[Prediction, Literal["sample", "v_prediction", "epsilon"]] = {
    "x0": "sample",
    "v": "v_prediction",
    "eps": "epsilon",
}  # ours -> as diffusers calls them


@dataclass(frozen=True)
class Denoiser:
    """The network with all that its file holds. `mean` and `std` (N,E): the normalisation of the training concepts' blocks."""

    network: WeightDenoiser
    layout: Layout
    mean: Tensor
    std: Tensor
    prediction: Prediction
    base_hash: str

    @classmethod
    def load(cls, folder: Path) -> Denoiser:
        """From a folder of denoiser.safetensors and layout.json. Raises ModelNotFound, CheckpointMismatch, ValueError."""
        file = folder / LAYOUT
        if not file.is_file():
            raise ModelNotFound(f"{folder} is no weight denoiser: it has no {LAYOUT}. calotype train weight-denoiser makes one.")
        facts = json.loads(file.read_text())
        layout = Layout.from_json(facts)
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["sizes"].items()}
        tensors = {name: tensor.float() for name, tensor in read_tensors(folder / DENOISER).items()}
        mean, std = tensors.pop("block_mean"), tensors.pop("block_std")
        network = WeightDenoiser(DenoiserSizes(**given))
        load_strict(network, tensors, str(folder / DENOISER))
        return cls(network.eval().requires_grad_(False), layout, mean, std, facts["prediction"], facts["base_hash"])

    def save(self, folder: Path, translator: str) -> None:
        """Write the folder that `load` reads: the network in fp16, its normalisation in fp32. `translator`: its base, such as lab/translator."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.half().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file({**tensors, "block_mean": self.mean.contiguous(), "block_std": self.std.contiguous()}, folder / DENOISER)
        facts = {
            **self.layout.to_json(), "sizes": asdict(self.network.sizes), "prediction": self.prediction,
            "translator": translator, "base_hash": self.base_hash,
        }  # fmt: skip
        (folder / LAYOUT).write_text(json.dumps(facts, indent=1) + "\n")

    def to(self, device: str | torch.device) -> Denoiser:
        return replace(self, network=self.network.to(device), mean=self.mean.to(device), std=self.std.to(device))

    @torch.inference_mode()
    def generate(self, text_CTD: Tensor, seeds: Sequence[int], num_steps: int = 1) -> Tensor:
        """Blocks (C,N,E) in the weights' own units, of C concepts' text states; the noise of each from its own seed."""
        noise = [torch.randn(self.mean.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return self.denoised(text_CTD, torch.stack(noise).to(text_CTD.device), num_steps)

    def denoised(self, text_CTD: Tensor, noise_CNE: Tensor, num_steps: int = 1) -> Tensor:
        """Blocks (C,N,E) in the weights' own units from noise (C,N,E), of text states (C,T,D); differentiable in the network."""
        C, N, _ = noise_CNE.shape
        index_CN = torch.arange(N, device=text_CTD.device).expand(C, N)
        mask_NE = self.layout.mask.to(noise_CNE)
        diffusion, w_CNE = scheduler(self.prediction), noise_CNE
        diffusion.set_timesteps(num_steps)
        for t in diffusion.timesteps:
            predicted = self.network(w_CNE * mask_NE, t.expand(C, N).to(w_CNE.device), index_CN, text_CTD)
            w_CNE = diffusion.step(predicted, int(t), w_CNE, return_dict=False)[0]
        return w_CNE * self.std + self.mean


def scheduler(prediction: Prediction) -> DDIMScheduler:
    """The cosine schedule of T = 1000 times; sampling begins at the noisiest. `add_noise` and `get_velocity` are for training."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: {prediction!r} is none of {', '.join(PREDICTIONS)}")
    return DDIMScheduler(
        num_train_timesteps=TIMES, beta_schedule="squaredcos_cap_v2", prediction_type=PREDICTIONS[prediction], clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
