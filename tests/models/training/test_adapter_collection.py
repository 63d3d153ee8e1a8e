"""Adapters read back from a folder, and labels from a table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.lora_files import ForeignBase
from models.methods.weights2weights_files import adapter_bytes
from models.methods.weights2weights_layout import Layout
from models.training.adapter_collection import labels_of, read_people
from tests.models.tiny_bases import tiny_unet


@pytest.fixture
def layout() -> Layout:
    return Layout.of(tiny_unet(0), base_hash="a" * 64)


def write(folder: Path, layout: Layout, names: str, start: str = "0") -> torch.Tensor:
    weights = torch.randn(len(names), layout.size, generator=torch.Generator().manual_seed(0))
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in zip(names, weights, strict=True):
        data = adapter_bytes(layout, row, {"person": name, "start_seed": start})
        (folder / f"{name}.safetensors").write_bytes(data)
    return weights


def test_people_come_sorted_by_name_with_their_weights(tmp_path: Path, layout: Layout) -> None:
    weights = write(tmp_path, layout, "cab")
    people = read_people(tmp_path, layout)
    assert people.names == ("a", "b", "c")
    assert torch.equal(people.weights_mn, weights[[1, 2, 0]])


def test_what_makes_no_space_is_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ValueError, match="holds 0 adapters"):
        read_people(tmp_path, layout)
    write(tmp_path, layout, "abc")
    with pytest.raises(ForeignBase):
        read_people(tmp_path, Layout.of(tiny_unet(0), base_hash="b" * 64))
    write(tmp_path / "more", layout, "d", start="1")
    with pytest.raises(ValueError, match="2 different starts"):
        read_people(tmp_path, layout)
    write(tmp_path / "again", layout, "a")
    with pytest.raises(ValueError, match="second file of 'a'"):
        read_people(tmp_path, layout)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ValueError, match="not finished"):
        read_people(tmp_path, layout)


def test_labels_are_a_value_or_the_upper_half_of_a_number() -> None:
    table = {"a": {"hair": "long", "skin": "0.1"}, "b": {"hair": "", "skin": "0.9"}, "c": {"hair": "bald", "skin": "0.2"}}
    found = labels_of(["a", "b", "c", "d"], table, {"long hair": "hair=long", "dark skin": "skin"})
    assert torch.nan_to_num(found["long hair"], nan=0).tolist() == [1, 0, -1, 0]
    assert torch.nan_to_num(found["dark skin"], nan=0).tolist() == [-1, 1, -1, 0]
    with pytest.raises(ValueError, match="no column 'eyes'; it has hair, skin"):
        labels_of(["a"], table, {"blue eyes": "eyes=blue"})
