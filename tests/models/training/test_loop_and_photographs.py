"""Checkpoints, randomness by step, and people held apart."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from models.lab.people import View, random_identity
from models.lab.portraits import draw_portrait
from models.training.loop import Averaged, OtherTraining, keyed, learning_rate, load_checkpoint, save_checkpoint
from models.training.photographs import NoPhotographs, Person, drawn_person, read_people, split_people


@dataclass(frozen=True)
class Config:
    steps: int = 10
    lr: float = 0.1


def test_a_step_always_draws_the_same_numbers_and_other_steps_others() -> None:
    draws = [
        torch.rand(3, generator=keyed(seed, step, purpose)) for seed, step, purpose in [(0, 1, ""), (0, 2, ""), (1, 1, ""), (0, 1, "x")]
    ]
    assert_close(draws[0], torch.rand(3, generator=keyed(0, 1)), atol=0, rtol=0)
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_a_checkpoint_comes_back_and_refuses_another_configuration(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoint.pt"
    assert load_checkpoint(path, Config()) is None
    save_checkpoint(path, {"step": 3, "x": torch.ones(2)}, Config())
    state = load_checkpoint(path, Config())
    assert state is not None
    assert state["step"] == 3
    assert load_checkpoint(path, Config(steps=20), may_differ=("steps",)) is not None
    with pytest.raises(OtherTraining, match=r"lr '0.1' -> '0.2'"):
        load_checkpoint(path, replace(Config(), lr=0.2))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, warmup=10, decay=0.2) for step in (0, 9, 50, 80, 90, 100)]
    assert_close(torch.tensor(rates), torch.tensor([0.1, 1.0, 1.0, 1.0, 0.5, 0.0]))


def test_the_average_follows_a_constant_and_lags_behind_a_change() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    average = Averaged(module, keep=0.9)
    module.weight.data.fill_(2.0)
    average.update(module, step=1000)
    average.copy_to(module)
    assert_close(module.weight.data, torch.tensor([[1.1]]))


def write_set(folder: Path, photographs: dict[str, int]) -> None:
    (folder / "files").mkdir(parents=True)
    rows = []
    for name, count in photographs.items():
        identity = random_identity(torch.Generator().manual_seed(len(name)))
        for i in range(count):
            portrait = draw_portrait(identity, View(yaw=0.2 * i), 64)
            portrait.image.save(folder / "files" / f"{name}_{i}.png")
            points = json.dumps(portrait.landmarks.flatten().tolist())
            rows.append({"file": f"files/{name}_{i}.png", "subject_id": name, "landmarks5": points})
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "subject_id", "landmarks5"])
        writer.writeheader()
        writer.writerows(rows)


def test_photographs_are_gathered_by_person_and_resized_with_their_landmarks(tmp_path: Path) -> None:
    write_set(tmp_path, {"ann": 2, "bob": 1})
    people = read_people(tmp_path, side=32)
    assert [(person.name, tuple(person.images.shape)) for person in people] == [("ann", (2, 3, 32, 32)), ("bob", (1, 3, 32, 32))]
    assert_close(people[0].landmarks[0, 0], torch.tensor([0.365, 0.45]) * 32)


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoPhotographs, match="pass --data DIR"):
        read_people(tmp_path / "faces_ukparl")


def nobody(name: str, photographs: int) -> Person:
    return Person(name, torch.zeros(photographs, 3, 8, 8, dtype=torch.uint8), torch.zeros(photographs, 5, 2))


def test_nobody_is_in_two_parts_and_the_split_depends_on_names_alone() -> None:
    people = [nobody(f"p{i}", 1 + i % 2) for i in range(40)] + [nobody("many", 4)]
    split = split_people(people, test=5, validation=3)
    parts = [{person.name for person in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 41
    assert (len(parts[2]), len(parts[1])) == (5, 3)
    assert "many" in parts[2]
    assert all(len(person.images) > 1 for person in split.test + split.validation)
    again = split_people(people[::-1], test=5, validation=3)
    assert [person.name for person in again.test] == [person.name for person in split.test]


def test_too_few_people_to_hold_out_is_an_error_that_counts_them() -> None:
    with pytest.raises(ValueError, match="only 1 have two photographs"):
        split_people([nobody("a", 2), nobody("b", 1)], test=2, validation=0)


def test_a_drawn_person_is_the_same_each_time_and_shows_several_views() -> None:
    one, again = drawn_person(7, 2, side=64), drawn_person(7, 2, side=64)
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images[0], one.images[1])
