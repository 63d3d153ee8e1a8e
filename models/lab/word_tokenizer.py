"""Tokenizers of whole words, for text towers that know a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Whitespace
from tokenizers.pre_tokenizers import Sequence as Both
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Sequence[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """One token a word, in lower case, punctuation left out; padded with the end token as CLIP's is. Unknown words become <unk>."""
    vocabulary = {word: at for at, word in enumerate(["<start>", "<end>", "<unk>", *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = Lowercase()
    inner.pre_tokenizer = Both([Whitespace(), Punctuation("removed")])
    inner.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>", model_max_length=max_tokens
    )
