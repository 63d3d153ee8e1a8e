"""Many pictures of the drawn world and their captions, made once and kept in files beside the training that needs them."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.lab.captions import MAX_TOKENS, caption, tokenizer
from models.lab.world import SIDE, Subject, draw, subject
from models.training.loop import keyed

logger = logging.getLogger(__name__)

CHUNK = 500  # pictures a task


def drawings(count: int, cache: Path, first: int = 0) -> Tensor:
    """Pictures `first` to `first + count` of the world, (N, 3, S, S) uint8; read from `cache` where they have been drawn before."""
    file = cache / f"drawings-{first}-{count}-{SIDE}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        logger.info("drawing pictures=%d into=%s", count, file)
        tasks = [(start, min(CHUNK, first + count - start)) for start in range(first, first + count, CHUNK)]
        if len(tasks) == 1:
            parts = [_draw_many(tasks[0])]
        else:
            with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
                parts = pool.map(_draw_many, tasks, chunksize=1)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as stream:
            np.save(stream, np.concatenate(parts))
        os.replace(partial, file)
    return torch.from_numpy(np.load(file)).permute(0, 3, 1, 2)


def to_unit(images_u8: Tensor) -> Tensor:
    """uint8 pixels as floats in [-1, 1]."""
    return images_u8.float() / 127.5 - 1


def _draw_many(task: tuple[int, int]) -> np.ndarray:
    first, count = task
    return np.stack([np.asarray(draw(subject(number), number).image) for number in range(first, first + count)])


def subjects(count: int, first: int = 0) -> list[Subject]:
    """What pictures `first` to `first + count` show."""
    return [subject(number) for number in range(first, first + count)]


def captions(count: int, variants: int, cache: Path) -> Tensor:
    """Token ids (N, V, MAX_TOKENS) of `variants` captions of each picture: the whole one, then ones that leave something out."""
    file = cache / f"captions-{count}-{variants}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        texts = []
        for number, what in enumerate(subjects(count)):
            generator = keyed(0, number, "caption")
            texts += [caption(what), *(caption(what, generator) for _ in range(variants - 1))]
        ids = tokenizer()(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as stream:
            np.save(stream, np.array(ids, dtype=np.int16).reshape(count, variants, MAX_TOKENS))
        os.replace(partial, file)
    return torch.from_numpy(np.load(file)).long()
