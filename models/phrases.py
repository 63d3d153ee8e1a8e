"""Which tokens of a prompt a phrase is, and which tokens are function words.

Phrases are found in the text, by whole words and without regard to case, and carried over to tokens by the tokenizer's own offsets, so that
words of several tokens, punctuation and repeated words need no special care. Positions count from 0 and include the start token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_GROUPS = (
    "a an the this that these those some any each every",  # determiners
    "and or nor but so yet while",  # conjunctions
    "of in on at to by for from with without into onto over under above below near behind beside between through as than",  # prepositions
    "is are was were be been being am has have had do does did can could will would shall should may might must",  # auxiliaries
    "i me my you your he him his she her it its we us our they them their who whom whose which what there here",  # pronouns
    "not no only also very too just",
)
FILTER_WORDS: frozenset[str] = frozenset(word for group in _GROUPS for word in group.split())
"""Words that name nothing: their tokens mix what stands around them."""


class PhraseNotFound(ValueError):
    """A phrase does not stand in its prompt, or not that often."""


class AmbiguousPhrase(ValueError):
    """A phrase stands in its prompt more than once and nothing says which one is meant."""


class TokenPastEnd(ValueError):
    """A token lies beyond what the text encoder reads."""


@dataclass(frozen=True)
class Tokens:
    """A prompt's tokens, the start token first: where each stands in the text, and where the text ends."""

    prompt: str
    spans: tuple[tuple[int, int], ...]  # first and last+1 character of each word token; empty for start and end
    end: int  # position of the first end token
    longest: int  # tokens that the text encoder reads, start and end included

    def inside(self, first: int, last: int) -> list[int]:
        """Positions of the tokens that share a character with first:last."""
        return [at for at, (a, b) in enumerate(self.spans) if a < last and b > first]


def tokens_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tokens:
    """The tokens of a prompt, uncut. Raises ValueError for a tokenizer that cannot say where its tokens stand."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in the text; give token_indices or a fast tokenizer."
        )
    encoded = tokenizer(prompt, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=False, verbose=False)
    offsets, special = encoded["offset_mapping"], encoded["special_tokens_mask"]
    assert isinstance(offsets, list)
    assert isinstance(special, list)
    spans = tuple((0, 0) if is_special else (int(a), int(b)) for (a, b), is_special in zip(offsets, special, strict=True))
    words = [at for at, is_special in enumerate(special) if not is_special]
    end = words[-1] + 1 if words else 1
    return Tokens(prompt, spans, min(end, tokenizer.model_max_length - 1), tokenizer.model_max_length)


def match_phrase(tokens: Tokens, phrase: str, occurrence: int | None = None) -> list[int]:
    """Token positions of a phrase; `occurrence` counts equal phrases from 0.

    Raises PhraseNotFound, AmbiguousPhrase where it stands more than once and `occurrence` is None, TokenPastEnd.
    """
    words = phrase.split()
    if not words:
        raise PhraseNotFound(f"an empty phrase is nowhere in {tokens.prompt!r}; name the subject in the prompt's own words.")
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    found = [match.span() for match in re.finditer(pattern, tokens.prompt, re.IGNORECASE)]
    if not found:
        raise PhraseNotFound(f"the phrase {phrase!r} does not stand in the prompt {tokens.prompt!r}; use the prompt's own words.")
    if occurrence is None and len(found) > 1:
        raise AmbiguousPhrase(
            f"the phrase {phrase!r} stands {len(found)} times in the prompt {tokens.prompt!r}; say which one by occurrence, counted from 0."
        )
    if not 0 <= (occurrence or 0) < len(found):
        raise PhraseNotFound(
            f"the phrase {phrase!r} stands {len(found)} times in the prompt {tokens.prompt!r}; there is no occurrence {occurrence}."
        )
    positions = tokens.inside(*found[occurrence or 0])
    check_positions(tokens, positions, phrase)
    return positions


def check_positions(tokens: Tokens, positions: Sequence[int], phrase: str) -> None:
    """Raises TokenPastEnd for a position that is cut off, ValueError for the start or an end token."""
    for at in positions:
        if at >= tokens.longest - 1:
            raise TokenPastEnd(
                f"token {at} of the phrase {phrase!r} lies beyond the {tokens.longest - 2} words that are read of {tokens.prompt!r}; shorten it."
            )
        if not 1 <= at < tokens.end:
            raise ValueError(
                f"token {at} of the phrase {phrase!r} is no word of {tokens.prompt!r}; its words are tokens 1 to {tokens.end - 1}."
            )


def filter_positions(tokens: Tokens, filter_words: Collection[str] = FILTER_WORDS) -> list[int]:
    """Positions of function words and of punctuation, as far as the text encoder reads."""
    found = []
    for match in re.finditer(r"\w+(?:['’]\w+)?|[^\w\s]+", tokens.prompt):
        word = match.group().lower()
        if word in filter_words or not any(character.isalnum() for character in word):
            found += tokens.inside(*match.span())
    return [at for at in dict.fromkeys(found) if at < tokens.end]


def naming_positions(positions: Sequence[int], filters: Collection[int]) -> list[int]:
    """A phrase's positions without function words; all of them where it has nothing else."""
    return [at for at in positions if at not in filters] or list(positions)
