"""Captions as words, words as ids."""

from captioner.text.ptb import PUNCTUATION, detokenize, tokenize
from captioner.text.vocabulary import Vocabulary
from captioner.text.words import Caption, Word, WordAttention

__all__ = [
    "PUNCTUATION",
    "Caption",
    "Vocabulary",
    "Word",
    "WordAttention",
    "detokenize",
    "tokenize",
]
