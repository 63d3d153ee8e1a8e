"""What the lab proof of Bounded Attention measures, on drawings whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.catalog import lab_path
from models.lab.generation_scores import pixels
from models.lab.layout_scores import Arm, Asked, asked, attributes, mask_agreement, score
from models.lab.proof_bounded_attention import leakage_gates, single_gate
from models.lab.scenes import Scene
from models.lab.world import draw
from models.methods.bounded_attention import Result
from models.nets.reader import Reader


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(lab_path("reader"))


def drawn(prompts: list[Asked]) -> torch.Tensor:
    return torch.stack([pixels(one.drawing.image) for one in prompts])


def swapped(one: Asked, number: int) -> torch.Tensor:
    """The scene with its first two objects' colours exchanged."""
    first, second, *others = one.things
    things = (replace(first, colour=second.colour), replace(second, colour=first.colour), *others)
    assert isinstance(one.drawing.subject, Scene)
    return pixels(draw(replace(one.drawing.subject, things=things), number).image)


def test_prompts_ask_for_one_shape_in_several_colours_and_name_no_places() -> None:
    prompts = asked(0, 8)
    assert [len(one.things) for one in prompts].count(3) == 2
    for one in prompts:
        assert len({thing.shape for thing in one.things}) == 1
        assert len({thing.colour for thing in one.things}) == len(one.things)
        assert not {"left", "right", "top", "bottom", "middle"} & set(one.prompt.split())
        assert [subject.phrase in one.prompt for subject in one.request(0).subjects] == [True] * len(one.things)
        assert one.request(0, layout=False).subjects == ()
    assert prompts[0].prompt == asked(0, 1)[0].prompt != asked(1, 1)[0].prompt


def test_drawings_are_read_as_they_were_drawn_and_exchanged_colours_as_leakage(reader: Reader) -> None:
    prompts = asked(0, 8)
    right = score(reader, drawn(prompts), prompts)
    assert right["object"].mean() > 0.95
    assert right["leakage"].mean() < 0.02
    numbers = [1_000_000 + at for at in range(8)]
    wrong = score(reader, torch.stack([swapped(one, number) for one, number in zip(prompts, numbers, strict=True)]), prompts)
    assert wrong["leakage"].mean() > 0.85
    assert wrong["colour"].mean() < 0.15
    assert wrong["shape"].mean() > 0.95
    empty = score(reader, torch.zeros(8, 3, 32, 32), prompts)
    assert empty["present"].mean() < 0.3
    assert empty["scene"].max() == 0


def test_seeds_of_a_prompt_are_averaged(reader: Reader) -> None:
    prompts = asked(0, 2)
    pictures = drawn(prompts).repeat_interleave(2, dim=0)
    pictures[1] = 0
    found = score(reader, pictures, prompts, seeds=2)
    assert found["scene"].tolist() == [0.5, 1.0]


def test_one_subjects_attributes_are_read_wherever_it_is(reader: Reader) -> None:
    prompts = asked(0, 6, single=True)
    assert attributes(reader, drawn(prompts), prompts).mean() > 0.95
    moved = drawn(prompts).roll(4, dims=-1)
    assert attributes(reader, moved, prompts).mean() > 0.6
    assert attributes(reader, drawn([*prompts[1:], prompts[0]]), prompts).mean() < 0.7


def test_masks_are_compared_with_the_drawn_objects() -> None:
    prompts = asked(0, 2)
    exact = [Result(torch.zeros(3, 32, 32), None, 0, [], torch.from_numpy(one.drawing.masks)) for one in prompts]
    refined, boxes = mask_agreement(exact, prompts, 1)
    assert refined.tolist() == [1.0, 1.0]
    assert (boxes < 1).all()
    assert (boxes > 0.3).all()


def arms(bounded: float, other: float) -> dict[str, Arm]:
    """Three arms of ten prompts with the given leakage, and what is left of it as right objects."""
    jitter = torch.linspace(-0.01, 0.01, 10)

    def arm(leakage: float) -> Arm:
        return Arm([], torch.zeros(0), 0.0, {"leakage": leakage + jitter, "object": 1 - leakage + jitter})

    return {"plain sampling": arm(other), "guidance only": arm(other), "bounded": arm(bounded)}


def test_gates_hold_only_where_the_method_is_better_and_there_is_room() -> None:
    assert [gate.holds for gate in leakage_gates(arms(0.1, 0.3))] == [True, True, True, True]
    assert [gate.holds for gate in leakage_gates(arms(0.3, 0.3))] == [True, False, False, False]
    assert [gate.holds for gate in leakage_gates(arms(0.01, 0.04))] == [False, True, True, True]
    same = torch.full((10,), 0.9)
    assert single_gate({"plain sampling": same, "bounded": same - 0.02}).holds
    assert not single_gate({"plain sampling": same, "bounded": same - 0.03}).holds
