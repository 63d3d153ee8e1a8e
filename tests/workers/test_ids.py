"""Row ids in bulk."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from workers import ids
from workers.artifacts import artifact_name

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(values=st.lists(texts, max_size=30))
def test_an_id_has_one_hash_whatever_carries_it(values: list[str]) -> None:
    plain = ids.hashes(values)
    assert plain.dtype == np.uint64
    chunks = pa.chunked_array([pa.array(values[:3], pa.string()), pa.array(values[3:], pa.string())])
    assert np.array_equal(plain, ids.hashes(chunks))
    assert np.array_equal(plain, ids.hashes(pa.array(values, pa.large_string())))


@given(values=st.lists(texts, max_size=30))
def test_repeated_finds_exactly_the_ids_that_occur_more_than_once(values: list[str]) -> None:
    twice = sorted({v for v in values if values.count(v) > 1})
    assert np.array_equal(ids.repeated(ids.hashes(values)), np.sort(ids.hashes(twice)))


@given(row_id=st.text(st.sampled_from("a/ü写🙂"), max_size=250))
def test_an_id_that_is_not_too_long_gives_one_file_name_that_a_disk_takes(row_id: str) -> None:
    if not ids.too_long([row_id]):
        folder, shard, name = artifact_name(row_id, "jpeg").split("/")
        assert (folder, len(shard)) == ("artifacts", 2)
        assert len(name) <= 255


def test_an_id_is_too_long_by_the_bytes_of_its_quoted_form() -> None:
    assert ids.too_long(["a" * 240, "é" * 40, "ß" * 41]) == ["ß" * 41]
