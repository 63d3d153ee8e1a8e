"""Train the base of all translators, with its text tower and discriminator (`calotype train translator --data DIR`).

It sees photographs and drawn portraits under several of the lab's edits, told by their texts, and is frozen afterwards. They are few, of some of
the tones only: a base that knows every part of every edit does from the text alone what a LoRA is for. The text tower beside it learns the words
of all training edits, by telling their parts apart.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel

from models.lab.concepts import EDGES, LIGHTS, TEXTURES, TONES, Concept, training_concepts, words
from models.lab.word_tokenizer import word_tokenizer
from models.nets.translator import Generator, PatchDiscriminator, Shape, save_translator
from models.training.loop import fit, keyed
from models.training.pictures import drawn_portraits, free_photographs

logger = logging.getLogger(__name__)

MAX_TOKENS = 24
HELD_OUT = 10  # every so-manieth picture is kept for measuring


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None  # folder of photographs, sets with an index.csv each; None: drawings alone
    sets: tuple[str, ...] = ("faces_lab", "flowers", "objects_dreambooth", "old_photos")
    drawings: int = 1_500
    concepts: int = 16  # of the lab's training concepts
    tones: int = 4  # how many of the tones these may have
    telling: float = 1.0  # weight of the text tower's loss of telling the parts of any training edit's text
    shape: Shape = field(default_factory=Shape)
    batch: int = 32
    adversarial: float = 1.0
    absolute: float = 100.0  # weight of the L1 distance, as in pix2pix
    steps: int = 4_000  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 1e-4
    clip: float | None = None  # the two losses differ by two orders; clipping would starve the discriminator
    average: float = 0.998
    save_every: int = 200
    seed: int = 0


PARTS = (TONES, EDGES, TEXTURES, LIGHTS)


class Pair(nn.Module):
    """Generator, discriminator and text tower, trained by one optimizer: each loss reaches its own network only.

    `heads` read the parts of an edit from its text's pooled state; nobody needs them afterwards.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        tokenizer = word_tokenizer(words(), MAX_TOKENS)
        self.generator, self.discriminator = Generator(shape), PatchDiscriminator(shape)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=shape.text_width,
                intermediate_size=2 * shape.text_width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )

        self.heads = nn.ModuleList(nn.Linear(shape.text_width, len(names)) for names in PARTS)

    def misread(self, ids_BT: Tensor, parts_B4: Tensor) -> Tensor:
        """Cross-entropy of the parts of edits, read from their texts."""
        pooled = self.text_encoder(input_ids=ids_BT).pooler_output
        return torch.stack([cross_entropy(head(pooled), part) for head, part in zip(self.heads, parts_B4.T, strict=True)]).sum()

    def losses(self, source_B3SS: Tensor, ids_BT: Tensor, target_B3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L1 distance, the generator's adversarial loss, the discriminator's loss."""
        made = self.generator(source_B3SS, self.text_encoder(input_ids=ids_BT).last_hidden_state)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, frozen, (source_B3SS, made))
        true, false = self.discriminator(source_B3SS, target_B3SS), self.discriminator(source_B3SS, made.detach())
        return (made - target_B3SS).abs().mean(), _against(fooled, 1), (_against(true, 1) + _against(false, 0)) / 2


def pictures(cfg: Config) -> tuple[Tensor, Tensor]:
    """Pictures (N,3,S,S) uint8 to train on, and those that are kept for measuring."""
    side = cfg.shape.image_size
    found = [drawn_portraits(cfg.drawings, side)] if cfg.drawings else []
    if cfg.data is not None:
        found.append(free_photographs(cfg.data, cfg.sets, side))
    if not found:
        raise ValueError("drawings: 0 and no --data leave nothing to train on; name one of them.")
    kept = [images[::HELD_OUT] for images in found]
    seen = [images[torch.arange(len(images)) % HELD_OUT != 0] for images in found]
    return torch.cat(seen), torch.cat(kept)


def known(cfg: Config) -> list[Concept]:
    """The edits that the base sees: the first training concepts of the first tones."""
    tones = list(TONES)[: cfg.tones]
    return [concept for concept in training_concepts() if concept.tone in tones][: cfg.concepts]


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write out/translator."""
    seen, kept = pictures(cfg)
    concepts, everything = known(cfg), training_concepts()
    keys = [list(names) for names in PARTS]
    tokenizer: Any = word_tokenizer(words(), MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        pair = Pair(cfg.shape)

    def batch(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sources, ids and targets; rows of a batch have different edits, four neighbours share one."""
        chosen = images[torch.randint(len(images), (count,), generator=generator)].float() / 127.5 - 1
        mirrored = torch.rand(count, generator=generator) < 0.5
        chosen = torch.where(mirrored[:, None, None, None], chosen.flip(-1), chosen)
        said, targets = list[str](), list[Tensor]()
        for part in chosen.split(4):
            concept = concepts[int(torch.randint(len(concepts), (), generator=generator))]
            targets.append(concept.apply(part))
            said += [concept.paraphrase(generator) for _ in part]
        ids = tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return chosen, ids, torch.cat(targets)

    def texts(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids of any training edits' texts, and the places of their parts."""
        said = [everything[int(at)] for at in torch.randint(len(everything), (cfg.batch,), generator=generator)]
        ways = [concept.paraphrase(generator) for concept in said]
        parts = [[names.index(key) for names, key in zip(keys, vars(concept).values(), strict=True)] for concept in said]
        return tokenizer(ways, padding="max_length", truncation=True, return_tensors="pt").input_ids, torch.tensor(parts)

    def loss(step: int) -> tuple[Tensor, Mapping[str, float]]:
        distance, fooling, telling = pair.losses(*batch(seen, cfg.batch, keyed(cfg.seed, step)))
        misread = pair.misread(*texts(keyed(cfg.seed, step, "texts")))
        value = cfg.absolute * distance + cfg.adversarial * fooling + telling + cfg.telling * misread
        facts = {"l1": distance, "g": fooling, "d": telling, "read": misread}
        return value, {name: float(fact.detach()) for name, fact in facts.items()}

    steps = fit(pair, loss, cfg, out, betas=(0.5, 0.99))
    with torch.no_grad():
        source, ids, target = batch(kept, 512, keyed(cfg.seed, 0, "measure"))
        made = pair.generator(source, pair.text_encoder(input_ids=ids).last_hidden_state)
    metrics = {"l1": (made - target).abs().mean().item() / 2, "l1 of the source": (source - target).abs().mean().item() / 2}
    logger.info("held-out pictures, trained edits: %s", metrics)
    card = {
        "summary": "base of translators, 64 px: photographs under an edit told by its text; LoRA make it any edit",
        "recipe": "translator",
        "seed": cfg.seed,
        "steps": steps,
        "samples": steps * cfg.batch,
        "concepts": [concept.text for concept in concepts],
        "data": "drawn portraits" if cfg.data is None else f"drawn portraits and free photographs of {', '.join(cfg.sets)}",
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
    networks = {"generator": pair.generator, "discriminator": pair.discriminator, "text_encoder": pair.text_encoder}
    save_translator(out / "translator", cfg.shape, networks, tokenizer, card)


def _against(logits: Tensor, truth: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
