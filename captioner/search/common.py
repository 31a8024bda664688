"""Shared by all searches: step, hypotheses, log-probabilities and the roll-out loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from captioner.search.top_tokens import ids_of, log_probs_of, to_keys, top_tokens

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps (token_ids int64 (N,), hidden (L, N, H), images int64 (A,)) to (logits (N, V), hidden).

`images` holds the A images of the rows, by their number at the start: N / A rows each, together.
"""


class SpecialIds(NamedTuple):
    """The token ids that a search treats in a special way."""

    bos_id: int  # start token, the first input; never returned
    eos_id: int  # end token
    suppress_ids: tuple[int, ...] = ()  # tokens never to write; not the end token
    start: tuple[int, ...] = ()  # first tokens of every sentence; not the end token or suppressed
    repeatable: tuple[int, ...] = ()  # tokens that a sentence may repeat without penalty


class Hypotheses(NamedTuple):
    """Up to n sentences for each of B images.

    With a tiny vocabulary there may be fewer than n sentences. An empty place has log-probability
    and score -inf, length 0 and only end tokens, and is not finished. If an image's logits hold NaN
    or +inf, or are all -inf, all its log-probabilities and scores are NaN.
    """

    written: Tensor  # without start token, padded with the end token, int64 (B, n, T, 1 + C):
    # keys (see `top_tokens`) of the token at each place and of the C most probable there
    lengths: Tensor  # number of tokens before the end token, int64 (B, n)
    log_probs: Tensor  # sums of log-probabilities in nats, end token included, float32 (B, n)
    scores: Tensor  # for ranking, float32 (B, n)
    finished: Tensor  # whether the sentence has an end token, bool (B, n)

    @property
    def token_ids(self) -> Tensor:
        """Token ids without start token, padded with the end token, int64 (B, n, T)."""
        return ids_of(self.written[..., 0])

    def take(self, order: Tensor) -> Hypotheses:
        """Return the sentences at indices `order`, int64 (B, m), of each image."""
        written = self.written.take_along_dim(order[:, :, None, None], dim=1)
        return Hypotheses(written, *(column.gather(1, order) for column in self[1:]))


def finished_first(hypotheses: Hypotheses, scores: Tensor) -> Hypotheses:
    """Rank the sentences of each image by new scores, (B, n); unfinished ones come last."""
    by_score = scores.sort(dim=1, descending=True, stable=True).indices
    finished = hypotheses.finished.gather(1, by_score).byte()
    order = by_score.gather(1, finished.sort(dim=1, descending=True, stable=True).indices)
    return hypotheses.take(order)._replace(scores=scores.gather(1, order))


class TokenRules:
    """Which tokens may come next, and which cost a penalty.

    The given start comes first, then no end token before the minimum length. Each earlier use of
    a token in its sentence costs the penalty, if the token is not repeatable.
    """

    def __init__(
        self,
        ids: SpecialIds,
        min_length: int,
        device: torch.device,
        repeat_penalty: float = 0.0,
    ):
        self.eos_id, self._start, self._min_length = ids.eos_id, ids.start, min_length
        self._penalty = repeat_penalty
        free = (*ids.repeatable, ids.eos_id)
        self._free = torch.tensor(free, dtype=torch.int64, device=device)
        never = (*ids.suppress_ids, ids.eos_id)
        self._no_end = torch.tensor(never, dtype=torch.int64, device=device)
        self._suppressed = self._no_end[:-1]

    def log_probs(self, logits: Tensor, length: int) -> Tensor:
        """Compute log-probabilities of the token after `length` tokens; -inf if it may not come.

        The other tokens keep their probabilities, which then sum to less than 1.

        Args:
            logits: of the next token, (N, V).
            length: tokens of every row so far.

        Returns:
            A new tensor, float32 (N, V).
        """
        log_probs = logits.log_softmax(dim=-1, dtype=torch.float32)
        never = self._no_end if length < self._min_length else self._suppressed
        return log_probs.index_fill_(1, never, -torch.inf)

    def force(self, log_probs: Tensor, length: int) -> None:
        """Set all but the token of the start after `length` tokens to -inf in (N, V), in place."""
        if length < len(self._start):
            only = log_probs[:, self._start[length]].clone()
            log_probs.fill_(-torch.inf)[:, self._start[length]] = only

    def penalize(self, log_probs: Tensor, prefixes: Tensor) -> None:
        """Subtract the penalties of tokens after prefixes, keys (N, T), from (N, V), in place."""
        if self._penalty and prefixes.shape[1]:
            token_ids = ids_of(prefixes)
            log_probs.scatter_add_(1, token_ids, -self._costs(token_ids))

    def unpenalized(self, found: Hypotheses) -> Hypotheses:
        """Add the penalties to the log-probabilities again, but not to the scores."""
        if not self._penalty:
            return found
        same = found.token_ids[..., None] == found.token_ids[..., None, :]
        costs = self._costs(found.token_ids) * same.tril(-1).sum(dim=-1)
        written = found.written.clone()
        log_probs = (log_probs_of(written[..., 0]) + costs).clamp_(max=0)
        written[..., 0] = to_keys(log_probs, found.token_ids)
        return found._replace(written=written, log_probs=found.log_probs + costs.sum(dim=-1))

    def _costs(self, token_ids: Tensor) -> Tensor:
        """Return what one earlier use of each token costs, float32."""
        return torch.isin(token_ids, self._free, invert=True).float() * self._penalty


