"""A random checkpoint of the authors' layout in miniature: four networks, two of them with LoRA by peft names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from models.methods.instant_restore_checkpoint import UNET_LORA, VAE_LORA

WIDTHS = (8, 16, 16, 16)
RANK = 4


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        attention_head_dim=(1, 2, 2, 2),
        cross_attention_dim=12,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=8,
        latent_channels=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def tiny_parts(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """State dictionaries of unet, vae, original_unet, original_vae; no LoRA is zero."""
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"unet": unet(), "vae": vae(), "original_unet": unet(), "original_vae": vae()}
    lora = {"r": RANK, "lora_alpha": RANK // 2, "init_lora_weights": False}
    modules["unet"].add_adapter(LoraConfig(target_modules=list(UNET_LORA), **lora))  # pyright: ignore
    modules["vae"].add_adapter(LoraConfig(target_modules=list(VAE_LORA), **lora), adapter_name="vae_skip")  # pyright: ignore
    return {name: {key: value.detach() for key, value in module.state_dict().items()} for name, module in modules.items()}


def write_checkpoint(path: Path, parts: dict[str, dict[str, Tensor]], prefix: str = "net.", **cfg: Any) -> None:
    """A training script's file: weights, options, and an optimizer that nobody needs."""
    state = {f"{prefix}{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
    state[f"{prefix}text_encoder.final_layer_norm.weight"] = torch.ones(12)
    torch.save({"state_dict": state, "cfg": {"rank": RANK, **cfg}, "optimizer": {"step": 3}}, path)
