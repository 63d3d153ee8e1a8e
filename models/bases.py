"""Text-to-image base models from folders in diffusers layout: Stable Diffusion's topology (UNetBase) and FLUX's (FlowBase).

A base holds its networks, turns prompts into what the network attends to, and pixels into latents and back. Sampling is in models/sampling.py.
Letters: P prompts, T tokens, C channels, B rows, h x w latent cells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.catalog import ModelNotFound
from models.checkpoints import CheckpointMismatch

PROMPTS_A_PASS = 32
PIXELS_A_PASS = 8 * 512 * 512  # pictures through the autoencoder together: eight of 512 px, two of 1024
LONGEST_T5_TEXT = 512  # tokens, as FluxPipeline pads


@dataclass(frozen=True)
class Text:
    """Encoded prompts: states (P,T,C) that the network attends to, pooled (P,D) where it is modulated by a vector too."""

    states: Tensor
    pooled: Tensor | None = None

    def take(self, indices: Sequence[int]) -> Text:
        """The prompts of these indices, in this order, with repetitions."""
        at = torch.tensor(list(indices), dtype=torch.long, device=self.states.device)
        return Text(self.states[at], None if self.pooled is None else self.pooled[at])


@dataclass
class Base:
    """What both topologies share: the autoencoder, its scaling, and where and in which precision the networks are."""

    vae: AutoencoderKL
    scheduler: Any  # a diffusers scheduler; sampling works on copies of it
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def factor(self) -> int:
        """Pixels a latent cell and side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def modules(self) -> list[nn.Module]:
        """All networks."""
        return [module for module in vars(self).values() if isinstance(module, nn.Module)]

    def to(self, device: str | torch.device | None, dtype: torch.dtype | None) -> Self:
        """Move all networks, in place. None: CUDA if there is one; bf16 there, else fp32."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        for module in self.modules():
            nn.Module.to(module, device, dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32))
            module.eval().requires_grad_(False)
        return self

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Pixels (B,3,H,W) in [-1, 1] of latents in the network's scale; as many pictures at once as PIXELS_A_PASS allows."""
        config = self.vae.config
        z_BChw = latents_BChw / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        chunks = z_BChw.split(self._pictures_a_pass(latents_BChw.shape[-2] * latents_BChw.shape[-1] * self.factor**2))
        return torch.cat([self.vae.decode(chunk, return_dict=False)[0].clamp(-1, 1) for chunk in chunks])  # pyright: ignore[reportArgumentType]

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Latents (B,C,h,w) in the network's scale of pixels in [-1, 1]: the posterior's mean, so that nothing is drawn."""
        config, means = self.vae.config, []
        for chunk in pixels_B3HW.to(self.device, self.dtype).split(self._pictures_a_pass(pixels_B3HW.shape[-2] * pixels_B3HW.shape[-1])):
            posterior = self.vae.encode(chunk, return_dict=False)[0]
            assert isinstance(posterior, DiagonalGaussianDistribution)
            means.append(posterior.mean)
        return (torch.cat(means) - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]

    def _pictures_a_pass(self, pixels: int) -> int:
        return max(1, PIXELS_A_PASS // pixels)

    def _clip(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (P,T,C) and pooled output (P,D) of the CLIP text tower."""
        states, pooled = [], []
        for ids_PT in _token_ids(self.tokenizer, prompts, self.tokenizer.model_max_length):
            output = self.text_encoder(input_ids=ids_PT.to(self.device))
            states.append(output.last_hidden_state)
            pooled.append(output.pooler_output)
        return torch.cat(states), torch.cat(pooled)


@dataclass
class UNetBase(Base):
    """A model of Stable Diffusion's topology (SD 1.5, lab/unet): a U-Net with cross-attention to one CLIP text tower's states."""

    unet: UNet2DConditionModel

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> UNetBase:
        """From a folder in diffusers layout. Raises ModelNotFound for a missing part, CheckpointMismatch for weights that do not fit."""
        unet = _network(UNet2DConditionModel, folder / "unet")
        if unet.config["addition_embed_type"] is not None:
            raise ModelNotFound(
                f"{folder} is of another family than Stable Diffusion 1.x (its U-Net wants more than text); use SD 1.5's layout."
            )
        return cls(**_shared_parts(folder), unet=unet).to(device, dtype)

    @property
    def image_size(self) -> int:
        """Pixels a side that the model was made for."""
        return int(self.unet.config["sample_size"]) * self.factor

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config["in_channels"])

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """States (P,T,C) of prompts, cut at the tower's longest text. Shapes fit any mixture of prompts."""
        return Text(self._clip(prompts)[0].to(self.dtype))


