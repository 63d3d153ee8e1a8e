"""Adapters that stock tools load, people's files as they come, and the authors' space, of which nothing but tensors is unpickled."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from models.checkpoints import UnreadableCheckpoint
from models.lora_files import ForeignBase, lora_bytes
from models.low_rank import attached
from models.methods.weights2weights_files import (
    adapter_bytes,
    coefficient_bytes,
    export_peft,
    load_authors_space,
    load_space,
    read_start,
)
from models.methods.weights2weights_layout import Layout, LayoutMismatch
from models.methods.weights2weights_space import Space
from tests.models.methods.tiny_space import tiny_space
from tests.models.tiny_bases import TEXT_WIDTH, tiny_unet, tiny_unet_base


@pytest.fixture(scope="module")
def space() -> Space:
    return tiny_space(tiny_unet_base())


@pytest.fixture(scope="module")
def person(space: Space) -> Tensor:
    return space.unproject(space.proj_std_k[None])[0]


def predict(unet: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_BChw = torch.randn(2, 4, 8, 8, generator=generator)
    states_BTC = torch.randn(2, 5, TEXT_WIDTH, generator=generator)
    with torch.no_grad():
        return unet(x_BChw, 400, encoder_hidden_states=states_BTC, return_dict=False)[0]


def through_ours(space: Space, person: Tensor) -> Tensor:
    unet = tiny_unet(0).eval()
    with attached(unet, space.layout.adapters(person[None]), torch.zeros(2, dtype=torch.long)):
        return predict(unet)


def test_stock_peft_loads_what_was_written_and_gives_the_same(space: Space, person: Tensor, tmp_path: Path) -> None:
    export_peft(tmp_path, space.layout, person)
    unet = tiny_unet(0).eval()
    plain = predict(unet)
    loaded = predict(PeftModel.from_pretrained(unet, str(tmp_path)))  # pyright: ignore[reportArgumentType]
    assert (loaded - through_ours(space, person)).abs().max() < 1e-6
    assert (loaded - plain).abs().max() > 1e-3


def test_stock_diffusers_loads_the_file_alone_with_its_scale(space: Space, person: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "person.safetensors"
    file.write_bytes(adapter_bytes(space.layout, person, {"person_id": "ada"}))
    unet = tiny_unet(0).eval()
    unet.load_lora_adapter(str(tmp_path), weight_name=file.name, prefix="base_model.model")
    assert (predict(unet) - through_ours(space, person)).abs().max() < 1e-6


def test_every_way_of_writing_a_person_is_read(space: Space, person: Tensor) -> None:
    def saved(content: object) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    tensors = space.layout.unflatten(person)
    authors = {key.replace(".weight", ".identity1.weight"): tensor for key, tensor in tensors.items()}
    for data in (adapter_bytes(space.layout, person, {}), lora_bytes(tensors, {}), saved(authors)):
        start = read_start(data, space.layout)
        assert start.weights_n is not None
        assert torch.equal(start.weights_n, person)
    p_k = torch.linspace(-1, 1, 5)
    for data in (coefficient_bytes(space.layout, p_k, {}), saved(p_k[None])):
        start = read_start(data, space.layout)
        assert start.weights_n is None
        assert start.coefficients_k is not None
        assert torch.equal(start.coefficients_k, p_k)


def test_a_file_of_another_base_scale_or_kind_is_refused(space: Space, person: Tensor) -> None:
    theirs = adapter_bytes(replace(space.layout, base_hash="another"), person, {})
    with pytest.raises(ForeignBase, match="this file was made for the base another, this one is tiny"):
        read_start(theirs, space.layout)
    with pytest.raises(LayoutMismatch, match="made for alpha 8 at rank 1; this base takes 27 x rank"):
        read_start(adapter_bytes(replace(space.layout, alpha=8.0), person, {}), space.layout)
    with pytest.raises(LayoutMismatch, match="laid out for another base"):
        read_start(lora_bytes({"down.lora_A": torch.zeros(1, 3)}, {}), space.layout)
    with pytest.raises(UnreadableCheckpoint, match="no complete safetensors file"):
        read_start(b"no weights at all", space.layout)
    cut_off = io.BytesIO()
    torch.save(torch.zeros(2), cut_off)
    with pytest.raises(UnreadableCheckpoint, match="can't be read as tensors alone"):
        read_start(cut_off.getvalue()[:100], space.layout)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


def authors_folder(folder: Path, space: Space) -> Path:
    folder.mkdir()
    dimensions = {e.key.replace(".weight", ".identity1.weight"): ((e.numel,), torch.Size(e.shape)) for e in reversed(space.layout.entries)}
    std_n = space.std_n.clone()
    std_n[::50] *= -1
    p_mk = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)) * space.proj_std_k[:6]
    for name, content in {
        "V": space.V_nk, "mean": space.mean_n, "std": std_n, "weight_dimensions": dimensions, "proj_1000pc": p_mk, "identity_df": Evil(),
    }.items():  # fmt: skip
        torch.save(content, folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def test_the_authors_space_is_read_with_its_signs_and_without_its_labels(space: Space, here: Path) -> None:
    read = load_space(authors_folder(here / "files", space), space.layout)
    assert torch.equal(read.V_nk, space.V_nk)
    assert torch.equal(read.std_n.abs(), space.std_n)
    assert int((read.std_n < 0).sum()) == len(space.std_n[::50])
    p_1k = space.proj_std_k[None]
    assert (read.project(read.unproject(p_1k)) - p_1k).norm() / p_1k.norm() < 1e-4
    drawn = read.sample([torch.Generator().manual_seed(1)])
    assert bool((drawn[:, :6] != 0).all())
    assert torch.equal(drawn[:, 6:], torch.zeros(1, space.components - 6))
    assert load_authors_space(here / "files", space.layout, n_components=4).components == 4


def test_nothing_but_tensors_is_unpickled(space: Space, here: Path) -> None:
    folder = authors_folder(here / "files", space)
    torch.save(Evil(), folder / "mean.pt")
    with pytest.raises(UnreadableCheckpoint, match=r"mean\.pt can't be read as tensors alone"):
        load_space(folder, space.layout)
    with pytest.raises(UnreadableCheckpoint, match="can't be read as tensors alone"):
        read_start((folder / "identity_df.pt").read_bytes(), space.layout)


def test_a_space_of_another_base_or_no_space_is_refused(space: Space, tmp_path: Path) -> None:
    folder = authors_folder(tmp_path / "files", space)
    smaller = Layout.of(tiny_unet(0), targets=["to_q"])
    with pytest.raises(LayoutMismatch, match="laid out for another base"):
        load_space(folder, smaller)
    space.save(tmp_path / "ours")
    assert load_space(tmp_path / "ours", space.layout, n_components=3).components == 3
    with pytest.raises(ForeignBase, match="was made for the base tiny, this one is other"):
        load_space(tmp_path / "ours", replace(space.layout, base_hash="other"))
    (folder / "std.pt").unlink()
    with pytest.raises(UnreadableCheckpoint, match=r"neither space\.safetensors nor all of the authors' files \(std\.pt missing\)"):
        load_space(folder, space.layout)
