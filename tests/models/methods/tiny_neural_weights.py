"""A random translator and a random denoiser of its weights, as folders, small enough for any test."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from models.lab.concepts import words
from models.lab.word_tokenizer import word_tokenizer
from models.methods.neural_weights import NeuralWeights, Request
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Generator, PatchDiscriminator, Shape, Translator, save_translator
from models.nets.weight_blocks import Layout
from models.nets.weight_denoiser import DenoiserSizes, WeightDenoiser

WORDS = words()
SHAPE = Shape(image_size=16, channels=(8, 8, 16), heads=2, text_width=16, discriminator=(4, 8))
LONGEST = 20  # tokens


def tiny_translator(folder: Path, seed: int = 0) -> Path:
    """Write a translator's folder."""
    tokenizer = word_tokenizer(WORDS, LONGEST)
    config = CLIPTextConfig(
        vocab_size=3 + len(WORDS), hidden_size=SHAPE.text_width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LONGEST, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {"generator": Generator(SHAPE), "discriminator": PatchDiscriminator(SHAPE), "text_encoder": CLIPTextModel(config)}
    save_translator(folder, SHAPE, networks, tokenizer, {})
    return folder


def tiny_denoiser_of(base: Translator, prediction: str = "x0") -> Denoiser:
    """Random in every layer, with weights of the size that a translator's may have."""
    layout = Layout(base.lora_layout, 64)
    sizes = DenoiserSizes(
        blocks=layout.blocks, text_width=SHAPE.text_width, block_size=64, patch=8, widths=(8, 8, 16), heads=(2, 2, 2), embedding=16,
        groups=4, directions=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WeightDenoiser(sizes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        mean, std = 0.1 * torch.randn(layout.blocks, 64), 0.1 + torch.rand(layout.blocks, 64)
    return Denoiser(network.eval().requires_grad_(False), layout, mean * layout.mask, std, prediction, base.base_hash)  # pyright: ignore[reportArgumentType]


def tiny_model(folder: Path) -> Path:
    """Write `folder` (a denoiser) and, beside it, the translator that its card names; gives the denoiser's."""
    base = tiny_translator(folder.parent / "translator")
    denoiser = tiny_denoiser_of(Translator.load(base))
    denoiser.save(folder, "lab/translator")
    card = {"method": "neural_weights", "tier": "lab", "base": "lab/translator", "base_hash": denoiser.base_hash}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def tiny_method() -> NeuralWeights:
    """Loaded from files, as a job does."""
    with TemporaryDirectory() as scratch:
        folder = tiny_model(Path(scratch) / "weight-denoiser")
        return NeuralWeights.load({"base": folder.parent / "translator", "checkpoint": folder}, device="cpu")


def tiny_requests() -> list[Request]:
    """Four different ones; two with a picture."""
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return [
        Request("sepia", 1, pictures[0]),
        Request("sepia, ink outlines", 1),
        Request("sepia", 2, pictures[1], {"row_id": "c"}),
        Request("golden, soft focus, fog", 1),
    ]
