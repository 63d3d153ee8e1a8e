from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import catalog
from models.catalog import ModelNotFound, lab_models, lab_path, model_revision, read_card


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalog, "WEIGHTS", tmp_path)
    for name in ("instant-restore", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps({"method": name.replace("-", "_"), "tier": "lab", "minutes": 3}))
    (tmp_path / "half-written").mkdir()
    return tmp_path


def test_a_lab_model_goes_by_each_of_its_spellings(weights: Path) -> None:
    for name in ("lab/instant-restore", "instant-restore", "instant_restore", "lab/instant_restore"):
        assert lab_path(name) == weights / "instant-restore"


def test_a_model_that_does_not_exist_is_answered_with_those_that_do(weights: Path) -> None:
    for name in ("lab/instant-restroe", "lab/half-written", "../instant-restore"):
        with pytest.raises(ModelNotFound, match="lab/instant-restore, lab/other"):
            lab_path(name)


def test_only_folders_with_a_card_are_models(weights: Path) -> None:
    assert [folder.name for folder in lab_models()] == ["instant-restore", "other"]
    with pytest.raises(ModelNotFound, match=r"has no card\.json"):
        read_card(weights / "half-written")


def test_a_card_says_name_method_and_facts(weights: Path) -> None:
    card = read_card(weights / "instant-restore")
    assert (card.name, card.method, card.tier, card.facts["minutes"]) == ("lab/instant-restore", "instant_restore", "lab", 3)
    (weights / "other" / "card.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="at least method and tier"):
        read_card(weights / "other")


def test_the_revision_follows_content_and_names_and_nothing_else(tmp_path: Path) -> None:
    folder, copy = tmp_path / "a", tmp_path / "b"
    for path in (folder, copy):
        (path / "unet").mkdir(parents=True)
        (path / "unet" / "w").write_bytes(b"1")
        (path / "card.json").write_bytes(b"{}")
    first = model_revision(folder)
    assert model_revision(copy) == first
    (copy / ".cache").write_bytes(b"x")
    (copy / "README.md").write_text("for readers")
    assert model_revision(copy) == first
    (folder / "unet" / "w").write_bytes(b"2")
    assert model_revision(folder) != first
    (copy / "unet" / "w").rename(copy / "unet" / "v")
    assert model_revision(copy) != first
    assert model_revision(folder / "card.json") != model_revision(folder)
    with pytest.raises(ModelNotFound, match="holds no model files"):
        model_revision(tmp_path / "absent")


def test_knowing_models_loads_no_torch() -> None:
    code = "import sys, models.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
