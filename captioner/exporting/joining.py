"""What a search outside captioner needs to join words to a caption, as the tokeniser does."""

from __future__ import annotations

from typing import NamedTuple

from captioner.text import Vocabulary


class Joining(NamedTuple):
    """Words by id, and between which kinds of words there is no space.

    `closed[kinds[a]][kinds[b]]` is 1 if word `b` follows word `a` without a space. Bytes that are
    no text alone, such as a part of a letter, stand as a list of numbers.
    """

    words: list[str | list[int]]
    kinds: list[int]
    closed: list[list[int]]


def joining(vocabulary: Vocabulary) -> Joining:
    """Return how the words of a vocabulary are joined."""
    tokenizer, tokens = vocabulary.tokenizer, (*vocabulary.specials, *vocabulary.words)
    words = [_text(tokenizer.spelt(token)) for token in tokens]
    if not tokenizer.joints:
        return Joining(words, [0] * len(words), [[1]])

    def closed(previous: str, token: str) -> int:
        return int(" " not in tokenizer.detokenize([previous, token]))

    # Words that close up with the same joints are of one kind, which its first word stands for.
    found = [
        tuple((closed(joint, token), closed(token, joint)) for joint in tokenizer.joints)
        for token in tokens
    ]
    first: dict[tuple[tuple[int, int], ...], str] = {}
    for kind, token in zip(found, tokens, strict=True):
        first.setdefault(kind, token)
    numbers = {kind: number for number, kind in enumerate(first)}
    matrix = [[closed(one, other) for other in first.values()] for one in first.values()]
    return Joining(words, [numbers[kind] for kind in found], matrix)


def _text(spelt: bytes) -> str | list[int]:
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return [*spelt]
