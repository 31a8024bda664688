"""Beam search over many images and their beams at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.config import DecodingConfig
from captioner.search.common import Hypotheses, SpecialIds, Step, TokenRules, no_numbers
from captioner.search.top_tokens import ids_of, to_keys, top_tokens

GPU_STEPS = 4  # between looks at which images are finished: each look waits for the GPU


class Extensions(NamedTuple):
    """The m best extensions of a step by one token, for A images, best first."""

    totals: Tensor  # log-probabilities of the extended prefixes less the penalties of repeated
    # words, (A, m); -inf: not allowed
    keys: Tensor  # of the token (see `top_tokens`), int64 (A, m)
    beams: Tensor  # the live prefix that each extends, 0 to W-1, int64 (A, m)
    live: Tensor  # places, 0 to m-1, of the new live prefixes, int64 (A, K)


class _Sentences(NamedTuple):
    """W sentences per image, A images, best first; an empty place has total and score -inf."""

    written: Tensor  # start token, words, then end tokens, int64 (A, W, 1+max_length, 1+C): keys
    # (see `top_tokens`) of the token at each place and of the C most probable there
    totals: Tensor  # log-probabilities less the penalties of repeated words, float32 (A, W)
    scores: Tensor  # ranking scores, float32 (A, W)

    def select(self, images: Tensor) -> _Sentences:
        """Return the sentences of some images."""
        return _Sentences(*(tensor[images] for tensor in self))

    def beside(self, others: _Sentences) -> _Sentences:
        """Append the sentences of `others` to each image."""
        return _Sentences(*(torch.cat(pair, dim=1) for pair in zip(self, others, strict=True)))

    def take(self, order: Tensor) -> _Sentences:
        """Return the sentences at indices `order`, int64 (A, m), of each image."""
        written = self.written.take_along_dim(order[:, :, None, None], dim=1)
        return _Sentences(written, self.totals.gather(1, order), self.scores.gather(1, order))

    def best(self, count: int) -> _Sentences:
        """Return the sentences of highest score of each image; of equals, the first."""
        order = self.scores.sort(dim=1, descending=True, stable=True).indices
        return self.take(order[:, :count])


@torch.inference_mode()
def beam_search(
    step: Step,
    hidden: Tensor,
    ids: SpecialIds,
    options: DecodingConfig,
    n_best: int = 1,
    choices: int = 0,
    watch: Callable[[Extensions], None] | None = None,
) -> Hypotheses:
    """Search for the sentences of highest score with a beam of K prefixes.

    Each step extends the live prefixes of an image by every token. Of the K best extensions,
    those with the end token are finished. The K best extensions without it are the new live
    prefixes. The search of an image stops when no live prefix can enter its n best sentences (Huang
    et al., 2017, "When to Finish? Optimal Beam Search for Neural Text Generation"). Stopping does
    not change the result. Ties prefer the sentence that finished earlier, then the better beam,
    then the lowest token id. N-gram blocking: Paulus et al. (2018), "A Deep Reinforced Model for
    Abstractive Summarization".

    Args:
        step: the decoder's step.
        hidden: initial decoder state of the images, (L, B, H).
        ids: the special tokens, and the first tokens of every sentence.
        options: beam_size K (1: greedy search), min_length, max_length, no_repeat_ngram_size, and
            the length_penalty a and repeat_penalty b in score = (log_prob - b * r) / length**a.
            length counts the end token; r counts, for each token that is not repeatable, its
            earlier uses in the sentence. Its words, start and forbid, are not read: `ids` holds
            their ids.
        n_best: sentences per image, 1 to K.
        choices: number C of the most probable tokens to keep for each place, 0 to V.
        watch: called at each step with the best extensions of the unfinished images.

    Returns:
        n_best different sentences per image, best first. Sentences that max_length cut off rank
        after all finished ones.
    """
    max_length, penalty = options.max_length, options.length_penalty
    rules = TokenRules(ids, options.min_length, hidden.device, options.repeat_penalty)
    images = torch.arange(hidden.shape[1], device=hidden.device)  # the A unfinished images
    # Live prefixes, (A, W), best first; an extension of a dead prefix (total -inf) is dead.
    written = images.new_full((len(images), 1, 1 + max_length, 1 + choices), ids.eos_id)
    written[:, :, 0] = ids.bos_id
    totals = torch.zeros(len(images), 1, device=hidden.device)
    nothing = torch.full((len(images), n_best), -torch.inf, device=hidden.device)
    pause = 1 if watch else _steps_between_looks(hidden.device)
    done = None if pause == 1 else (totals > 0)  # finished images that step on, bool (A, 1)
    kept = _Sentences(written.expand(-1, n_best, -1, -1), nothing, nothing)
    results: list[tuple[Tensor, _Sentences, Tensor]] = []  # images, sentences, finished
    length = 0
    while len(images) and length < max_length:
        logits, hidden = step(ids_of(written[:, :, length, 0]).flatten(), hidden, images)
        broken = no_numbers(logits).view(len(images), -1).any(1, keepdim=True)
        if done is not None:
            broken &= ~done
        log_probs = rules.log_probs(logits, length)
        if options.no_repeat_ngram_size:
            prefixes = ids_of(written[:, :, 1 : 1 + length, 0]).flatten(0, 1)
            _block_repeats(log_probs, prefixes, options.no_repeat_ngram_size)
        length += 1
        ended, written, totals, rows = _extend(
            written, totals, log_probs, length, rules, options, watch, done
        )
        if ended is not None:
            kept = kept.beside(ended).best(n_best)
        # Comparisons with NaN are false, so the search of a broken image ends here.
        totals, *of_kept = (
            numbers.masked_fill(broken, torch.nan) for numbers in (totals, kept.totals, kept.scores)
        )
        kept = _Sentences(kept.written, *of_kept)

        # Log-probabilities only fall, so this is the upper bound of a live prefix's score.
        unfinished = totals[:, 0] / math.pow(max_length, penalty) > kept.scores[:, -1]
        if options.beam_size == 1:  # greedy search stops at the first end token
            unfinished &= kept.totals[:, 0] == -torch.inf
        if done is not None:
            done = ~unfinished[:, None]
        if length % pause:
            hidden = hidden.index_select(1, rows.flatten())
            continue
        rest = unfinished.nonzero().squeeze(1)
        if not len(rest):
            break
        if len(rest) < len(images):  # finished images take no further steps
            ready = (~unfinished).nonzero().squeeze(1)
            of_ready = kept.select(ready)
            results.append((images[ready], of_ready, of_ready.totals > -torch.inf))
            images, kept = images[rest], kept.select(rest)
            written, totals, rows = written[rest], totals[rest], rows[rest]
            done = None if done is None else done[rest]
        hidden = hidden.index_select(1, rows.flatten())

    cut_off = _Sentences(written, totals, totals / math.pow(length, penalty))
    results.append((images, *_fill_with_cut_off(kept, cut_off)))
    return rules.unpenalized(_in_order(results, length, ids.eos_id))


def _steps_between_looks(device: torch.device) -> int:
    """Return after how many steps finished images are taken out; the processor knows at once."""
    return 1 if device.type == "cpu" else GPU_STEPS


def _extend(
    written: Tensor,
    totals: Tensor,
    log_probs: Tensor,
    length: int,
    rules: TokenRules,
    options: DecodingConfig,
    watch: Callable[[Extensions], None] | None,
    done: Tensor | None,
) -> tuple[_Sentences | None, Tensor, Tensor, Tensor]:
    """Extend every prefix by every token, and separate finished and live extensions.

    Args:
        written: live prefixes, (A, W, 1+max_length, 1+C).
        totals: log-probabilities of the prefixes, (A, W).
        log_probs: log-probabilities of the next token, (A*W, V); overwritten.
        length: tokens of an extended prefix.
        rules: hold the end token, and the token of a given start.
        options: search settings.
        watch: see `beam_search`.
        done: images whose prefixes stay dead, bool (A, 1); None: looks whether a prefix ended.

    Returns:
        The finished among the K best extensions, if any; the K best live extensions as `written`
        and `totals`; and the row of `log_probs` that each of these extends, int64 (A, K).
    """
    (num_images, width), beam_size = totals.shape, options.beam_size
    prefixes, before = written.flatten(0, 1), totals
    if choices := written.shape[3] - 1:
        prefixes[:, length, 1:] = to_keys(*top_tokens(log_probs, choices))
    rules.penalize(log_probs, prefixes[:, 1:length, 0])
    rules.force(log_probs, length - 1)
    log_probs += totals.view(-1, 1)
    # Each prefix has one end, so the 2K best extensions hold the K best without an end.
    extensions = log_probs.view(num_images, -1)  # A, W*V
    totals, places = top_tokens(extensions, min(2 * beam_size, extensions.shape[1]))
    if done is not None:  # dead prefixes change nothing any more, whatever overflows there
        totals = totals.masked_fill(done, -torch.inf)
    beams = places.div(log_probs.shape[1], rounding_mode="floor")
    token_ids = places - beams * log_probs.shape[1]
    rows = beams + torch.arange(0, len(log_probs), width, device=beams.device)[:, None]
    # Differences of the totals add up to the last total; rounding lost a part of `log_probs`.
    keys = to_keys(totals - before.gather(1, beams), token_ids)

    ends = token_ids == rules.eos_id
    ended = None
    if done is not None or ends[:, :beam_size].any():
        written = prefixes[rows[:, :beam_size]]
        written[:, :, length, 0] = keys[:, :beam_size]
        of_ended = totals.masked_fill(~ends, -torch.inf)[:, :beam_size]
        ended = _Sentences(written, of_ended, of_ended / math.pow(length, options.length_penalty))
    live = ends.byte().sort(dim=1, stable=True).indices[:, :beam_size]
    if watch is not None:
        watch(Extensions(totals, keys, beams, live))
    totals = totals.masked_fill(ends, -torch.inf).gather(1, live)
    rows = rows.gather(1, live)
    written = prefixes[rows]
    written[:, :, length, 0] = keys.gather(1, live)
    return ended, written, totals, rows


def _block_repeats(log_probs: Tensor, prefixes: Tensor, size: int) -> None:
    """Set every token that repeats an n-gram of its prefix, (N, T), to -inf in (N, V), in place."""
    num_tokens = prefixes.shape[1]
    if num_tokens < size:
        return
    ngrams = prefixes.unfold(1, size, 1)  # N, T-n+1, n
    context = prefixes[:, None, num_tokens - size + 1 :]  # N, 1, n-1
    repeats = (ngrams[:, :, :-1] == context).all(dim=2)
    penalties = torch.zeros_like(repeats, dtype=log_probs.dtype).masked_fill(repeats, -torch.inf)
    log_probs.scatter_add_(1, ngrams[:, :, -1], penalties)


def _fill_with_cut_off(kept: _Sentences, cut_off: _Sentences) -> tuple[_Sentences, Tensor]:
    """Fill empty places with sentences that max_length cut off; return also which are finished."""
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
    images, sentences, finished = zip(*results, strict=True)
    order = torch.cat(images).argsort()
    written, totals, scores = (torch.cat(column)[order] for column in zip(*sentences, strict=True))
    written = written[:, :, 1 : 1 + length]
    lengths = (ids_of(written[..., 0]) != eos_id).sum(2)
    return Hypotheses(written, lengths, totals, scores, torch.cat(finished)[order])
