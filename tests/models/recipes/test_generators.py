"""The recipes of the drawn world: resumed equals unbroken, and what they write loads by diffusers' and transformers' own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, PreTrainedTokenizerFast

from models.nets.reader import Reader
from models.recipes import RECIPES, autoencoder, mmdit, reader, towers, unet
from models.training.drawings import drawings

PICTURES = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an autoencoder and towers have been trained for a moment, and pictures been drawn."""
    folder = tmp_path_factory.mktemp("world")
    cache = str(folder / "cache")
    common: dict[str, Any] = {"pictures": PICTURES, "cache": cache, "batch": 4, "steps": 2}
    measured = 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "MEASURED", measured)
        patch.setattr(towers, "HELD_OUT", 8)
        autoencoder.train(autoencoder.Config(latent_channels=4, channels=(8, 16, 16), **common), folder)
        (folder / "checkpoint.pt").unlink()
        towers.train(towers.Config(width=24, projection=16, **common), folder)
        (folder / "checkpoint.pt").unlink()
    return folder


def configured(name: str, folder: Path) -> Any:
    common: dict[str, Any] = {"pictures": PICTURES, "cache": str(folder / "cache"), "batch": 4, "steps": 4, "save_every": 2}
    if name == "autoencoder":
        return autoencoder.Config(latent_channels=4, channels=(8, 16, 16), **common)
    if name == "towers":
        return towers.Config(width=24, projection=16, **common)
    if name == "reader":
        return reader.Config(read=30, **common)
    found: dict[str, Any] = {"autoencoder": str(folder / "autoencoder")}
    if name == "unet":
        return unet.Config(text=str(folder / "towers"), channels=(16, 32), head_dim=16, **common, **found)
    return mmdit.Config(text=str(folder / "towers"), double=1, single=1, heads=1, head_dim=16, axes=(4, 6, 6), **common, **found)


@pytest.mark.parametrize("name", ["autoencoder", "towers", "reader", "unet", "mmdit"])
def test_a_resumed_training_equals_an_unbroken_one(name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "MEASURED", 20)
    monkeypatch.setattr(reader, "MEASURED", 20)
    monkeypatch.setattr(towers, "HELD_OUT", 8)
    recipe, cfg = import_module(RECIPES[name]), configured(name, trained)
    recipe.train(cfg, tmp_path / "unbroken")
    recipe.train(replace(cfg, minutes=0.0), tmp_path / "broken")
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["step"] == 1
    recipe.train(cfg, tmp_path / "broken")
    unbroken, resumed = (torch.load(tmp_path / way / "checkpoint.pt", weights_only=True)["average"] for way in ("unbroken", "broken"))
    for key, value in unbroken.items():
        assert_close(resumed[key], value, atol=0, rtol=0)
    card = json.loads((tmp_path / "unbroken" / name / "card.json").read_text())
    assert card["tier"] == "lab"
    assert card["steps"] == 4
    assert str(tmp_path) not in json.dumps(card)


def test_what_is_written_loads_by_the_libraries_own_classes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet.train(replace(configured("unet", trained), steps=1), tmp_path / "u")
    mmdit.train(replace(configured("mmdit", trained), steps=1), tmp_path / "m")
    assert UNet2DConditionModel.from_pretrained(tmp_path / "u" / "unet" / "unet").config["in_channels"] == 4
    assert FluxTransformer2DModel.from_pretrained(tmp_path / "m" / "mmdit" / "transformer").config["in_channels"] == 16
    for folder in (tmp_path / "u" / "unet", tmp_path / "m" / "mmdit"):
        assert CLIPTextModel.from_pretrained(folder / "text_encoder").config.hidden_size == 24
        assert PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").pad_token == "<end>"
    assert CLIPVisionModelWithProjection.from_pretrained(trained / "towers" / "image_encoder").config.projection_dim == 16


def test_a_saved_reader_reads_as_it_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Reader((8, 16, 16)).half().float().eval()
    net.save(tmp_path / "reader", {})
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for what in ("thing", "scene", "portrait"):
        assert Reader.load(tmp_path / "reader").read(images, what) == net.read(images, what)


def test_drawings_are_drawn_once(tmp_path: Path) -> None:
    first = drawings(3, tmp_path)
    before = [file.stat().st_mtime_ns for file in tmp_path.iterdir()]
    assert torch.equal(first, drawings(3, tmp_path))
    assert [file.stat().st_mtime_ns for file in tmp_path.iterdir()] == before
    assert torch.equal(drawings(2, tmp_path, first=1), first[1:])
