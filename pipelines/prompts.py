"""Prompt templates: words with places for subjects, filled in so that every phrase can be found again, and checked against a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_SLOT = re.compile(r"\{([A-Za-z_]\w*)\}")
_DREAMBOOTH = re.compile(r"\{0\}\s*\{1\}")  # unique token and class noun; the token is dropped
_ARTICLE = re.compile(r"\b(a|an)(\s+)$", re.IGNORECASE)
_VOWELS = tuple("aeiou")


class BadTemplate(ValueError):
    """A template's braces are no places for subjects."""


@dataclass(frozen=True)
class Template:
    """A prompt with slots in curly braces. `noun`: its slot takes a subject's class noun, as DreamBooth's templates do."""

    text: str
    slots: tuple[str, ...]  # in order of their first place
    noun: bool


@dataclass(frozen=True)
class Filled:
    """A prompt, and where each slot's phrase first stands among equal phrases in it: None where there is only one."""

    prompt: str
    occurrences: Mapping[str, int | None]


def parse_template(text: str) -> Template:
    """A template of `{subject}`, or of several names such as `{a}` and `{b}`; DreamBooth's `{0} {1}` is one subject. Raises BadTemplate."""
    noun = _DREAMBOOTH.search(text) is not None
    text = _DREAMBOOTH.sub("{subject}", text)
    slots = tuple(dict.fromkeys(_SLOT.findall(text)))
    rest = _SLOT.sub("", text)
    if "{" in rest or "}" in rest:
        raise BadTemplate(f"{text!r}: write places for subjects as {{subject}}, or as {{a}} and {{b}}")
    if not slots:
        raise BadTemplate(f"{text!r} has no place for a subject; write {{subject}} where one goes")
    return Template(text, slots, noun)


def fill(template: Template, phrases: Mapping[str, str]) -> Filled:
    """The template with a phrase in every slot; `a` and `an` before a slot follow the phrase's first letter."""
    prompt, at, starts = "", 0, dict[str, int]()
    for match in _SLOT.finditer(template.text):
        slot = match[1]
        before = template.text[at : match.start()]
        prompt += _ARTICLE.sub(lambda article, phrase=phrases[slot]: _article(article[1], phrase) + article[2], before)
        starts.setdefault(slot, len(prompt))
        prompt += phrases[slot]
        at = match.end()
    prompt += template.text[at:]
    return Filled(prompt, {slot: _occurrence(prompt, phrases[slot], start) for slot, start in starts.items()})


def _article(written: str, phrase: str) -> str:
    article = "an" if phrase.lower().startswith(_VOWELS) else "a"
    return article.capitalize() if written[0].isupper() else article


def _occurrence(prompt: str, phrase: str, start: int) -> int | None:
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)"  # as methods find a phrase, models/phrases.py
    found = [match.start() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
    return found.index(start) if len(found) > 1 and start in found else None


class Vocabulary:
    """The words that a model's tokenizer knows, and how long its prompts may be."""

    def __init__(self, model: Path) -> None:
        """`model`: a folder in diffusers layout. Raises ValueError where it holds no tokenizer."""
        from transformers import AutoTokenizer

        folder = model / "tokenizer"
        if not folder.is_dir():
            raise ValueError(f"{model} holds no tokenizer; name the folder of a text-to-image model, or lab/unet")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._known = cache(self._knows)

    def objection(self, prompt: str) -> str | None:
        """Why the model can't read a prompt: words that it does not know, or too many; None where it can."""
        unknown = [word for word in re.findall(r"\w+(?:['’]\w+)?", prompt) if not self._known(word.lower())]
        if unknown:
            return f"not in the vocabulary: {', '.join(dict.fromkeys(unknown))}"
        count, most = len(self._tokenizer(prompt, truncation=False, verbose=False)["input_ids"]), self._tokenizer.model_max_length
        return f"{count} tokens; the model reads {most}" if count > most else None

    def _knows(self, word: str) -> bool:
        unknown = self._tokenizer.unk_token
        return unknown is None or unknown not in self._tokenizer.tokenize(word)
