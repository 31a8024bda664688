"""Captions as words, words as ids."""

from captioner.text.languages import make_tokenizer, words_of
from captioner.text.ptb import PTB, PUNCTUATION, detokenize, tokenize
from captioner.text.tokenizer import Tokenizer
from captioner.text.unicode import CHARACTERS, UNICODE, UNSPACED
from captioner.text.vocabulary import Vocabulary
from captioner.text.words import Caption, Word, WordAttention

__all__ = [
    "CHARACTERS",
    "PTB",
    "PUNCTUATION",
    "UNICODE",
    "UNSPACED",
    "Caption",
    "Tokenizer",
    "Vocabulary",
    "Word",
    "WordAttention",
    "detokenize",
    "make_tokenizer",
    "tokenize",
    "words_of",
]
