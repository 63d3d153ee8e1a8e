"""A stronger regressor to hold generated weights against: kernel ridge regression from the phrases of a text, which knows that phrases combine.

k(a, b) = agreement ** |phrases in one of both texts only|, a product over phrases, so that every combination of phrases has an effect of its own
and shares with others what it has in common with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

AGREEMENTS = (0.6, 0.7, 0.8, 0.9)
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
CONSTANT = 100.0  # added to the kernel: the common part is all but free of the penalty


@dataclass(frozen=True)
class PhraseRegression:
    """y(text) = sum over C texts of k(text, text_c) weights_c; agreement and penalty are those with the smallest leave-one-out error."""

    texts: tuple[str, ...]
    weights: Tensor  # (C,D)
    agreement: float
    penalty: float

    @classmethod
    def fit(cls, texts: Sequence[str], values_CD: Tensor) -> PhraseRegression:
        """From C texts and their values."""
        y = values_CD.double()
        kernels = {agreement: _kernel(texts, texts, agreement) for agreement in AGREEMENTS}
        errors = {each: _left_out(kernels[each[0]], y, each[1]) for each in product(AGREEMENTS, PENALTIES)}
        agreement, penalty = min(errors, key=lambda each: errors[each])
        return cls(tuple(texts), _inverse(kernels[agreement], penalty) @ y, agreement, penalty)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(C,D) of C texts, fp32."""
        return (_kernel(texts, self.texts, self.agreement) @ self.weights).float()


def phrases(text: str) -> set[str]:
    """What stands between the commas of a text."""
    return {" ".join(part.lower().split()) for part in text.split(",") if part.strip()}


def _kernel(texts: Sequence[str], others: Sequence[str], agreement: float) -> Tensor:
    every = sorted(set[str]().union(*map(phrases, [*texts, *others])))
    first, second = (torch.tensor([[float(each in phrases(text)) for each in every] for text in side]) for side in (texts, others))
    apart = torch.cdist(first.double(), second.double(), p=1)
    return agreement**apart + CONSTANT


def _inverse(kernel_CC: Tensor, penalty: float) -> Tensor:
    return torch.linalg.inv(kernel_CC + penalty * torch.eye(len(kernel_CC), dtype=kernel_CC.dtype))


def _left_out(kernel_CC: Tensor, y_CD: Tensor, penalty: float) -> float:
    """Mean squared error of each text predicted from all others."""
    inverse_CC = _inverse(kernel_CC, penalty)
    return float(((inverse_CC @ y_CD) / inverse_CC.diagonal()[:, None]).square().mean())
