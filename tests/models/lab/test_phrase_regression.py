"""Kernel regression from phrases: combinations, and what chooses its settings."""

from __future__ import annotations

import pytest
import torch

from models.lab import phrase_regression as subject
from models.lab.phrase_regression import PhraseRegression, phrases
from models.lab.word_regression import WordRegression

COLOURS, SHAPES, SIZES = ("red", "green", "blue", "grey"), ("round box", "flat", "long"), ("", "big", "tiny")
TEXTS = [", ".join(part for part in (a, b, c) if part) for a in COLOURS for b in SHAPES for c in SIZES]


def values() -> torch.Tensor:
    """Parts and pairs of parts have effects of their own."""
    generator = torch.Generator().manual_seed(0)
    single, pair = torch.randn(10, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    return torch.stack([single[a] + single[4 + b] + single[7 + c] + pair[a, b] for a in range(4) for b in range(3) for c in range(3)])


def test_a_phrase_is_what_stands_between_commas() -> None:
    assert phrases("Red,  round   box,") == {"red", "round box"}


def test_a_combination_never_seen_is_told_better_than_from_single_words_where_pairs_have_effects() -> None:
    y, kept = values(), [4, 13, 22, 35]
    seen = [at for at in range(len(TEXTS)) if at not in kept]
    errors = [
        float((model.fit([TEXTS[at] for at in seen], y[seen])([TEXTS[at] for at in kept]) - y[kept]).square().mean())
        for model in (PhraseRegression, WordRegression)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_what_is_left_out_is_what_leaving_out_would_give() -> None:
    y = values()
    fitted = PhraseRegression.fit(TEXTS, y)
    left = []
    for at in range(len(TEXTS)):
        rest = [i for i in range(len(TEXTS)) if i != at]
        kernel = subject._kernel([TEXTS[i] for i in rest], [TEXTS[i] for i in rest], fitted.agreement)
        weights = subject._inverse(kernel, fitted.penalty) @ y[rest].double()
        left.append(subject._kernel([TEXTS[at]], [TEXTS[i] for i in rest], fitted.agreement) @ weights - y[at])
    expected = float(torch.cat(left).square().mean())
    found = subject._left_out(subject._kernel(TEXTS, TEXTS, fitted.agreement), y.double(), fitted.penalty)
    assert found == pytest.approx(expected, rel=1e-6)
