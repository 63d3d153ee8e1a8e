"""How alike two pictures are, patch by patch, to a network that nobody trained for it: DINOv2 from a local folder, or the lab's image tower."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionModel, Dinov2Model

from models.catalog import ModelNotFound

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIDE = 224  # pixels


class PatchFeatures:
    """Patch tokens of a vision transformer's last layer. `name` says which one."""

    def __init__(self, name: str, network: nn.Module, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.name, self.network, self.side = name, network.eval().requires_grad_(False), side
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @classmethod
    def load(cls, folder: Path) -> PatchFeatures:
        """A folder of DINOv2 (transformers layout), or of the lab's towers. Raises ModelNotFound for anything else."""
        inner = folder / "image_encoder" if (folder / "image_encoder").is_dir() else folder
        if not (inner / "config.json").is_file():
            raise ModelNotFound(
                f"{folder} holds no vision network; give a folder of DINOv2 (config.json, model.safetensors) or lab/towers."
            )
        config = AutoConfig.from_pretrained(inner, local_files_only=True)
        if config.model_type == "dinov2":
            network = Dinov2Model.from_pretrained(inner, local_files_only=True, torch_dtype=torch.float32)
            return cls(folder.name, network, DINO_SIDE, IMAGENET_MEAN, IMAGENET_STD)
        if inner.name == "image_encoder" and config.model_type == "clip_vision_model":
            network = CLIPVisionModel.from_pretrained(inner, local_files_only=True, torch_dtype=torch.float32)
            return cls(folder.name, network, config.image_size, (0.5,) * 3, (0.5,) * 3)  # the lab's towers see [-1, 1]
        raise ModelNotFound(f"{folder} is a {config.model_type}; patches are compared by DINOv2 or by lab/towers.")

    @torch.inference_mode()
    def similarity(self, images_B3HW: Tensor, others_B3HW: Tensor) -> Tensor:
        """(B,) mean cosine of corresponding patch tokens of pictures in [-1, 1]; 1 for equal ones."""
        a_BPC, b_BPC = (self._patches(x) for x in (images_B3HW, others_B3HW))
        return F.cosine_similarity(a_BPC, b_BPC, dim=-1).mean(1)

    def _patches(self, images_B3HW: Tensor) -> Tensor:
        size = (self.side, self.side)
        if images_B3HW.shape[-2:] != size:
            images_B3HW = F.interpolate(images_B3HW, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = ((images_B3HW.clamp(-1, 1) + 1) / 2 - self.mean) / self.std
        return self.network(pixel_values=pixels).last_hidden_state[:, 1:]
