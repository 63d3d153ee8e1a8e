"""Random text-to-image bases of both topologies, small enough for any test."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from models.bases import FlowBase, UNetBase

WORDS = [
    "a",
    "an",
    "and",
    "the",
    "on",
    "in",
    "of",
    "with",
    "red",
    "blue",
    "green",
    "star",
    "circle",
    "square",
    "dog",
    "cat",
    "left",
    "right",
    "top",
    "small",
    "ginger",
    "-",
    "kitten",
    ",",
    ".",
]
TEXT_WIDTH = 16
LONGEST = 20


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Word level, with CLIP's ends: start, words, end, padded with end."""
    vocabulary = {word: at for at, word in enumerate(["<start>", "<end>", "<unk>", *WORDS])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = BertPreTokenizer()
    inner.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>", model_max_length=LONGEST
    )


def tiny_text_encoder(seed: int) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=3 + len(WORDS), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LONGEST, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config)


def tiny_vae(seed: int, **options: float) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip


def tiny_unet(seed: int) -> UNet2DConditionModel:
    """Two levels with attention on 8x8 and 4x4 cells for pictures of 16 px."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=(2, 4),
        cross_attention_dim=TEXT_WIDTH, norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def tiny_unet_base(scheduler: object | None = None, seed: int = 0) -> UNetBase:
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    base = UNetBase(
        vae=tiny_vae(seed),
        scheduler=scheduler or ddim,
        text_encoder=tiny_text_encoder(seed),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(seed),
    )
    return base.to("cpu", torch.float32)


def tiny_transformer(seed: int, *, guidance_embeds: bool = False) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def tiny_flow_base(*, t5: bool = False, guidance_embeds: bool = False, shifting: bool = False, seed: int = 0) -> FlowBase:
    second = {}
    if t5:
        torch.manual_seed(seed + 1)
        config = T5Config(
            vocab_size=3 + len(WORDS), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
        )
        second = {"text_encoder_2": T5EncoderModel(config), "tokenizer_2": tiny_tokenizer(), "longest_text": LONGEST}
    base = FlowBase(
        vae=tiny_vae(seed, scaling_factor=0.36, shift_factor=0.11),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=shifting),
        text_encoder=tiny_text_encoder(seed),
        tokenizer=tiny_tokenizer(),
        transformer=tiny_transformer(seed, guidance_embeds=guidance_embeds),
        **second,
    )  # fmt: skip
    return base.to("cpu", torch.float32)


def save(base: UNetBase | FlowBase, folder: Path) -> Path:
    """The base as a folder in diffusers layout."""
    for name in ("vae", "scheduler", "text_encoder", "tokenizer", "unet", "transformer", "text_encoder_2", "tokenizer_2"):
        part = getattr(base, name, None)
        if part is not None:
            part.save_pretrained(folder / name)
    return folder
