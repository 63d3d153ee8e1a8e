"""Train the denoiser that makes translators from text (`calotype train weight-denoiser --data JOB`): JOB is a finished translate job, mode collect."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.catalog import named_folder
from models.lab.concepts import UnknownConcept, find_concept
from models.methods.weight_diffusion import Denoiser, Prediction
from models.nets.translator import Translator
from models.nets.weight_blocks import Grouping, Layout, normalisation
from models.nets.weight_denoiser import DenoiserSizes, WeightDenoiser
from models.training.loop import fit, keyed
from models.training.weight_denoising import denoising_loss, read_collection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path | None = None  # folder of a translate job of mode collect, or of LoRA files
    translator: str = "lab/translator"  # the base that the LoRAs were trained on: of the lab, or a folder
    concepts: int | None = None  # only the first so many of them, by a hash of the text; None: all but the validation's
    validation: int = 16  # concepts that are measured on, not trained on; at least one
    block_size: int = 256
    grouping: Grouping = "layerwise"
    prediction: Prediction = "x0"
    use_index: bool = True
    patch: int = 32
    widths: tuple[int, int, int] = (64, 128, 192)
    heads: tuple[int, int, int] = (4, 4, 6)
    directions: int = 112  # that every block can be written along, beside element by element
    batch: int = 64  # concepts a step
    drawn: int | None = 6  # blocks of each, drawn anew for each step; None: all
    noisiest: float = 0.8  # share of blocks at the time that generation begins at
    paraphrases: int = 8  # ways to say each concept that are trained on, beside its own text
    text_dropout: float = 0.1  # share of concepts whose text is left out
    steps: int = 1_200  # optimizer steps; may be changed on resuming
    minutes: float | None = None
    lr: float = 1.5e-3
    warmup: int = 50
    decay: float = 0.5
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.99
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """Normalised blocks (C,N,E) and text states of training and validation concepts, and what they are normalised by. K ways to say each."""

    layout: Layout
    concepts: tuple[str, ...]
    blocks: Tensor
    text: Tensor
    held_blocks: Tensor
    held_text: Tensor
    mean: Tensor
    std: Tensor


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt; then write the lab folder out/weight-denoiser.

    Raises ValueError where `data` holds no LoRAs, ForeignBase where they are another translator's.
    """
    folder = named_folder(cfg.translator)
    base = Translator.load(folder)
    data = prepare(cfg, base)
    network = build(cfg, data)
    steps = fit(network, lambda step: loss(cfg, network, data, step), cfg, out)
    denoiser = Denoiser(network.eval(), data.layout, data.mean, data.std, cfg.prediction, base.base_hash)
    measured = {"validation_error": round(error(denoiser, data), 4), "parameters": sum(p.numel() for p in network.parameters())}
    logger.info("measured %s", measured)
    facts = {
        "summary": "weights of the lab's translators from the text of a concept",
        "recipe": "weight_denoiser",
        "seed": cfg.seed,
        "steps": steps,
        "data": f"LoRAs of {len(data.concepts)} concepts",
        "image_size": base.shape.image_size,
        "metrics": measured,
    }
    target, translator = out / "weight-denoiser", f"lab/{folder.name}"
    denoiser.save(target, translator)
    (target / "concepts.txt").write_text("\n".join(sorted(data.concepts)) + "\n")  # what it saw, for proofs that must not ask for it
    card = {"method": "neural_weights", "tier": "lab", "base": translator, "base_hash": base.base_hash, **facts}
    (target / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def prepare(cfg: Config, base: Translator) -> Prepared:
    """Read, choose, group and normalise; nothing is drawn, so that a resumed training sees the same."""
    if cfg.data is None:
        raise ValueError("--data JOB is missing: the folder of a translate job of mode collect, whose LoRAs are trained on")
    collection = read_collection(Path(cfg.data), base.base_hash)
    order = sorted(range(len(collection.concepts)), key=lambda at: keyed(cfg.seed, 0, collection.concepts[at]).initial_seed())
    held, rest = collection.take(order[: cfg.validation]), collection.take(order[cfg.validation :][: cfg.concepts])
    if not held.concepts or len(rest.concepts) < 2:
        raise ValueError(
            f"{cfg.data} holds {len(order)} concepts, of which {cfg.validation} are for validation; that must be one at least, "
            "and two must be left to train on"
        )
    layout = Layout(tuple((name, tuple(shape)) for name, shape in base.lora_layout), cfg.block_size, cfg.grouping)
    blocks = layout.to_blocks(rest.lora)
    mean, std = normalisation(blocks, layout.mask)
    with torch.inference_mode():
        text = text_states(base, rest.concepts, cfg.paraphrases, cfg.seed)
        held_text = base.encode_text(held.concepts)
    return Prepared(
        layout=layout, concepts=rest.concepts, blocks=(blocks - mean) / std, text=text.clone(),
        held_blocks=(layout.to_blocks(held.lora) - mean) / std, held_text=held_text.clone(), mean=mean, std=std,
    )  # fmt: skip


def ways_to_say(concept: str, count: int, seed: int) -> list[str]:
    """The text itself and `count` paraphrases, for texts of the lab's family of concepts; of another text, itself as often."""
    try:
        known = find_concept(concept)
    except UnknownConcept:
        return [concept] * (1 + count)
    return [concept, *(known.paraphrase(keyed(seed, number, concept)) for number in range(count))]


def text_states(base: Translator, concepts: Sequence[str], paraphrases: int, seed: int) -> Tensor:
    """(C,K,T,D) of every way to say each of C concepts, its own text first. Raises UnknownWords."""
    ways = [way for concept in concepts for way in ways_to_say(concept, paraphrases, seed)]
    return base.encode_text(ways).unflatten(0, (len(concepts), -1))


def build(cfg: Config, data: Prepared) -> WeightDenoiser:
    """The untrained network, from the recipe's seed; what its blocks write in are the principal directions of the training concepts."""
    sizes = DenoiserSizes(
        blocks=data.layout.blocks, text_width=data.text.shape[-1], block_size=cfg.block_size, patch=cfg.patch,
        widths=cfg.widths, heads=cfg.heads, directions=cfg.directions, use_index=cfg.use_index,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        network = WeightDenoiser(sizes)
    with torch.no_grad():
        found = principal_directions(data.blocks * data.layout.mask, sizes.directions)
        network.directions[:, : len(found)] = found.transpose(0, 1)
    return network


def principal_directions(blocks_CNE: Tensor, count: int) -> Tensor:
    """(K,N,E) of C centred concepts, K at most `count`: along each, the concepts' coordinates have a deviation of 1."""
    flat = blocks_CNE.flatten(1)
    _, deviations, directions = torch.linalg.svd(flat, full_matrices=False)
    scaled = directions * (deviations[:, None] / len(flat) ** 0.5)
    return scaled[:count].unflatten(1, blocks_CNE.shape[1:])


def loss(cfg: Config, network: WeightDenoiser, data: Prepared, step: int) -> tuple[Tensor, Mapping[str, float]]:
    """One step's loss: blocks of some concepts, some of them without their text (states of zeros)."""
    generator = keyed(cfg.seed, step)
    at = torch.randint(len(data.concepts), (cfg.batch,), generator=generator)
    unsaid = torch.rand(cfg.batch, 1, 1, generator=generator) < cfg.text_dropout
    way = torch.randint(data.text.shape[1], (cfg.batch,), generator=generator)
    text = torch.where(unsaid, 0.0, data.text[at, way])
    value = denoising_loss(
        network, data.blocks[at], data.layout.mask, text, generator, prediction=cfg.prediction, noisiest=cfg.noisiest, drawn=cfg.drawn
    )
    return value, {}


def error(denoiser: Denoiser, data: Prepared) -> float:
    """Mean squared error of generated weights of the validation's concepts, of that of the training concepts' mean: 1 is no better than it."""
    made = (denoiser.generate(data.held_text, range(len(data.held_text))) - data.mean) / data.std
    mask = data.layout.mask
    return float((made - data.held_blocks)[:, mask].square().mean() / data.held_blocks[:, mask].square().mean())
