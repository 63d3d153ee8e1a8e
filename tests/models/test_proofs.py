from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from models import proofs
from models.methods import METHODS
from models.proofs import CLAIMS, GOLDEN, Comparison, GoldenFileError, claim, compare


def test_every_proof_is_one_of_a_method_and_can_be_found() -> None:
    for registry in (GOLDEN, CLAIMS):
        assert registry.keys() <= METHODS.keys()
        for place in registry.values():
            module, function = place.split(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_a_difference_above_tolerance_or_not_a_number_does_not_hold() -> None:
    assert Comparison("x", 1e-5, 1e-5).ok
    assert not Comparison("x", 1.1e-5, 1e-5).ok
    assert not compare("x", torch.tensor([1.0, float("nan")]), torch.ones(2), 1e-5).ok
    assert compare("x", torch.tensor([1.0, 3.0]), torch.ones(2), 1e-5).max_abs == 2
    with pytest.raises(GoldenFileError, match=r"x has shape \(3,\) in the file; these weights and inputs give \(2,\)"):
        compare("x", torch.ones(2), torch.ones(3), 1e-5)


def test_a_claim_is_measured_by_the_function_that_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setitem(proofs.CLAIMS, "toy", f"{__name__}:toy_claim")
    assert claim("toy", tmp_path, None, said.append)
    assert said == [f"measured into {tmp_path}"]
    with pytest.raises(ValueError, match="no lab proof for 'tyo'"):
        claim("tyo", tmp_path, None, said.append)


def toy_claim(output: Path, data: Path | None, say: object) -> bool:
    assert callable(say)
    say(f"measured into {output}")
    return data is None