def no_numbers(scores: Tensor) -> Tensor:
    """Find the rows of (N, V) that hold NaN or +inf, or only -inf: bool (N,)."""
    return ~scores.amax(dim=1).isfinite()


def roll_out(
    step: Step,
    hidden: Tensor,
    ids: SpecialIds,
    max_length: int,
    choose: Callable[[Tensor], Tensor],
    copies: int = 1,
    choices: int = 0,
    min_length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Write tokens in each row until every row has its end token or `max_length` tokens.

    Args:
        step: the decoder's step.
        hidden: initial decoder state, (L, N, H), with `copies` rows of each image.
        ids: the special tokens, and the first tokens of every row.
        max_length: at least 1.
        choose: chooses one token per row, float32 (M, V) log-probabilities to int64 (M,).
        copies: rows of an image.
        choices: number C of the most probable tokens to keep for each place, 0 to V.
        min_length: least tokens before the end token, 0 to `max_length`.

    Returns:
        Keys of the tokens and choices, padded with the end token, int64 (N, T, 1 + C), and the sum
        of the tokens' log-probabilities, float32 (N,): NaN if a step has no finite maximum.
    """
    device, rows = hidden.device, hidden.shape[1]
    rules = TokenRules(ids, min_length, device)
    written = torch.full((rows, max_length, 1 + choices), ids.eos_id, device=device)
    totals = torch.zeros(rows, device=device)
    active = torch.arange(rows, device=device)
    images = active // copies
    token_ids = torch.full((rows,), ids.bos_id, device=device)
    length = 0
    while active.numel() and length < max_length:
        logits, hidden = step(token_ids, hidden, images)
        log_probs = rules.log_probs(logits, length)
        if choices:
            written[active, length, 1:] = to_keys(*top_tokens(log_probs, choices))
        rules.force(log_probs, length)
        broken = no_numbers(log_probs)
        # A broken row ends here; `choose` still needs probabilities in it.
        log_probs.masked_fill_(broken[:, None], 0)
        token_ids = choose(log_probs).masked_fill(broken, ids.eos_id)
        chosen = log_probs.gather(1, token_ids[:, None]).squeeze(1)
        before = totals[active]
        after = totals[active] = before + chosen.masked_fill(broken, torch.nan)
        # Differences of the totals add up to the last total; rounding lost a part of `chosen`.
        written[active, length, 0] = to_keys(after - before, token_ids)
        length += 1
        going = (token_ids != ids.eos_id).nonzero().squeeze(1)
        if going.numel() < active.numel():  # finished rows take no further steps
            active, images, token_ids = active[going], images[going], token_ids[going]
            hidden = hidden.index_select(1, going)
    return written[:, :length], totals
