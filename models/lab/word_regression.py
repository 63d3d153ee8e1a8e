"""The plain regressor that generated weights are held against: ridge regression from the words of a text to all weights at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class WordRegression:
    """y = x W + b, x: which of `words` a text holds. `penalty`: the one of PENALTIES with the smallest leave-one-out error."""

    words: tuple[str, ...]
    weights: Tensor  # (words + 1, D), the constant last
    penalty: float

    @classmethod
    def fit(cls, texts: Sequence[str], values_CD: Tensor) -> WordRegression:
        """From C texts and their values. The constant is not penalised."""
        words = tuple(sorted({word for text in texts for word in split(text)}))
        x, y = _features(words, texts), values_CD.double()
        errors = {penalty: _left_out(x, y, penalty) for penalty in PENALTIES}
        penalty = min(errors, key=lambda each: errors[each])
        return cls(words, (_solve(x, penalty) @ y).to(values_CD.dtype), penalty)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(C,D) of C texts; words that it never saw are passed over."""
        return _features(self.words, texts).to(self.weights.dtype) @ self.weights


def split(text: str) -> list[str]:
    """The words of a text."""
    return re.findall(r"\w+", text.lower())


def _features(words: Sequence[str], texts: Sequence[str]) -> Tensor:
    at = {word: i for i, word in enumerate(words)}
    x = torch.zeros(len(texts), len(words) + 1, dtype=torch.float64)
    x[:, -1] = 1
    for row, text in enumerate(texts):
        x[row, [at[word] for word in split(text) if word in at]] = 1
    return x


def _solve(x: Tensor, penalty: float) -> Tensor:
    """(words + 1, C): what values are multiplied by to give weights."""
    ridge = penalty * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[-1, -1] = 1e-6
    return torch.linalg.solve(x.T @ x + ridge, x.T)


def _left_out(x: Tensor, y: Tensor, penalty: float) -> float:
    """Mean squared error of each text predicted from all others: the residual over one less its own leverage."""
    hat = x @ _solve(x, penalty)
    return float(((y - hat @ y) / (1 - hat.diagonal())[:, None]).square().mean())
