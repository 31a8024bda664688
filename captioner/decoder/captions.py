"""Convert hypotheses to captions: text, words with their probabilities, and where they look."""

from __future__ import annotations

from math import isqrt
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from captioner.decoder.likelihood import ROWS
from captioner.search import Hypotheses
from captioner.search.top_tokens import ids_of, log_probs_of
from captioner.text import Caption, Vocabulary, Word, WordAttention


class Attending(Protocol):
    """A decoder or an ensemble."""

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor | None:
        """Compute where captions look; see `Decoder.attend`."""
        ...


def attend(decoder: Attending, features: Tensor, token_ids: Tensor) -> Tensor:
    """Compute the weights of each word, (B, N, T, P + 1), for captions, (B, N, T)."""
    inputs = functional.pad(token_ids, (1, -1), value=Vocabulary.bos_id)
    size = max(1, ROWS // token_ids.shape[1])
    pieces = zip(features.split(size), inputs.split(size), strict=True)
    weights = [decoder.attend(*piece) for piece in pieces]
    return torch.cat([each for each in weights if each is not None])


def to_captions(
    found: Hypotheses,
    vocabulary: Vocabulary,
    *,
    words: bool = False,
    alternatives: int = 0,
    weights: Tensor | None = None,
) -> list[list[Caption]]:
    """Convert the hypotheses of B images to captions.

    Args:
        found: n hypotheses for each image.
        vocabulary: the text of each token id.
        words: fill `Caption.words`.
        alternatives: for each word, at most one less than the choices that `found` holds.
        weights: of `attend`, (B, n, T, P + 1).
    """
    columns = (found.token_ids, found.log_probs, found.scores, found.finished)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    captions: list[list[Caption]] = []
    for image, row in enumerate(rows):
        captions.append([])
        for number, (ids, log_prob, score, finished) in enumerate(zip(*row, strict=True)):
            if log_prob == -torch.inf:
                continue  # the search found fewer than n
            tokens = vocabulary.decode(ids)
            spelled: tuple[Word, ...] = ()
            if words:
                keys = found.written[image, number, : len(tokens) + finished]
                looks = None if weights is None else weights[image, number]
                spelled = _words(vocabulary, keys, alternatives, looks)
            text = vocabulary.tokenizer.detokenize(tokens)
            captions[-1].append(Caption(text, log_prob, score, finished, spelled))
    return captions


def _words(
    vocabulary: Vocabulary, keys: Tensor, alternatives: int, weights: Tensor | None
) -> tuple[Word, ...]:
    """Convert a caption's keys, (T, 1 + C), and its weights, (T or more, P + 1)."""
    ids, log_probs = ids_of(keys).tolist(), log_probs_of(keys).tolist()
    looks = [None] * len(ids) if weights is None else weights[: len(ids)].tolist()
    words = []
    for (token_id, *choices), (log_prob, *of_choices), look in zip(
        ids, log_probs, looks, strict=True
    ):
        others = [
            (vocabulary.shown(choice), value)
            for choice, value in zip(choices, of_choices, strict=True)
            if choice != token_id and value > -torch.inf
        ]
        words.append(
            Word(
                vocabulary.shown(token_id),
                log_prob,
                tuple(others[:alternatives]),
                look and _attention(look),
            )
        )
    return tuple(words)


def _attention(weights: list[float]) -> WordAttention:
    """Convert the weights of S * S places and the sentinel's."""
    size = isqrt(len(weights) - 1)
    return WordAttention(tuple(zip(*[iter(weights[:-1])] * size, strict=True)), weights[-1])
