"""Beam search over many images and their beams at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.search.common import (
    Hypotheses,
    Step,
    check_arguments,
    no_numbers,
    token_log_probs,
)
from captioner.search.top_tokens import top_tokens


@dataclass(frozen=True, eq=False)
class _Sentences:
    """W sentences of each of A images, best first; an empty place has total and score -inf."""

    written: Tensor  # start token, words, end tokens up to the width, int64 (A, W, 1+max_length)
    totals: Tensor  # log-probabilities, float32 (A, W)
    scores: Tensor  # ranking scores, float32 (A, W)

    def select(self, images: Tensor) -> _Sentences:
        """Return the sentences of some images."""
        return _Sentences(self.written[images], self.totals[images], self.scores[images])

    def beside(self, others: _Sentences) -> _Sentences:
        """Append the sentences of `others` to each image."""
        return _Sentences(
            torch.cat((self.written, others.written), dim=1),
            torch.cat((self.totals, others.totals), dim=1),
            torch.cat((self.scores, others.scores), dim=1),
        )

    def spoil(self, images: Tensor) -> _Sentences:
        """Set the totals and scores of some images, bool (A,), to NaN."""
        broken = images[:, None]
        return _Sentences(
            self.written,
            self.totals.masked_fill(broken, torch.nan),
            self.scores.masked_fill(broken, torch.nan),
        )

    def take(self, order: Tensor) -> _Sentences:
        """Return the sentences at indices `order`, int64 (A, m), of each image."""
        return _Sentences(
            self.written.take_along_dim(order[:, :, None], dim=1),
            self.totals.gather(1, order),
            self.scores.gather(1, order),
        )


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
    """Search for the sentences of highest score with a beam of K prefixes.

    Each step extends the live prefixes of an image by every token. Of the K best extensions,
    those with the end token are finished. The K best extensions without it are the new live
    prefixes. An image stops when no live prefix can enter its n best sentences (Huang et al.,
    2017, "When to Finish? Optimal Beam Search for Neural Text Generation"); this does not change
    the result. Equal scores go to the earlier sentence, then the better beam, then the lowest
    token id. N-gram blocking is that of Paulus et al. (2018), "A Deep Reinforced Model for
    Abstractive Summarization".

    Args:
        step: maps (token_ids (N,), hidden (L, N, H)) to (logits (N, V), hidden (L, N, H)).
        hidden: initial decoder state of the images, (L, B, H).
        bos_id: start token, the first input; not returned.
        eos_id: end token.
        beam_size: K, live prefixes per image, at least 1; 1 is greedy search.
        max_length: maximum number of tokens, end token included; at least 1.
        length_penalty: scores are log_prob / length**length_penalty, where length counts the end
            token; 0 ranks by log-probability, 1 by the mean per token; at least 0.
        no_repeat_ngram_size: no n-gram of this size appears twice in a sentence; 0: no limit.
        n_best: sentences per image, 1 to beam_size.
        suppress_ids: tokens never to write (padding, start, unknown); not the end token.

    Returns:
        n_best different sentences per image, best first. Sentences that max_length cut off rank
        after all finished ones.

    Raises:
        ValueError: if an argument is outside the range given above.
    """
    check_arguments(hidden, eos_id=eos_id, max_length=max_length, suppress_ids=suppress_ids)
    _check_beam_arguments(beam_size, n_best, length_penalty, no_repeat_ngram_size)
    suppressed = torch.tensor(suppress_ids, dtype=torch.int64, device=hidden.device)
    images = torch.arange(hidden.shape[1], device=hidden.device)  # the A unfinished images
    # Live prefixes, (A, W), best first; an extension of a dead prefix (total -inf) is dead.
    written = images.new_full((len(images), 1, 1 + max_length), eos_id)
    written[:, :, 0] = bos_id
    totals = torch.zeros(len(images), 1, device=hidden.device)
    kept = _none_of(written, n_best)
    results: list[tuple[Tensor, _Sentences, Tensor]] = []
    length = 0
    while len(images) and length < max_length:
        logits, hidden = step(written[:, :, length].flatten(), hidden)
        broken = no_numbers(logits).view(len(images), -1).any(1)
        log_probs = token_log_probs(logits, suppressed)
        if no_repeat_ngram_size:
            prefixes = written[:, :, 1 : 1 + length].flatten(0, 1)
            _block_repeats(log_probs, prefixes, no_repeat_ngram_size)
        length += 1
        ended, written, totals, rows = _extend(
            written, totals, log_probs, beam_size, length, eos_id, length_penalty
        )
        if ended is not None:
            kept = kept.beside(ended)
            order = kept.scores.sort(dim=1, descending=True, stable=True).indices
            kept = kept.take(order[:, :n_best])
        # Comparisons with NaN are false, so the search of a broken image ends here.
        kept, totals = kept.spoil(broken), totals.masked_fill(broken[:, None], torch.nan)

        # Log-probabilities only fall, so this is the upper bound of a live prefix's score.
        unfinished = totals[:, 0] / math.pow(max_length, length_penalty) > kept.scores[:, -1]
        if beam_size == 1:  # greedy search stops at the first end token
            unfinished &= kept.totals[:, 0] == -torch.inf
        rest = unfinished.nonzero().squeeze(1)
        if not len(rest):
            break
        if len(rest) < len(images):  # finished images take no further steps
            done = (~unfinished).nonzero().squeeze(1)
            of_done = kept.select(done)
            results.append((images[done], of_done, of_done.totals > -torch.inf))
            images, kept = images[rest], kept.select(rest)
            written, totals, rows = written[rest], totals[rest], rows[rest]
        hidden = hidden.index_select(1, rows.flatten())

    cut_off = _Sentences(written, totals, totals / math.pow(length, length_penalty))
    results.append((images, *_fill_with_cut_off(kept, cut_off)))
    return _in_order(results, length, eos_id)


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


def _none_of(written: Tensor, width: int) -> _Sentences:
    """Return empty places for `width` sentences per image."""
    totals = torch.full((len(written), width), -torch.inf, device=written.device)
    return _Sentences(written.expand(-1, width, -1), totals, totals)


def _extend(
    written: Tensor,
    totals: Tensor,
    log_probs: Tensor,
    beam_size: int,
    length: int,
    eos_id: int,
    length_penalty: float,
) -> tuple[_Sentences | None, Tensor, Tensor, Tensor]:
    """Extend every prefix by every token, and separate finished and live extensions.

    Args:
        written: live prefixes, (A, W, 1+max_length).
        totals: log-probabilities of the prefixes, (A, W).
        log_probs: log-probabilities of the next token, (A*W, V); overwritten.
        beam_size: K.
        length: tokens of an extended prefix.
        eos_id: end token.
        length_penalty: see `beam_search`.

    Returns:
        The finished among the K best extensions, None if there are none; the K best unfinished
        extensions as `written` and `totals`; and for each of these the row of `log_probs` that
        it extends, int64 (A, K).
    """
    num_images, width = totals.shape
    log_probs += totals.view(-1, 1)
    # Each prefix has one end, so the 2K best extensions hold the K best without an end.
    extensions = log_probs.view(num_images, -1)  # A, W*V
    totals, places = top_tokens(extensions, min(2 * beam_size, extensions.shape[1]))
    beams = places.div(log_probs.shape[1], rounding_mode="floor")
    token_ids = places - beams * log_probs.shape[1]
    rows = beams + torch.arange(0, len(log_probs), width, device=beams.device)[:, None]
    prefixes = written.flatten(0, 1)

    ends = token_ids == eos_id
    ended = None
    if ends[:, :beam_size].any():
        ended_totals = totals.masked_fill(~ends, -torch.inf)[:, :beam_size]
        ended = _Sentences(
            prefixes[rows[:, :beam_size]],  # prefixes are padded with end tokens
            ended_totals,
            ended_totals / math.pow(length, length_penalty),
        )
    live = ends.byte().sort(dim=1, stable=True).indices[:, :beam_size]
    totals = totals.masked_fill(ends, -torch.inf).gather(1, live)
    rows = rows.gather(1, live)
    written = prefixes[rows]
    written[:, :, length] = token_ids.gather(1, live)
    return ended, written, totals, rows


def _block_repeats(log_probs: Tensor, prefixes: Tensor, size: int) -> None:
    """Set to -inf, in place, every token that would repeat an n-gram of its prefix.

    Args:
        log_probs: log-probabilities of the next token, (N, V).
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


