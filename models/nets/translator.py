"""A small picture-to-picture GAN after E2GAN: down -> two residual blocks -> DS -> transformer with text -> US -> residual block -> up.

One base is trained on several concepts and frozen; a concept is a low-rank adapter (LoRA) on the sampling convolutions and the transformer.
Source: E2GAN, arXiv 2401.06127 (topology, where LoRA goes); Efficient Training with Denoised Neural Weights, arXiv 2407.11966.
Letters: B rows, T text tokens, D text channels, N positions, H heads, G adapters, r rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, silu
from transformers import AutoTokenizer, CLIPTextModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.attention import attend
from models.catalog import read_card
from models.checkpoints import load_strict, read_tensors, save_network
from models.low_rank import LowRank


class UnknownWords(ValueError):
    """A text says something that the text tower was not trained on."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a generator and its discriminator: channels at a half, a quarter and an eighth of the picture's side."""

    image_size: int = 64
    channels: tuple[int, int, int] = (24, 48, 96)
    heads: int = 4
    text_width: int = 96
    discriminator: tuple[int, int] = (16, 32)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))


class Attention(nn.Module):
    """Multi-head attention of positions (B,N,C) to themselves, or to a context (B,T,D)."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(context, width), nn.Linear(context, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, context_BTD: Tensor) -> Tensor:
        q, k, v = (
            layer(source).unflatten(-1, (self.heads, -1))
            for layer, source in ((self.to_q, x_BNC), (self.to_k, context_BTD), (self.to_v, context_BTD))
        )
        return self.to_out(attend(q, k, v).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, and a feed-forward layer, each on normalised states and added."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.own, self.text = Attention(width, width, heads), Attention(width, text_width, heads)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BNC: Tensor, text_BTD: Tensor) -> Tensor:
        own_BNC = self.norm1(x_BNC)
        x_BNC = x_BNC + self.own(own_BNC, own_BNC)
        x_BNC = x_BNC + self.text(self.norm2(x_BNC), text_BTD)
        return x_BNC + self.narrow(silu(self.widen(self.norm3(x_BNC))))


class Generator(nn.Module):
    """picture + edit(picture, text): (B,3,S,S) in [-1, 1] and text states (B,T,D) to (B,3,S,S).

    The features of the first convolution are scaled and shifted by what comes up from below before they become pixels again, so that lines
    and colours of single pixels need not pass the narrow middle; positions are learned, since light can depend on the place.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        half, quarter, eighth = shape.channels
        self.down = nn.ModuleList([nn.Conv2d(3, half, 4, 2, 1), nn.Conv2d(half, quarter, 4, 2, 1)])
        self.blocks = nn.ModuleList([ResidualBlock(quarter) for _ in range(3)])
        self.ds = nn.Conv2d(quarter, eighth, 4, 2, 1)
        self.positions = nn.Parameter(torch.randn(1, (shape.image_size // 8) ** 2, eighth) * 0.02)
        self.transformer = TransformerBlock(eighth, shape.text_width, shape.heads)
        self.us = nn.Conv2d(eighth, 4 * quarter, 1)
        self.up = nn.ModuleList([nn.Conv2d(quarter, 8 * half, 1), nn.Conv2d(half, 12, 3, padding=1)])

    def forward(self, image_B3SS: Tensor, text_BTD: Tensor) -> Tensor:
        half = silu(self.down[0](image_B3SS))
        quarter = self.blocks[1](self.blocks[0](self.down[1](half)))
        eighth = self.ds(quarter)
        tokens_BNC = self.transformer(eighth.flatten(2).mT + self.positions, text_BTD)
        risen = pixel_shuffle(self.us(tokens_BNC.mT.reshape(eighth.shape)), 2)
        scale, shift = pixel_shuffle(self.up[0](silu(self.blocks[2](quarter + risen))), 2).chunk(2, dim=1)
        return image_B3SS + pixel_shuffle(self.up[1](silu(half * (1 + scale) + shift)), 2)


class PatchDiscriminator(nn.Module):
    """Whether each patch of a translation (B,3,S,S) looks true beside its source (B,3,S,S): logits (B,1,s,s). After pix2pix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        first, second = shape.discriminator
        self.layers = nn.ModuleList([nn.Conv2d(6, first, 4, 2, 1), nn.Conv2d(first, second, 4, 2, 1), nn.Conv2d(second, 1, 4, 1, 1)])

    def forward(self, source_B3SS: Tensor, made_B3SS: Tensor) -> Tensor:
        x = torch.cat([source_B3SS, made_B3SS], dim=1)
        for layer in self.layers[:-1]:
            x = nn.functional.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)


RANKS: Mapping[str, int] = {"down": 4, "ds": 2, "transformer": 2, "us": 2, "up.0": 4, "up.1": 8}
"""Rank by the first name that a layer's name begins with; layers of no name here (residual blocks, norms) carry no LoRA."""


def lora_modules(generator: Generator, ranks: Mapping[str, int] = RANKS) -> dict[str, int]:
    """Name -> rank of every layer that a concept's LoRA is on, in the order of the network."""
    found = dict[str, int]()
    for name, module in generator.named_modules():
        rank = next((rank for start, rank in ranks.items() if name == start or name.startswith(f"{start}.")), None)
        if rank is not None and isinstance(module, (nn.Linear, nn.Conv2d)):
            found[name] = rank
    return found


def lora_layout(generator: Generator, ranks: Mapping[str, int] = RANKS) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of a concept's tensors, layer by layer: `<layer>.lora_A` (r,in[,k,k]), then `<layer>.lora_B` (out,r)."""
    layout = list[tuple[str, tuple[int, ...]]]()
    for name, rank in lora_modules(generator, ranks).items():
        weight = generator.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        layout += [(f"{name}.lora_A", (rank, *weight.shape[1:])), (f"{name}.lora_B", (weight.shape[0], rank))]
    return tuple(layout)


def base_hash(generator: nn.Module) -> str:
    """sha256 over the names and fp32 values of a generator's weights, as hex: what a concept's LoRA belongs to."""
    digest = hashlib.sha256()
    for name, value in sorted(generator.state_dict().items()):
        digest.update(f"{name}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Translator:
    """A frozen base with its text tower, and where concepts' LoRA go. All fp32."""

    shape: Shape
    generator: Generator
    discriminator: PatchDiscriminator
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    ranks: Mapping[str, int]
    base_hash: str
    facts: Mapping[str, Any]  # its card

    @classmethod
    def load(cls, folder: Path) -> Translator:
        """From a folder {generator,discriminator}.safetensors, text_encoder/, tokenizer/, card.json.

        Raises ModelNotFound, UnreadableCheckpoint, CheckpointMismatch, and ValueError where the weights are not those that the card names.
        """
        facts = read_card(folder).facts
        sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["shape"].items()}
        shape = Shape(**sizes)
        generator, discriminator = Generator(shape), PatchDiscriminator(shape)
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            file = folder / f"{name}.safetensors"
            load_strict(network, {key: value.float() for key, value in read_tensors(file).items()}, str(file))
        found = base_hash(generator)
        if found != facts["base_hash"]:
            raise ValueError(
                f"{folder}: generator.safetensors has base hash {found[:12]}, its card says {facts['base_hash'][:12]}; fetch both."
            )
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, torch_dtype=torch.float32)
        for network in (generator, discriminator, text_encoder):
            network.eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(shape, generator, discriminator, text_encoder, tokenizer, facts["ranks"], found, facts)

    @property
    def lora_layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of a concept's tensors, in their order in files and blocks."""
        return lora_layout(self.generator, self.ranks)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """States (P,T,D) of concepts' texts, padded to the tokenizer's longest. Raises UnknownWords for words outside its vocabulary."""
        tokenizer: Any = self.tokenizer
        for text in texts:
            tokens = tokenizer(text, add_special_tokens=False)
            unknown = [
                text[start:end]
                for id_, (start, end) in zip(tokens.input_ids, _offsets(tokens), strict=True)
                if id_ == tokenizer.unk_token_id
            ]
            if unknown or not tokens.input_ids or len(tokens.input_ids) + 2 > tokenizer.model_max_length:
                why = f"does not know {', '.join(map(repr, unknown))}" if unknown else f"takes 1 to {tokenizer.model_max_length - 2} words"
                raise UnknownWords(f"{text!r}: this translator's text tower {why}; say it in the words of its tokenizer.json.")
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(input_ids=ids).last_hidden_state

    def silence(self, count: int) -> Tensor:
        """Text states (count,T,D) that say nothing. Translators with a LoRA get these: what a base makes of words that it was not trained on is
        arbitrary, every LoRA would have to undo it, and no text would tell how (docs/log.md)."""
        return torch.zeros(count, self.tokenizer.model_max_length, self.shape.text_width)

    def low_rank(self, lora: Mapping[str, Tensor]) -> dict[str, LowRank]:
        """Adapters for `models.low_rank.attached` of concepts' stacked tensors (G,*shape) by name. Raises KeyError for a missing one."""
        return {name: LowRank(lora[f"{name}.lora_A"], lora[f"{name}.lora_B"]) for name in lora_modules(self.generator, self.ranks)}

    def start_lora(self, seed: int = 0) -> dict[str, Tensor]:
        """A LoRA that changes nothing: A random, so that a state of size one stays so, B zero. One seed for all: what concepts share."""
        generator = torch.Generator().manual_seed(seed)
        start = dict[str, Tensor]()
        for name, shape in self.lora_layout:
            fan_in = torch.Size(shape[1:]).numel()
            drawn = torch.randn(shape, generator=generator) / fan_in**0.5
            start[name] = drawn if name.endswith("lora_A") else torch.zeros(shape)
        return start


def save_translator(
    folder: Path, shape: Shape, networks: Mapping[str, nn.Module], tokenizer: PreTrainedTokenizerBase, card: Mapping[str, Any]
) -> None:
    """Write a translator's folder in fp16; `networks`: generator, discriminator, text_encoder, which are rounded to it in place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("generator", "discriminator"):
        network = networks[name].half()
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors")
    save_network(networks["text_encoder"], folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    facts = {"method": "neural_weights", "tier": "lab", "image_size": shape.image_size, "base_hash": base_hash(networks["generator"])}
    written = {**facts, "shape": asdict(shape), "ranks": dict(RANKS), **card}
    (folder / "card.json").write_text(json.dumps(written, indent=2) + "\n")


def _offsets(tokens: Any) -> list[tuple[int, int]]:
    return [tuple(span) for span in tokens.encodings[0].offsets]
