"""`calotype train`: settings come as text and reach a recipe as what it declares them to be, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.recipes import identity_space, weight_denoiser
from orchestration.job import JobFileError
from orchestration.prove import train_recipe


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that recipes were called with."""
    found = list[Any]()
    for module in (identity_space, weight_denoiser):
        monkeypatch.setattr(module, "train", lambda cfg, _out: found.append(cfg))
    return found


def trained(recipe: str, *sets: str, data: Path | None = None) -> None:
    train_recipe(recipe, Path("out"), data, sets, lambda _said: None)


def test_settings_are_what_the_recipe_declares(given: list[Any]) -> None:
    trained("identity-space", "table=people.csv", "held_out=5", data=Path("job"))
    assert given[0].table == Path("people.csv")
    assert given[0].data == Path("job")
    assert given[0].held_out == 5
    trained("weight_denoiser", "lr=1e-3", "widths=[8, 8, 16]", "minutes=null")
    assert given[1].lr == 1e-3
    assert given[1].widths == (8, 8, 16)
    assert given[1].minutes is None


@pytest.mark.parametrize(
    ("recipe", "sets", "said"),
    [
        ("identity-space", [], "data: Field required"),
        ("weight-denoiser", ["steps=many"], "steps: Input should be a valid integer"),
        ("weight-denoiser", ["stepps=3"], "weight-denoiser knows .*steps"),
    ],
)
def test_what_does_not_fit_is_named(given: list[Any], recipe: str, sets: list[str], said: str) -> None:
    with pytest.raises(JobFileError, match=said):
        trained(recipe, *sets)
    assert not given
