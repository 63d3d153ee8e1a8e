"""The plain regressor: finds what is a sum over words, and chooses its penalty by what it leaves out."""

from __future__ import annotations

import torch

from models.lab.word_regression import PENALTIES, WordRegression

TONES, EDGES = ("sepia", "noir", "golden", "teal"), ("ink", "chalk", "soft")
TEXTS = [f"{tone}, {edge} lines" for tone in TONES for edge in EDGES]


def test_a_sum_over_words_is_found_for_a_combination_never_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    of_word = {word: torch.randn(6, generator=generator) for word in (*TONES, *EDGES)}
    values = torch.stack([of_word[text.split(",")[0]] + of_word[text.split()[1]] for text in TEXTS])
    found = WordRegression.fit(TEXTS[1:], values[1:])
    assert found.penalty == min(PENALTIES)  # nothing is noise
    torch.testing.assert_close(found(TEXTS[:1])[0], values[0], atol=0.05, rtol=0)


def test_what_is_left_out_chooses_a_penalty_as_leaving_out_would() -> None:
    values = torch.randn(len(TEXTS), 5, generator=torch.Generator().manual_seed(1))  # nothing but noise
    assert WordRegression.fit(TEXTS, values).penalty == max(PENALTIES)


def test_a_word_never_seen_is_passed_over() -> None:
    found = WordRegression.fit(TEXTS, torch.arange(float(len(TEXTS)))[:, None])
    assert torch.equal(found(["sepia, ink lines"]), found(["sepia, ink glowing lines"]))
