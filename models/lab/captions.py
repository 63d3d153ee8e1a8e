"""What the drawn world's captions say, and the words they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerFast

from models.lab.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Thing
from models.lab.word_tokenizer import word_tokenizer
from models.lab.world import BEARDS, EXPRESSIONS, GLASSES, HAIR, HAIR_COLOURS, Portrait, Subject

MAX_TOKENS = 28
NATURAL = {"snow": "in the snow", "beach": "on the beach", "jungle": "in the jungle"}
_CONNECTING = (
    "a",
    "an",
    "and",
    "the",
    "of",
    "with",
    "on",
    "in",
    "at",
    "is",
    "portrait",
    "person",
    "picture",
    "hair",
    "shirt",
    "background",
    "wearing",
)


def words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    named = [*SHAPES, *COLOURS, *BACKGROUNDS, *PLACES, *HAIR, *HAIR_COLOURS, *GLASSES, *BEARDS, *EXPRESSIONS, *_CONNECTING]
    return sorted({word for name in named for word in name.split()})


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the world's captions, padded with the end token as CLIP's is; unknown words become <unk>."""
    return word_tokenizer(words(), MAX_TOKENS)


def caption(what: Subject, generator: torch.Generator | None = None) -> str:
    """The whole caption of a subject; with a generator, one that leaves out some attributes and, for scenes, sometimes all places."""

    def said(chance: float = 0.8) -> bool:
        return generator is None or bool(torch.rand((), generator=generator) < chance)

    if isinstance(what, Portrait):
        return _of_portrait(what, said)
    places = said(0.65)
    things = " and ".join(of_thing(thing, place=places, colour=said(0.93)) for thing in what.things)
    return f"{things} {of_background(what.background)}" if said() else things


def of_thing(thing: Thing, *, place: bool = True, colour: bool = True) -> str:
    """An object's phrase, such as `a red star on the top left`."""
    named = [thing.colour, thing.shape] if colour else [thing.shape]
    words_ = ["an" if named[0] == "orange" else "a", *named]
    if place:
        words_ += ["in" if thing.place == "middle" else "on", "the", thing.place]
    return " ".join(words_)


def of_background(background: str) -> str:
    """A background's phrase, such as `gray background` or `in the snow`."""
    return NATURAL.get(background, f"{background} background")


def _of_portrait(what: Portrait, said: Callable[[], bool]) -> str:
    parts = ["a portrait of a"]
    parts += [what.expression] if said() else []
    parts += ["person with"]
    if what.hair == "bald":
        parts += ["bald hair"] if said() else []
    else:
        hair = [what.hair] if said() else []
        hair += [what.hair_colour] if said() else []
        parts += [*hair, "hair"] if hair else []
    parts += [what.glasses] if said() else []
    parts += [what.beard] if said() else []
    parts += [what.shirt, "shirt"] if said() else []
    parts += [of_background(what.background)] if said() else []
    return " ".join(parts)