@dataclass
class FlowBase(Base):
    """A model of FLUX's topology: a CLIP tower gives the pooled vector; states come from T5 (FLUX) or from the same tower (lab/mmdit)."""

    transformer: FluxTransformer2DModel
    text_encoder_2: T5EncoderModel | None = None
    tokenizer_2: PreTrainedTokenizerBase | None = None
    longest_text: int = field(default=LONGEST_T5_TEXT)  # tokens of T5

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> FlowBase:
        """From a folder in diffusers layout. Raises ModelNotFound for a missing part, CheckpointMismatch for weights that do not fit."""
        second: dict[str, Any] = {}
        if (folder / "text_encoder_2").is_dir():
            second = {
                "text_encoder_2": _network(T5EncoderModel, folder / "text_encoder_2"),
                "tokenizer_2": _tokenizer(folder / "tokenizer_2"),
            }
        transformer = _network(FluxTransformer2DModel, folder / "transformer")
        return cls(**_shared_parts(folder), transformer=transformer, **second).to(device, dtype)

    @property
    def image_size(self) -> int:
        """Pixels a side that the model was made for."""
        return int(self.vae.config["sample_size"])

    @property
    def latent_channels(self) -> int:
        """Channels of a latent cell; the transformer's tokens are 2 x 2 of them."""
        return int(self.transformer.config["in_channels"]) // 4

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """States (P,T,C) and pooled vectors (P,D) of prompts, cut at the towers' longest text."""
        states, pooled = self._clip(prompts)
        if self.text_encoder_2 is not None:
            assert self.tokenizer_2 is not None
            chunks = _token_ids(self.tokenizer_2, prompts, self.longest_text)
            states = torch.cat([self.text_encoder_2(input_ids=ids_PT.to(self.device)).last_hidden_state for ids_PT in chunks])
        return Text(states.to(self.dtype), pooled.to(self.dtype))


def load_base(folder: Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> UNetBase | FlowBase:
    """The base in a folder, of whichever topology it holds. Raises ModelNotFound, CheckpointMismatch."""
    if (folder / "unet").is_dir():
        return UNetBase.load(folder, device=device, dtype=dtype)
    if (folder / "transformer").is_dir():
        return FlowBase.load(folder, device=device, dtype=dtype)
    raise ModelNotFound(f"{folder} holds neither unet/ nor transformer/; give a text-to-image model in diffusers layout.")


def _shared_parts(folder: Path) -> dict[str, Any]:
    return {
        "vae": _network(AutoencoderKL, folder / "vae"),
        "scheduler": _scheduler(folder / "scheduler"),
        "text_encoder": _network(CLIPTextModel, folder / "text_encoder"),
        "tokenizer": _tokenizer(folder / "tokenizer"),
    }


def _network(kind: Any, folder: Path) -> Any:
    """A network of a diffusers or transformers class, read strictly from a local folder."""
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"There is no {folder.name} in {folder.parent} ({folder / 'config.json'} is missing); fetch the whole model.")
    network, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32)
    missing, unknown = info["missing_keys"], info["unexpected_keys"]
    wrong = [str(key) for key in info.get("mismatched_keys", ())]
    if missing or unknown or wrong:
        raise CheckpointMismatch(str(folder), missing, [*unknown, *wrong])
    return network


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise ModelNotFound(f"There is no {folder.name} in {folder.parent}; fetch the whole model.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _scheduler(folder: Path) -> Any:
    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise ModelNotFound(f"There is no scheduler in {folder.parent} ({file} is missing); fetch the whole model.")
    name = json.loads(file.read_text()).get("_class_name", "")
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise ModelNotFound(f"{file} names {name!r}, which is no scheduler of diffusers {diffusers.__version__}.")
    return kind.from_pretrained(folder)


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> list[Tensor]:
    """Token ids (P,length), padded and cut, in chunks of prompts."""
    chunks = [list(prompts[start : start + PROMPTS_A_PASS]) for start in range(0, len(prompts), PROMPTS_A_PASS)]
    return [tokenizer(chunk, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids for chunk in chunks]
