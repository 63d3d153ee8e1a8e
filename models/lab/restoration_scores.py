"""Scores of restored faces against their originals, arm by arm: what the lab proof of InstantRestore compares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import ImageFilter
from torch import Tensor

from models.lab.damage import degrade, from_pil, to_pil
from models.methods.instant_restore import InstantRestore, Request
from models.metrics import Interval, bootstrap, gmsd, psnr, ssim
from models.training.photographs import Person
from models.training.views import crop

Embed = Callable[[Tensor], Tensor]
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "gmsd": False, "identity": False}


@dataclass(frozen=True)
class Arm:
    """One way of treating N damaged pictures: the pictures, (N,) scores a measure, (N, D) face embeddings.

    `identity` is the Euclidean distance of the embedding to the original's: lower is more the same person.
    """

    pictures: Tensor
    scores: Mapping[str, Tensor]
    embeddings: Tensor

    def mean(self, measure: str) -> Interval:
        """Mean over people, with its interval."""
        return bootstrap(self.scores[measure])


@dataclass(frozen=True)
class Comparison:
    """N people's damaged pictures treated in several ways."""

    originals: Tensor
    references: list[list[Tensor]]
    original_embeddings: Tensor
    arms: Mapping[str, Arm]

    def gain(self, better: str, worse: str, measure: str) -> Interval:
        """By how much one arm is better than another, paired over people; above 0 is better for every measure."""
        difference = self.arms[better].scores[measure] - self.arms[worse].scores[measure]
        return bootstrap(difference if HIGHER_IS_BETTER[measure] else -difference)


def compare(
    method: InstantRestore, people: Sequence[Person], level: str, embed: Embed, counts: Sequence[int], classical: bool = True
) -> Comparison:
    """Damage each person's first photograph and treat it in every way.

    Arms: `input`, `classical` (median filter and unsharp mask), and the method with `n` of the person's other photographs for n in `counts`;
    for the largest n above 0 also with as many of the next person's (`another's n`). Every person needs max(counts) + 1 photographs.
    """
    side = method.settings.image_size
    placement = torch.eye(2, 3)
    originals = torch.stack([crop(person.images[0], placement, side) for person in people])
    references = [[crop(image, placement, side) for image in person.images[1 : 1 + max(counts)]] for person in people]
    damaged = torch.stack([degrade(x, level, _generator(person.name, level)) for x, person in zip(originals, people, strict=True)])
    treated = {"input": damaged}
    if classical:
        treated["classical"] = torch.stack([sharpened(picture) for picture in damaged])
    for count in counts:
        treated[f"{count} references"] = restored(method, damaged, [row[:count] for row in references])
    if max(counts) > 0:
        others = [*references[1:], references[0]]
        treated[f"another's {max(counts)}"] = restored(method, damaged, others)
    truth = embed(originals)
    return Comparison(originals, references, truth, {name: score(x, originals, truth, embed) for name, x in treated.items()})


def restored(method: InstantRestore, damaged_B3HW: Tensor, references: Sequence[Sequence[Tensor]], batch: int = 16) -> Tensor:
    """The method's results, (B, 3, H, W), each picture with its own references."""
    requests = [
        Request(image=picture, references=list(row), reference_keys=[_key(reference) for reference in row], seed=i)
        for i, (picture, row) in enumerate(zip(damaged_B3HW, references, strict=True))
    ]
    results = [result for start in range(0, len(requests), batch) for result in method(requests[start : start + batch])]
    return torch.stack([result.restored for result in results])


def score(pictures_B3HW: Tensor, originals_B3HW: Tensor, truth_BD: Tensor, embed: Embed) -> Arm:
    """All measures of some pictures against their originals."""
    embeddings = embed(pictures_B3HW)
    scores = {
        "psnr": psnr(pictures_B3HW, originals_B3HW),
        "ssim": ssim(pictures_B3HW, originals_B3HW),
        "gmsd": gmsd(pictures_B3HW, originals_B3HW),
        "identity": (embeddings - truth_BD).norm(dim=1),
    }
    return Arm(pictures_B3HW, scores, embeddings)


def sharpened(image_3HW: Tensor) -> Tensor:
    """What one does without a network: a median filter against blocks and noise, then an unsharp mask."""
    picture = to_pil(image_3HW).filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.UnsharpMask(radius=2, percent=60, threshold=2))
    return from_pil(picture)


def _generator(name: str, level: str) -> torch.Generator:
    digest = hashlib.sha256(f"{name}/{level}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _key(image_3HW: Tensor) -> str:
    return hashlib.sha256(image_3HW.contiguous().numpy().tobytes()).hexdigest()
