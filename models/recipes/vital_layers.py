"""Measure which layers of a FLUX base are vital (`calotype train vital-layers -o FOLDER --set base=BASE`); nothing is trained.

vitality(l) = 1 - mean_i sim(G(s_i, p_i), G without layer l (s_i, p_i)): how much pictures change when a layer gives back what it gets.
Source: arXiv 2411.14430 (the scoring script was not released); sim: mean cosine of patch tokens. A measurement costs (layers + 1) * k pictures
and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.bases import FlowBase
from models.catalog import is_lab, lab_path, named_folder
from models.lab.captions import caption
from models.lab.world import UNSEEN, subject
from models.methods.flow_layers import layer_count, skipped_layers
from models.methods.vital_layers import FILE, VitalLayers, most_vital, transformer_hash
from models.nets.patch_features import PatchFeatures
from models.sampling import Request, sample
from models.training.loop import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

CHUNK = 16  # pictures compared together
PROGRESS = "vital-layers.checkpoint.pt"
SUBJECTS = ("a dog", "an old woman", "a red bicycle", "a lighthouse", "a bowl of fruit", "two children", "a castle", "a robot")
SUBJECTS += ("a violin", "a horse", "a steam train", "a street market", "a glass of water", "a fox", "a wooden boat", "a tulip")
SETTINGS = (
    "a photo of {} in the morning light",
    "an oil painting of {}",
    "{} in heavy snow, seen from far away",
    "a close-up of {} at night",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    base: str  # folder in diffusers layout, or lab/mmdit
    similarity: str | None = None  # folder of DINOv2, or lab/towers; default for lab bases: lab/towers
    prompts: str | None = None  # text file, a prompt a line; default: the drawn world's captions for lab bases, else 64 of our own
    k: int = 64  # the first k prompts are used
    n_vital: int | None = None  # layers chosen; default: 9, or four tenths of a base that has fewer than 23
    vitality_threshold: float | None = None  # instead: all layers above it
    num_inference_steps: int = 15
    guidance_scale: float | None = None  # default: 3.5 for bases with an input for it and for lab bases, else none
    size: int | None = None  # pixels a side; default: the base's own
    batch: int = 16
    seed: int = 0


def train(cfg: Config, out: Path) -> None:
    """Score all layers, going on from out/vital-layers.checkpoint.pt; then write out/vital_layers.json. Raises ValueError saying what to do."""
    folder = named_folder(cfg.base)
    lab = is_lab(folder)
    prompts = read_prompts(cfg, lab)
    features = PatchFeatures.load(_similarity_folder(cfg, lab))
    base = FlowBase.load(folder)
    state = load_checkpoint(out / PROGRESS, cfg, may_differ=("batch", "n_vital", "vitality_threshold"))
    done: list[float] = state["scores"] if state is not None else []
    scores = layer_scores(base, cfg, prompts, features, lab=lab, done=done, keep=lambda so_far: _keep(out, cfg, so_far))
    measured = VitalLayers(
        base=folder.name,
        base_hash=transformer_hash(folder),
        similarity_net=features.name,
        prompts_digest=hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        scores=tuple(scores),
        chosen=choose(cfg, scores),
    )
    measured.write(out / FILE)
    (out / PROGRESS).unlink()
    logger.info("chosen=%s", measured.chosen)


def layer_scores(
    base: FlowBase,
    cfg: Config,
    prompts: Sequence[str],
    features: PatchFeatures,
    *,
    lab: bool,
    done: Sequence[float] = (),
    keep: Callable[[list[float]], None] | None = None,
) -> list[float]:
    """The vitality of every layer; those of the first layers may be known (`done`). `keep` is called after each layer with all so far."""
    scale, scores = guidance(cfg, base, lab), list(done)
    plain = pictures(base, cfg, prompts, scale)
    for layer in range(len(scores), layer_count(base.transformer)):
        with skipped_layers(base.transformer, (layer,)):
            without = pictures(base, cfg, prompts, scale)
        scores.append(vitality(features, plain, without).mean().item())
        logger.info("layer=%d vitality=%.4f", layer, scores[-1])
        if keep is not None:
            keep(scores)
    return scores


def _keep(out: Path, cfg: Config, scores: list[float]) -> None:
    save_checkpoint(out / PROGRESS, {"scores": scores}, cfg)


def guidance(cfg: Config, base: FlowBase, lab: bool) -> float:
    """The scale to sample with; 1, none, for a base that was distilled to a few steps without an input for it."""
    if cfg.guidance_scale is not None:
        return cfg.guidance_scale
    return 3.5 if lab or base.transformer.config["guidance_embeds"] else 1.0


def pictures(base: FlowBase, cfg: Config, prompts: Sequence[str], scale: float) -> Tensor:
    """(k,3,H,W) in [-1, 1]: a picture of each prompt, from a noise of its own."""
    same = {"steps": cfg.num_inference_steps, "guidance_scale": scale, "height": cfg.size, "width": cfg.size}
    requests = [Request(prompt=prompt, seed=cfg.seed + i, **same) for i, prompt in enumerate(prompts)]
    chunks = [requests[start : start + cfg.batch] for start in range(0, len(requests), cfg.batch)]
    return torch.stack([picture for chunk in chunks for picture in sample(base, chunk)])


def vitality(features: PatchFeatures, plain: Tensor, without: Tensor) -> Tensor:
    """(k,) 1 - similarity of each prompt's picture with and without a layer."""
    chunks = zip(plain.split(CHUNK), without.split(CHUNK), strict=True)
    return torch.cat([1 - features.similarity(a, b) for a, b in chunks])


def choose(cfg: Config, scores: Sequence[float]) -> tuple[int, ...]:
    """The vital layers: those above the threshold where one is set, else the `n_vital` highest."""
    n = cfg.n_vital or max(1, min(9, 2 * len(scores) // 5))
    if cfg.vitality_threshold is not None:
        return tuple(layer for layer, score in enumerate(scores) if score > cfg.vitality_threshold)
    return most_vital(scores, n)


def read_prompts(cfg: Config, lab: bool) -> list[str]:
    """The k prompts of a measurement. Raises ValueError where there are fewer."""
    if cfg.prompts is not None:
        found = [line.strip() for line in Path(cfg.prompts).read_text().splitlines() if line.strip()]
    elif lab:
        found = world_prompts(cfg.k)
    else:
        found = [setting.format(what) for setting in SETTINGS for what in SUBJECTS]
    if len(found) < cfg.k:
        raise ValueError(
            f"{cfg.prompts or 'The list of prompts'} has {len(found)} prompts, k is {cfg.k}; give more prompts or set k={len(found)}."
        )
    return found[: cfg.k]


def world_prompts(count: int, first: int = UNSEEN) -> list[str]:
    """Captions of pictures of the drawn world that nothing was trained on."""
    return [caption(subject(number)) for number in range(first, first + count)]


def _similarity_folder(cfg: Config, lab: bool) -> Path:
    if cfg.similarity is not None:
        return named_folder(cfg.similarity)
    if lab:
        return lab_path("towers")
    raise ValueError(
        "--set similarity=FOLDER names a local folder of DINOv2 (ViT-B/14 in transformers layout); full-size pictures need it."
    )
