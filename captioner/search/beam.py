"""Beam search over many images and their beams at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from captioner.search.common import (
    Hypotheses,
    Step,
    check_arguments,
    token_log_probs,
    top_tokens,
)

_Tensors = TypeVar("_Tensors", Hypotheses, "_Beams")


@dataclass(frozen=True, eq=False)
class _Beams:
    """The W prefixes of each of the A images still searched, best first.

    A dead place has total -inf, and so has all that grows from it.
    """

    images: Tensor  # which image of the batch, int64 (A,)
    written: Tensor  # start token, prefix, end tokens up to the width, int64 (A, W, 1+max_length)
    totals: Tensor  # log-probability of the prefix, float32 (A, W)
    rows: Tensor  # the row of the last step the prefix grew from, int64 (A, W)


@torch.inference_mode()
def beam_search(
    step: Step,
    hidden: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    n_best: int = 1,
    suppress_ids: Sequence[int] = (),
) -> Hypotheses:
    """Find the sentences of highest score among the extensions of the K best prefixes.

    At each step an image's live prefixes are extended by every token. An extension by the end
    token is kept as finished if it is among the K best extensions; the K best others live on.
    An image stops as soon as no live prefix can still enter its n best, which never changes the
    result (Huang et al., 2017, "When to Finish? Optimal Beam Search for Neural Text
    Generation"). Equal scores go to the one found first, then to the better beam, then to the
    lowest token. N-gram blocking is that of Paulus et al. (2018), "A Deep Reinforced Model for
    Abstractive Summarization".

    Args:
        step: maps (token_ids (N,), hidden (L, N, H)) to (logits (N, V), hidden (L, N, H)).
        hidden: initial decoder state made from the images, (L, B, H).
        bos_id: start token, fed first and not returned.
        eos_id: end token.
        beam_size: K, live prefixes per image, at least 1; 1 is greedy.
        max_length: most tokens to emit, end token included; at least 1.
        length_penalty: scores are log_prob / length**length_penalty, the end token counted;
            0 ranks by log-probability, 1 by its mean per token; at least 0.
        no_repeat_ngram_size: no n-gram of this many tokens appears twice in a sentence; 0 allows
            all.
        n_best: sentences to return for each image, 1 to beam_size.
        suppress_ids: tokens never to emit (padding, start, unknown); not the end token.

    Returns:
        n_best different sentences per image, best first. Sentences that max_length cut off rank
        after all finished ones.

    Raises:
        ValueError: if an argument is outside the range given above.
    """
    check_arguments(hidden, eos_id=eos_id, max_length=max_length, suppress_ids=suppress_ids)
    _check_beam_arguments(beam_size, n_best, length_penalty, no_repeat_ngram_size)
    suppressed = torch.tensor(suppress_ids, dtype=torch.int64, device=hidden.device)
    beams = _start(hidden, 1, max_length, bos_id, eos_id, total=0.0)
    nothing = _start(hidden, n_best, max_length, bos_id, eos_id, total=-torch.inf)
    kept = _as_hypotheses(nothing, 0, length_penalty, eos_id)
    stopped: list[tuple[Tensor, Hypotheses]] = []
    length = 0
    while len(beams.images) and length < max_length:
        logits, hidden = step(beams.written[:, :, length].flatten(), hidden)
        log_probs = token_log_probs(logits, suppressed)
        if no_repeat_ngram_size:
            prefixes = beams.written[:, :, 1 : 1 + length].flatten(0, 1)
            _block_repeats(log_probs, prefixes, no_repeat_ngram_size)
        length += 1
        ended, beams = _extend(beams, log_probs, beam_size, length, eos_id)
        kept = _best(kept, _as_hypotheses(ended, length, length_penalty, eos_id), n_best)

        # Log-probabilities only fall, so this is the most a live prefix can still score.
        reachable = beams.totals[:, 0] / math.pow(max_length, length_penalty)
        goes_on = reachable > kept.scores[:, -1]
        if beam_size == 1:  # greedy: the first end is the end, whatever the length penalty
            goes_on &= ~kept.finished[:, 0]
        going = goes_on.nonzero().squeeze(1)
        if len(going) < len(goes_on):  # an image that is done costs no further step
            done = (~goes_on).nonzero().squeeze(1)
            stopped.append((beams.images[done], _select(kept, done)))
            kept, beams = _select(kept, going), _select(beams, going)
        hidden = hidden.index_select(1, beams.rows.flatten())

    cut_off = _as_hypotheses(beams, length, length_penalty, eos_id)
    stopped.append((beams.images, _best(kept, cut_off, n_best)))
    return _in_order(stopped, length)


def _check_beam_arguments(
    beam_size: int, n_best: int, length_penalty: float, no_repeat_ngram_size: int
) -> None:
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best must be 1 to beam_size ({beam_size}), not {n_best}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be at least 0 and finite, not {length_penalty}")
    if no_repeat_ngram_size < 0:
        raise ValueError(f"no_repeat_ngram_size must be at least 0, not {no_repeat_ngram_size}")


def _start(
    hidden: Tensor, width: int, max_length: int, bos_id: int, eos_id: int, *, total: float
) -> _Beams:
    """Make empty prefixes, all with the given total."""
    images = torch.arange(hidden.shape[1], device=hidden.device)
    written = images.new_full((len(images), width, 1 + max_length), eos_id)
    written[:, :, 0] = bos_id
    totals = torch.full((len(images), width), total, device=hidden.device)
    return _Beams(images, written, totals, rows=images[:, None].expand(-1, width))


def _extend(
    beams: _Beams, log_probs: Tensor, beam_size: int, length: int, eos_id: int
) -> tuple[_Beams, _Beams]:
    """Extend every prefix by every token and part those that end from those that live on.

    Args:
        beams: the live prefixes, A x W.
        log_probs: of the next token, (A*W, V).
        beam_size: K.
        length: tokens of a prefix once extended.
        eos_id: end token.

    Returns:
        The ended among the K best extensions, and the K best that did not end.
    """
    num_images, width = beams.totals.shape
    # K + 1 tokens of a prefix are enough: one may end it, and only K of the others can live.
    values, token_ids = top_tokens(log_probs, min(beam_size + 1, log_probs.shape[1]))
    totals = (beams.totals.view(-1, 1) + values).view(num_images, -1)  # A, W*k
    totals, order = totals.sort(dim=1, descending=True, stable=True)
    # The 2K best hold at most K ends, one for each prefix, and so the K best others.
    totals, order = totals[:, : 2 * beam_size], order[:, : 2 * beam_size]  # A, C
    first_rows = torch.arange(num_images, device=order.device)[:, None] * width
    rows = first_rows + order // values.shape[1]
    token_ids = token_ids.view(num_images, -1).gather(1, order)
    written = beams.written.flatten(0, 1)[rows]  # A, C, 1+max_length
    written[:, :, length] = token_ids

    ends = token_ids == eos_id
    ended_totals = totals.masked_fill(~ends, -torch.inf)
    ended = _Beams(
        beams.images, written[:, :beam_size], ended_totals[:, :beam_size], rows[:, :beam_size]
    )
    live = ends.byte().sort(dim=1, stable=True).indices[:, :beam_size]
    live_totals = totals.masked_fill(ends, -torch.inf).gather(1, live)
    written = written.take_along_dim(live[:, :, None], dim=1)
    return ended, _Beams(beams.images, written, live_totals, rows.gather(1, live))


def _block_repeats(log_probs: Tensor, prefixes: Tensor, size: int) -> None:
    """Set to -inf, in place, every token that would repeat an n-gram of its prefix.

    Args:
        log_probs: of the next token, (N, V).
        prefixes: tokens so far, (N, T).
        size: n, at least 1.
    """
    num_tokens = prefixes.shape[1]
    if num_tokens < size:
        return
    ngrams = prefixes.unfold(1, size, 1)  # N, T-n+1, n
    context = prefixes[:, None, num_tokens - size + 1 :]  # N, 1, n-1
    repeats = (ngrams[:, :, :-1] == context).all(dim=2)
    penalties = torch.zeros_like(repeats, dtype=log_probs.dtype).masked_fill(repeats, -torch.inf)
    log_probs.scatter_add_(1, ngrams[:, :, -1], penalties)


def _as_hypotheses(beams: _Beams, length: int, length_penalty: float, eos_id: int) -> Hypotheses:
    """Read prefixes of the given length, end token counted, as hypotheses.

    What a dead place reads as is never seen: the empty places that a search starts with rank
    before it.
    """
    finished = (beams.written[:, :, length] == eos_id) & (beams.totals > -torch.inf)
    return Hypotheses(
        token_ids=beams.written[:, :, 1:],
        lengths=length - finished.long(),
        log_probs=beams.totals,
        scores=beams.totals / math.pow(length, length_penalty),
        finished=finished,
    )


def _best(first: Hypotheses, second: Hypotheses, count: int) -> Hypotheses:
    """Merge, per image: finished before unfinished, then by score, then first before second."""
    both = Hypotheses(
        *(
            torch.cat((getattr(first, field.name), getattr(second, field.name)), dim=1)
            for field in fields(Hypotheses)
        )
    )
    by_score = both.scores.sort(dim=1, descending=True, stable=True).indices
    finished = both.finished.gather(1, by_score).byte()
    order = finished.sort(dim=1, descending=True, stable=True).indices
    return both.take(by_score.gather(1, order)[:, :count])


def _select(tensors: _Tensors, images: Tensor) -> _Tensors:
    """Keep some of the images, by their place in the first dimension of every field."""
    kept = {field.name: getattr(tensors, field.name)[images] for field in fields(tensors)}
    return replace(tensors, **kept)


def _in_order(parts: list[tuple[Tensor, Hypotheses]], length: int) -> Hypotheses:
    """Join hypotheses of some images each, in the order of the images, cut to length tokens."""
    order = torch.cat([images for images, _ in parts]).argsort()
    joined = {
        field.name: torch.cat([getattr(part, field.name) for _, part in parts])[order]
        for field in fields(Hypotheses)
    }
    return Hypotheses(**joined | {"token_ids": joined["token_ids"][:, :, :length]})
