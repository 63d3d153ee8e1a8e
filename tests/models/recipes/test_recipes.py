"""Recipes resume as if never interrupted, export what a job can load, and are told apart by name."""

from __future__ import annotations

import importlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from models.methods.instant_restore import InstantRestore
from models.nets.identity import IdentityNet
from models.recipes import RECIPES, identity, instant_restore
from models.training.loop import OtherTraining
from tests.models.training.test_loop_and_photographs import write_set

TINY = instant_restore.Config(
    data="",
    steps=4,
    people=2,
    damages=("strong", "other"),
    drawn_people=2,
    drawn_views=2,
    channels=(16, 16),
    heads=2,
    side=32,
    save_every=2,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, count in (("faces_ukparl", 4), ("faces_lab", 3)):
        write_set(tmp_path / "data" / name, {f"{name}{'x' * i}": 1 + i % 2 for i in range(2 * count)})
    monkeypatch.setattr(instant_restore, "HELD_OUT", {"faces_ukparl": (1, 1), "faces_lab": (1, 0)})
    return str(tmp_path / "data")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["average"]


def test_a_resumed_training_equals_an_unbroken_one(data: str, tmp_path: Path) -> None:
    cfg = replace(TINY, data=data)
    instant_restore.train(cfg, tmp_path / "unbroken")
    instant_restore.train(replace(cfg, minutes=0.0), tmp_path / "broken")  # one step, then out of time
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["step"] == 1
    instant_restore.train(cfg, tmp_path / "broken")
    unbroken, resumed = weights(tmp_path / "unbroken"), weights(tmp_path / "broken")
    assert unbroken.keys() == resumed.keys()
    for name, value in unbroken.items():
        assert_close(resumed[name], value, atol=0, rtol=0)


def test_the_exported_model_loads_by_its_card_and_credits_the_photographs(data: str, tmp_path: Path) -> None:
    instant_restore.train(replace(TINY, data=data, steps=1), tmp_path)
    card = json.loads((tmp_path / "instant-restore" / "card.json").read_text())
    assert card["method"] == "instant_restore"
    assert card["samples"] == 4
    assert any("UK Parliament" in credit for credit in card["attribution"])
    assert data not in json.dumps(card)
    method = InstantRestore.load({"folder": tmp_path / "instant-restore"}, device="cpu")
    assert (method.settings.noise, method.settings.freeu, method.settings.image_size) == (0.0, False, 32)


def test_another_configuration_does_not_go_on_from_a_checkpoint(data: str, tmp_path: Path) -> None:
    instant_restore.train(replace(TINY, data=data, steps=1), tmp_path)
    with pytest.raises(OtherTraining, match="lr"):
        instant_restore.train(replace(TINY, data=data, lr=1.0), tmp_path)


def test_the_untrained_network_leaves_its_input_as_it_is() -> None:
    model = instant_restore.new_model(TINY)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    restored = instant_restore.restore(model.networks(TINY.unshuffle), images, [[images[1]], []], instant_restore.settings(TINY))
    assert_close(restored, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["match", "landmark", "none"])
def test_each_attention_loss_trains_and_all_but_none_watch_the_attention(data: str, loss: str) -> None:
    cfg = replace(TINY, data=data, attention_loss=loss, references=(0.0, 1.0, 0.0))
    model = instant_restore.new_model(cfg)
    batch = instant_restore.draw_batch(cfg, instant_restore.read_pools(cfg), 0)
    values = instant_restore.train_step(model, torch.optim.AdamW(model.parameters()), batch, cfg, 0)
    assert ("attention" in values) == (loss != "none")
    assert ("mass" in values) == (loss == "match")
    assert all(torch.tensor(list(values.values())).isfinite())


def test_people_held_out_are_in_no_batch(data: str) -> None:
    pools = instant_restore.read_pools(replace(TINY, data=data))
    trained = {person.name for person in pools.everybody}
    for name in ("faces_ukparl", "faces_lab"):
        split = instant_restore.read_split(data, name)
        assert not trained & {person.name for person in split.test + split.validation}


def test_a_warm_start_takes_the_averaged_weights_and_redraws_what_it_is_told(data: str, tmp_path: Path) -> None:
    instant_restore.train(replace(TINY, data=data, steps=1), tmp_path)
    start = str(tmp_path / "checkpoint.pt")
    kept = instant_restore.new_model(replace(TINY, warm_start=start, reference_scale=None)).state_dict()
    redrawn = instant_restore.new_model(replace(TINY, warm_start=start, reference_scale=0.5)).state_dict()
    before = weights(tmp_path)
    changed = {name for name, value in before.items() if not torch.equal(redrawn[name], value)}
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    assert changed
    assert all("attn1.to_out.0.weight" in name for name in changed)


def test_the_embedder_trains_and_loads_again(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "measure", lambda net: {"rank_1_of_200": 0.0})
    cfg = identity.Config(data=data, steps=2, people=4, drawn_people=3, drawn_views=2, drawn=0.5)
    identity.train(cfg, tmp_path)
    net = IdentityNet.load(tmp_path / "identity")
    embedded = net.embed(torch.zeros(2, 3, 96, 96))
    assert_close(embedded.norm(dim=1), torch.ones(2), atol=1e-4, rtol=0)


def test_contrast_is_small_when_partners_are_nearest() -> None:
    vectors = torch.eye(4)
    assert identity.contrast(vectors, vectors, 0.08) < 0.01 < identity.contrast(vectors, vectors.roll(1, 0), 0.08)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_has_a_config_and_a_train(name: str) -> None:
    module = importlib.import_module(RECIPES[name])
    assert "seed" in {field.name for field in fields(module.Config)}
    assert callable(module.train)
