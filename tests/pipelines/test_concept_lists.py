"""Lists of concepts: stable ids, and what is twice or empty is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.concept_lists import concept_manifest
from pipelines.lists import BadList


def test_a_line_is_a_concept_and_its_id_stays_when_others_come(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("sepia, ink outlines\nnoir\n")
    (tmp_path / "more.txt").write_text("golden, fog\nnoir\nsepia,  ink outlines\n")
    few, more = (concept_manifest(str(tmp_path / name)).table.to_pylist() for name in ("few.txt", "more.txt"))
    assert [row["concept"] for row in few] == ["sepia, ink outlines", "noir"]
    assert few[0]["row_id"].startswith("sepia-ink-outlines-")
    assert {row["row_id"]: row["concept"] for row in few}.items() <= {row["row_id"]: row["concept"] for row in more}.items()


def test_what_is_there_twice_or_empty_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("noir\n\nNoir \nink\n")
    catalog = concept_manifest(str(tmp_path / "c.txt"))
    assert catalog.table["concept"].to_pylist() == ["noir", "ink"]
    assert [(Path(where).name, why) for where, why in catalog.skipped] == [
        ("c.txt, line 2", "is empty"),
        ("c.txt, line 3", "'Noir' is on line 1 already"),
    ]


def test_csv_and_parquet_may_give_seeds_and_one_concept_with_two_seeds_is_two_rows(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('concept,seed\n"sepia, ink",1\n"sepia, ink",2\nnoir,\n')
    pq.write_table(pa.table({"concept": ["sepia, ink", "sepia, ink", "noir"], "seed": [1, 2, None]}), tmp_path / "c.parquet")
    one, other = (concept_manifest(str(tmp_path / name)).table for name in ("c.csv", "c.parquet"))
    assert one.equals(other)
    assert len(set(one["row_id"].to_pylist())) == 3


def test_files_that_are_no_lists_say_what_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("text_of_it\nnoir\n")
    with pytest.raises(BadList, match="has no concept or text"):
        concept_manifest(str(tmp_path / "c.csv"))
    with pytest.raises(BadList, match="there is no file"):
        concept_manifest(str(tmp_path / "nowhere.txt"))
    with pytest.raises(BadList, match=r"concepts are a .txt file with one a line"):
        concept_manifest(str(tmp_path / "c.doc"))
