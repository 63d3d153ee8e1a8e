"""Drawn people by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.lab.crowd import attributes, person, person_id, pictures, read_people, write_people


def test_a_person_is_always_the_same_and_their_pictures_differ() -> None:
    first, again = pictures(3, 2), pictures(3, 2)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.asarray(first[0]), np.asarray(first[1]))
    assert np.array_equal(np.asarray(pictures(3, 1, first=1)[0]), np.asarray(first[1]))
    assert person(3) == person(3) != person(4)


def test_people_are_written_as_folders_with_a_table(tmp_path: Path) -> None:
    write_people(tmp_path, 2, 3, first=5)
    assert sorted(p.relative_to(tmp_path / "photos").as_posix() for p in tmp_path.rglob("*.png"))[:2] == [
        "person-00005/01.png",
        "person-00005/02.png",
    ]
    table = read_people(tmp_path / "people.csv")
    assert set(table) == {person_id(5), person_id(6)}
    assert table[person_id(5)]["hair"] == attributes(person(5))["hair"]
    (tmp_path / "other.csv").write_text("name\nanna\n")
    with pytest.raises(ValueError, match="no table of people"):
        read_people(tmp_path / "other.csv")


def test_the_bald_have_no_hair_colour() -> None:
    bald = next(number for number in range(100) if person(number).hair == "bald")
    assert attributes(person(bald))["hair_colour"] == ""
