"""What translators can begin with on held-out concepts: the arms of the proof of neural weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.lab.phrase_regression import PhraseRegression
from models.lab.word_regression import WordRegression
from models.lora_files import lora_bytes, read_lora
from models.methods.neural_weights import NeuralWeights, Request
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.training.weight_denoising import Collection

ARMS: Mapping[str, str] = {
    "random": "base + a LoRA as all trainings begin with it: it changes nothing yet",
    "mean": "base + the mean of the training concepts' weights",
    "regression": "base + ridge regression from the text's words to all weights",
    "kernel": "base + kernel regression from the text's phrases, which knows that they combine",
    "wrong text": "base + weights generated from another held-out concept's text",
    "no index": "base + weights of a denoiser that is not told which block it works on",
    "ours": "base + weights generated from the text",
}

REGRESSORS: Mapping[str, type[WordRegression] | type[PhraseRegression]] = {"regression": WordRegression, "kernel": PhraseRegression}


@dataclass(frozen=True)
class Starts:
    """The base, its denoiser, what both were made of, and the arm without index."""

    base: Translator
    denoiser: Denoiser
    collection: Collection  # the concepts that the denoiser was trained on
    no_index: Denoiser

    def lora(self, arm: str, texts: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Weights (G,*shape) by name that an arm gives for G texts."""
        if arm == "random":
            return concatenated([self.base.start_lora()] * len(texts))
        if arm == "mean":
            return self.denoiser.layout.from_blocks(self.denoiser.mean.expand(len(texts), -1, -1))
        if arm in REGRESSORS:
            return regressed(self.denoiser, self.collection, texts, REGRESSORS[arm])
        if arm == "wrong text":
            half = len(texts) // 2 or 1  # tones come in a fixed order, so that neighbours would often share one
            texts = [texts[(at + half) % len(texts)] for at in range(len(texts))]
        denoiser = self.no_index if arm == "no index" else self.denoiser
        return denoiser.layout.from_blocks(denoiser.generate(self.base.encode_text(texts), [seed + at for at in range(len(texts))]))

    def generate_one(self, text: str) -> Callable[[], object]:
        """All that stands between a text and the first step: encoding it, one denoising step, writing the file and reading it again."""
        method = NeuralWeights(self.base, self.denoiser)

        def generate() -> object:
            (result,) = method([Request(text, 0)])
            lora, _metadata = read_lora(lora_bytes(result.lora, result.metadata))
            return self.base.low_rank(concatenated([lora]))

        return generate


def regressed(
    denoiser: Denoiser, collection: Collection, texts: Sequence[str], regressor: type[WordRegression] | type[PhraseRegression]
) -> dict[str, Tensor]:
    """Weights (G,*shape) of a regressor, fitted on the denoiser's own training concepts and normalised like them."""
    layout = denoiser.layout
    blocks_CNE = (layout.to_blocks(collection.lora) - denoiser.mean) / denoiser.std
    made = regressor.fit(collection.concepts, blocks_CNE.flatten(1))(texts).unflatten(1, denoiser.mean.shape)
    return layout.from_blocks(made * denoiser.std + denoiser.mean)


def trained_on(folder: Path, collection: Collection) -> Collection:
    """The weights of the concepts that a denoiser's folder says it saw. Raises ValueError where the collection has not all of them."""
    saw = (folder / "concepts.txt").read_text().splitlines()
    at = {concept: i for i, concept in enumerate(collection.concepts)}
    if missing := [concept for concept in saw if concept not in at]:
        raise ValueError(
            f"--data lacks {len(missing)} of the {len(saw)} concepts that {folder.name} was trained on; name the job that it learned from"
        )
    with torch.no_grad():
        return collection.take([at[concept] for concept in saw])
