"""Pairs for translate jobs: made by the lab's edits, or found in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.lab.concepts import find_concept
from pipelines.lists import BadList
from pipelines.pairs import given_pairs, lab_pairs
from tests.pipelines.test_translate import png
from workers.media import decode_image


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i, (32, 24)))
    return folder


def test_every_concept_gets_the_same_pictures_under_its_own_edit(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("sepia, ink outlines\nwatercolour\nnoir, soft focus\n")
    folder = photographs(tmp_path / "photos", 5)
    catalog = lab_pairs(str(folder), str(tmp_path / "c.txt"), str(tmp_path / "out"), pictures=6, drawings=2, side=16)
    assert catalog.table["concept"].to_pylist() == ["sepia, ink outlines", "noir, soft focus"]
    assert "'watercolour' is no edit that the lab can draw" in catalog.skipped[0].why
    tables = [pq.read_table(uri) for uri in catalog.table["pairs_uri"].to_pylist()]
    assert tables[0]["input_image"].to_pylist() == tables[1]["input_image"].to_pylist()
    assert len(set(tables[0]["input_image"].to_pylist())) == 6
    for table, concept in zip(tables, catalog.table["concept"].to_pylist(), strict=True):
        source, target = (np.stack([decode_image(data).pixels for data in table[column].to_pylist()]) for column in table.column_names)
        images = torch.from_numpy(source).permute(0, 3, 1, 2).float() / 127.5 - 1
        made = find_concept(concept).apply(images).clamp(-1, 1).add(1).mul(127.5).round().byte()
        assert np.array_equal(made.permute(0, 2, 3, 1).numpy(), target)


def test_too_few_photographs_are_said(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 3)
    with pytest.raises(BadList, match="holds 3 pictures, 5 are wanted; set --pictures or --drawings"):
        lab_pairs(str(folder), "lab:1", str(tmp_path / "out"), pictures=5, drawings=0, side=16)
    with pytest.raises(BadList, match="write lab:held-out, or how many"):
        lab_pairs(None, "lab:many", str(tmp_path / "out"), pictures=8, side=16)


def test_a_folder_of_pairs_is_matched_by_name_and_what_has_no_partner_is_named(tmp_path: Path) -> None:
    for concept, count in (("grey hair", 9), ("few", 3)):
        for side in ("input", "target"):
            photographs(tmp_path / "pairs" / concept / side, count)
    (tmp_path / "pairs" / "grey hair" / "target" / "8.png").rename(tmp_path / "pairs" / "grey hair" / "target" / "other.png")
    (tmp_path / "pairs" / "grey hair" / "stray.png").write_bytes(png(0))
    catalog = given_pairs(str(tmp_path / "pairs"))
    (row,) = catalog.table.to_pylist()
    assert row["concept"] == "grey hair"
    assert [Path(uri).name for uri in row["input_image_uris"]] == [Path(uri).name for uri in row["target_image_uris"]]
    assert len(row["input_image_uris"]) == 8
    assert {skipped.path for skipped in catalog.skipped} == {"grey hair/stray.png", "grey hair/8", "grey hair/other", "few"}
