"""Which tokeniser splits captions: by its name, and which one a language needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from fontTools.unicodedata import script, script_name

from captioner.errors import ConfigError
from captioner.system.foreign import excerpt
from captioner.text.bpe import Bpe
from captioner.text.ptb import PTB
from captioner.text.tokenizer import Tokenizer
from captioner.text.unicode import CHARACTERS, UNICODE

_PLAIN: Mapping[str, Tokenizer] = {each.name: each for each in (PTB, UNICODE, CHARACTERS)}
TOKENIZERS = (*_PLAIN, Bpe.name)
_SHARED = ("Zyyy", "Zinh", "Zzzz")  # letters of many scripts, or of none
ONE_TOKEN = 0.1  # of captions: more are no chance


def make_tokenizer(name: str, captions: Iterable[str], size: int) -> Tokenizer:
    """Return the tokeniser of a name; `bpe` learns `size` pieces from the captions.

    Raises:
        ConfigError: if a library is missing.
    """
    return Bpe.train(captions, size) if name == Bpe.name else _PLAIN[name]


def read_tokenizer(content: Mapping[str, object]) -> Tokenizer:
    """Return the tokeniser that a vocabulary file names; without a name, `ptb`.

    Raises:
        ValueError: if there is none of this name, or it cannot be built.
    """
    name, merges = content.get("tokenizer", PTB.name), content.get("merges")
    if name == Bpe.name and isinstance(merges, list):
        return Bpe(tuple(merges))
    if not isinstance(name, str) or name not in _PLAIN:
        known = ", ".join((*_PLAIN, f"{Bpe.name} with merges"))
        raise ValueError(f"tokenizer must be one of {known}, given {excerpt(name)}")
    return _PLAIN[name]


def words_of(name: str) -> Callable[[str], list[str]]:
    """Return the function that splits captions into the words that scores compare.

    Raises:
        ConfigError: if there is no tokeniser of this name.
    """
    if name not in TOKENIZERS:
        raise ConfigError(
            f"tokenizer: must be one of {', '.join(TOKENIZERS)}, given {excerpt(name, 60)}"
        )
    return UNICODE.tokenize if name == Bpe.name else _PLAIN[name].words


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of each script among the letters of texts, the most frequent first.

    Source of the names: the property Script of Unicode (UAX #24), such as "Latin" and "Han".
    Letters that many scripts share, such as the long vowel of kana, do not count.
    """
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    letters: Counter[str] = Counter()
    for char, count in characters.items():
        if char.isalpha() and (code := script(char)) not in _SHARED:
            letters[code] += count
    total = letters.total()
    return {script_name(code): count / total for code, count in letters.most_common()}


def is_latin(texts: Iterable[str]) -> bool:
    """Return whether most letters of texts are Latin; True without letters."""
    shares = scripts(texts)
    return not shares or shares.get("Latin", 0) >= 0.5


def advice(captions: Iterable[str], lengths: Sequence[int]) -> str | None:
    """Return which tokeniser captions need instead of `ptb`; None: `ptb` fits.

    Args:
        captions: of the train split.
        lengths: tokens of each caption, by `ptb`.
    """
    single = lengths.count(1) / max(1, len(lengths))
    if single > ONE_TOKEN:
        found = f"{single:.0%} of the captions in train are one token"
        then = "if the language has no spaces between words, "
    elif not is_latin(captions):
        found, then = "most letters in train are not Latin", ""
    else:
        return None
    return (
        f"suggestion: {found}, and text.tokenizer {PTB.name} splits English; {then}"
        f"set text.tokenizer={UNICODE.name} (--set text.tokenizer={UNICODE.name})"
    )


def length_advice(lengths: Iterable[int], max_length: int) -> str | None:
    """Return which `decoding.max_length` captions need; None: this one fits.

    Args:
        lengths: tokens of each caption in train, without the end token.
        max_length: most tokens of a caption that the model writes, end token included.
    """
    ordered = sorted(lengths)
    long = sum(length >= max_length for length in ordered) / max(1, len(ordered))
    if long <= ONE_TOKEN:
        return None
    enough = ordered[(len(ordered) * 99) // 100] + 1
    return (
        f"suggestion: {long:.0%} of the captions in train are longer than decoding.max_length, "
        f"{max_length} tokens, allows; set decoding.max_length={enough}"
    )
