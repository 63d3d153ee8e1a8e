"""The lab's edits: every one has a name that can be read back, changes what it is given, and is the same for any company."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.testing import assert_close

from models.lab.concepts import (
    EDGES,
    HELD_OUT,
    LIGHTS,
    TEXTURES,
    TONES,
    Concept,
    UnknownConcept,
    all_concepts,
    find_concept,
    held_out_concepts,
    training_concepts,
    words,
)
from models.training.drawings import to_unit
from models.training.loop import keyed
from models.training.pictures import drawn_portraits

ONE_OF_EACH_PART = [
    *(Concept(tone, "soft", "plain", "even") for tone in TONES),
    *(Concept("golden", edge, "plain", "even") for edge in EDGES),
    *(Concept("golden", "soft", texture, "even") for texture in TEXTURES),
    *(Concept("golden", "soft", "plain", light) for light in LIGHTS),
]


@pytest.fixture(scope="module")
def portraits() -> torch.Tensor:
    return to_unit(drawn_portraits(3, 32))


def test_no_two_edits_share_a_text_and_each_is_found_by_any_of_its_own() -> None:
    assert len({concept.text for concept in all_concepts()}) == len(all_concepts()) >= 1_100
    for number, concept in enumerate(all_concepts()):
        assert find_concept(concept.text) == concept
        assert find_concept(concept.paraphrase(keyed(0, number))) == concept


def test_each_way_to_say_a_part_says_no_other_part() -> None:
    ways = [way for names in (TONES, EDGES, TEXTURES, LIGHTS) for options in names.values() for way in options if way]
    assert len(ways) == len(set(ways))
    assert set(chain.from_iterable(way.split() for way in ways)) == set(words())


def test_held_out_edits_are_no_training_edits_and_are_made_of_parts_that_are_trained() -> None:
    held_out, trained = held_out_concepts(), training_concepts(300)
    assert len(set(held_out)) == HELD_OUT
    assert not set(held_out) & set(training_concepts(len(all_concepts()) - HELD_OUT))
    for part in ("tone", "edge", "texture", "light"):
        assert {getattr(concept, part) for concept in held_out} <= {getattr(concept, part) for concept in trained}
    assert training_concepts(100) == trained[:100]
    with pytest.raises(ValueError, match="1230 training concepts"):
        training_concepts(1_231)


@pytest.mark.parametrize("concept", ONE_OF_EACH_PART, ids=lambda concept: concept.text)
def test_an_edit_changes_most_pixels_clearly_and_stays_in_range(concept: Concept, portraits: torch.Tensor) -> None:
    edited = concept.apply(portraits)
    assert edited.abs().max() <= 1
    assert ((edited - portraits).abs().amax(1) > 0.1).float().mean() > 0.5


def test_every_part_matters(portraits: torch.Tensor) -> None:
    edits = [concept.apply(portraits) for concept in dict.fromkeys(ONE_OF_EACH_PART)]
    assert all(not torch.allclose(a, b, atol=0.05) for i, a in enumerate(edits) for b in edits[:i])


def test_a_picture_is_edited_the_same_alone_and_in_a_batch(portraits: torch.Tensor) -> None:
    for concept in held_out_concepts():
        assert_close(concept.apply(portraits)[1:2], concept.apply(portraits[1:2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", ["", "sepia", "ink outlines", "sepia, ink outlines, cubism", "sepia, golden, ink outlines"])
def test_a_text_that_is_no_edit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnknownConcept, match="such as"):
        find_concept(text)
