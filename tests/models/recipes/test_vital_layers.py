from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from models.catalog import ModelNotFound
from models.methods.stable_flow import StableFlow
from models.methods.vital_layers import FILE, VitalLayers
from models.nets.patch_features import PatchFeatures
from models.recipes import vital_layers
from models.recipes.vital_layers import PROGRESS, Config, choose, read_prompts, train
from models.training.loop import OtherTraining
from tests.models.tiny_bases import save, tiny_flow_base

CONFIG = Config(base="", k=3, n_vital=2, num_inference_steps=2, batch=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(tiny_flow_base(), tmp_path_factory.mktemp("bases") / "own")
    (folder / "card.json").write_text(json.dumps({"method": "text_to_image", "tier": "lab"}))
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nets") / "towers"
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, projection_dim=8
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture
def cfg(base: Path, towers: Path) -> Config:
    return replace(CONFIG, base=str(base), similarity=str(towers))


@pytest.fixture
def beside(base: Path) -> Iterator[Path]:
    yield base
    for name in (FILE, PROGRESS):
        (base / name).unlink(missing_ok=True)


def test_measured_beside_a_base_its_layers_are_used_from_then_on(cfg: Config, beside: Path) -> None:
    train(cfg, beside)
    measured = VitalLayers.read(beside / FILE)
    assert (measured.base, measured.similarity_net, len(measured.scores)) == ("own", "towers", 3)
    assert set(measured.chosen) == set(sorted(range(3), key=lambda layer: measured.scores[layer])[1:])
    assert min(measured.scores) > 0
    assert not (beside / PROGRESS).exists()
    method = StableFlow.load({"base": beside}, device="cpu")
    assert (method.settings.vital_layers, method.settings.true_cfg) == (measured.chosen, True)


def test_a_measurement_goes_on_where_it_stopped_and_ends_the_same(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(cfg, tmp_path / "unbroken")
    calls: list[int] = []
    plain = vital_layers.vitality

    def stopping(*args: PatchFeatures | Tensor) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(vital_layers, "vitality", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, tmp_path / "broken")
    with pytest.raises(OtherTraining, match="seed '0' -> '1'"):
        train(replace(cfg, seed=1), tmp_path / "broken")
    train(cfg, tmp_path / "broken")
    assert len(calls) == 4  # one layer before, two after the stop
    assert (tmp_path / "broken" / FILE).read_text() == (tmp_path / "unbroken" / FILE).read_text()


def test_layers_are_chosen_by_number_or_by_threshold() -> None:
    scores = [0.4, 0.1, 0.3]
    assert choose(CONFIG, scores) == (0, 2)
    assert choose(replace(CONFIG, vitality_threshold=0.05), scores) == (0, 1, 2)
    assert choose(replace(CONFIG, vitality_threshold=0.5), scores) == ()
    assert [len(choose(Config(base=""), [0.0] * layers)) for layers in (57, 10, 3, 1)] == [9, 4, 1, 1]


def test_prompts_come_from_a_file_the_drawn_world_or_our_own_list(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\n\n a cat \na fox\na cow\n")
    assert read_prompts(replace(CONFIG, prompts=str(file)), lab=False) == ["a dog", "a cat", "a fox"]
    with pytest.raises(ValueError, match="has 4 prompts, k is 5; give more prompts or set k=4"):
        read_prompts(replace(CONFIG, prompts=str(file), k=5), lab=False)
    assert len(set(read_prompts(Config(base=""), lab=False))) == 64
    assert len(set(read_prompts(Config(base=""), lab=True))) == 64


def test_equal_pictures_are_as_alike_as_can_be_to_either_network(towers: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dino = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14))
    dino.save_pretrained(tmp_path / "dinov2")
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for folder in (towers, tmp_path / "dinov2"):
        features = PatchFeatures.load(folder)
        assert torch.allclose(features.similarity(pictures, pictures), torch.ones(2), atol=1e-5)
        assert (features.similarity(pictures, pictures.flip(0)) < 0.999).all()


def test_a_full_size_base_is_not_measured_by_a_network_for_drawings(base: Path, tmp_path: Path) -> None:
    full = save(tiny_flow_base(), tmp_path / "full")
    with pytest.raises(ValueError, match="similarity=FOLDER names a local folder of DINOv2"):
        train(replace(CONFIG, base=str(full)), tmp_path)
    with pytest.raises(ModelNotFound, match="is a clip_text_model; patches are compared by DINOv2"):
        PatchFeatures.load(base / "text_encoder")
    with pytest.raises(ModelNotFound, match="holds no vision network"):
        PatchFeatures.load(tmp_path)