def _fill_with_cut_off(kept: _Sentences, cut_off: _Sentences) -> tuple[_Sentences, Tensor]:
    """Fill the empty places of `kept` with sentences that max_length cut off.

    Returns:
        n sentences per image, as in `kept`, and which of them are finished, bool (A, n).
    """
    both = kept.beside(cut_off)
    real = both.totals > -torch.inf
    finished = real & (torch.arange(real.shape[1], device=real.device) < kept.totals.shape[1])
    # The stable sort puts empty places of `kept` before dead prefixes of `cut_off`.
    order = (finished.byte() + real.byte()).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : kept.totals.shape[1]]
    return both.take(order), finished.gather(1, order)


def _in_order(
    results: list[tuple[Tensor, _Sentences, Tensor]], length: int, eos_id: int
) -> Hypotheses:
    """Concatenate results in the order of the images, and cut sentences to `length` tokens."""
    order = torch.cat([images for images, _, _ in results]).argsort()
    written = torch.cat([sentences.written for _, sentences, _ in results])[order]
    token_ids = written[:, :, 1 : 1 + length]
    return Hypotheses(
        token_ids=token_ids,
        lengths=(token_ids != eos_id).sum(2),
        log_probs=torch.cat([sentences.totals for _, sentences, _ in results])[order],
        scores=torch.cat([sentences.scores for _, sentences, _ in results])[order],
        finished=torch.cat([finished for _, _, finished in results])[order],
    )
