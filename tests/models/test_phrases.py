"""Phrases to tokens: repeated words, words of several tokens, punctuation, and errors that say what to do."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from models.phrases import (
    AmbiguousPhrase,
    PhraseNotFound,
    TokenPastEnd,
    Tokens,
    check_positions,
    filter_positions,
    match_phrase,
    naming_positions,
    tokens_of,
)

PIECES = "a an and the on of with red blue star cat kit ##ten dog ##s hair ##ed - , . ! house".split()  # noqa: SIM905


def tokens(prompt: str, longest: int = 24) -> Tokens:
    """start, word pieces (kitten is kit ##ten), end."""
    vocabulary = {piece: at for at, piece in enumerate(["<start>", "<end>", "<unk>", *PIECES])}
    inner = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = BertPreTokenizer()
    inner.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    fast.model_max_length = longest
    return tokens_of(fast, prompt)


def test_a_phrase_is_found_by_words_whatever_their_case_and_spacing() -> None:
    assert match_phrase(tokens("a red star and a blue star"), "red star") == [2, 3]
    assert match_phrase(tokens("A Red  star and a blue star"), " red star ") == [2, 3]
    assert match_phrase(tokens("a red star and a blue star"), "a blue star") == [5, 6, 7]


def test_words_of_several_tokens_are_taken_whole() -> None:
    assert match_phrase(tokens("a kitten and a dog"), "kitten") == [2, 3]
    assert match_phrase(tokens("a dog and a kitten"), "a kitten") == [4, 5, 6]


def test_punctuation_next_to_a_phrase_is_not_part_of_it_and_inside_it_is() -> None:
    assert match_phrase(tokens("a dog, a cat."), "dog") == [2]
    assert match_phrase(tokens("a dog, a cat."), "cat") == [5]
    assert match_phrase(tokens("a red-haired dog!"), "red-haired dog") == [2, 3, 4, 5, 6]


def test_a_part_of_a_word_is_no_phrase() -> None:
    with pytest.raises(PhraseNotFound, match="'dog' does not stand in the prompt 'a cat and dogs'"):
        match_phrase(tokens("a cat and dogs"), "dog")
    assert match_phrase(tokens("dogs and a dog"), "dog") == [5]


def test_a_repeated_phrase_needs_its_occurrence() -> None:
    prompt = tokens("a star and a star and a red star")
    with pytest.raises(AmbiguousPhrase, match="'star' stands 3 times in the prompt 'a star and a star and a red star'; say which"):
        match_phrase(prompt, "star")
    assert [match_phrase(prompt, "star", at) for at in range(3)] == [[2], [5], [9]]
    with pytest.raises(PhraseNotFound, match="there is no occurrence 3"):
        match_phrase(prompt, "star", 3)
    with pytest.raises(PhraseNotFound, match="there is no occurrence -1"):
        match_phrase(prompt, "star", -1)


@pytest.mark.parametrize("phrase", ["blue star", "", "  "])
def test_a_phrase_that_is_not_there_is_named_with_its_prompt(phrase: str) -> None:
    with pytest.raises(PhraseNotFound, match="'a red star'"):
        match_phrase(tokens("a red star"), phrase)


def test_a_phrase_beyond_what_the_text_encoder_reads_is_refused() -> None:
    prompt = tokens("a star and a dog and a cat", longest=7)  # start, five words, end
    assert match_phrase(prompt, "a dog") == [4, 5]
    assert prompt.end == 6
    with pytest.raises(TokenPastEnd, match=r"token 8 of the phrase 'cat' lies beyond the 5 words that are read"):
        match_phrase(prompt, "cat")


def test_given_positions_must_be_words() -> None:
    prompt = tokens("a red star")
    check_positions(prompt, [1, 3], "star")
    for wrong in (0, 4):
        with pytest.raises(
            ValueError, match=rf"token {wrong} of the phrase 'star' is no word of 'a red star'; its words are tokens 1 to 3"
        ):
            check_positions(prompt, [wrong], "star")


def test_function_words_and_punctuation_are_filtered_as_far_as_is_read() -> None:
    assert filter_positions(tokens("a red star, and the kitten with a house!")) == [1, 4, 5, 6, 9, 10, 12]
    assert filter_positions(tokens("a red star, and the kitten", longest=6)) == [1, 4]
    assert filter_positions(tokens("A red star"), frozenset({"red"})) == [2]


def test_a_phrase_of_function_words_alone_keeps_them() -> None:
    assert naming_positions([1, 2, 3], [1]) == [2, 3]
    assert naming_positions([1], [1]) == [1]


def test_the_end_token_of_an_empty_prompt_follows_the_start() -> None:
    assert tokens("").end == 1
    assert tokens("a dog").end == 3
