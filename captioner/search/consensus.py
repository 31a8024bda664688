"""Choosing among candidates the one that the others agree with most.

The most probable sentence is often a bland one that shares little with the rest of what the model
would say. Minimum Bayes risk takes the model's own candidates for references instead, and picks
the sentence that scores best against them (Kumar and Byrne, 2004, "Minimum Bayes-Risk Decoding for
Statistical Machine Translation"; for captions Devlin et al., 2015, "Exploring Nearest Neighbor
Approaches for Image Captioning").
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.search.common import Hypotheses, finished_first
from captioner.search.ngrams import MAX_ORDER, MULTIPLIER, ngram_keys

SPREAD = 6.0  # tokens; CIDEr-D's tolerance of other lengths
ROOM = 2**28  # pairs of places of hypotheses, which are compared at once


def by_consensus(found: Hypotheses, temperature: float) -> Hypotheses:
    """Rank hypotheses by their expected similarity to one another.

    Similarity is that of CIDEr-D (Vedantam et al., 2015) with all n-grams of equal weight: the
    clipped cosine of n-gram counts, averaged over n = 1 to 4, times a penalty for another length.
    The finished are weighted by softmax(score / temperature), the unfinished and empty by nothing.

    Args:
        found: n hypotheses for each of B images.
        temperature: of the weights, above 0; small trusts the scores, large counts heads.

    Returns:
        The same hypotheses, the finished first, most agreed upon first; scores are expected
        similarities, 0 to 1.
    """
    real = found.log_probs > -torch.inf
    trusted = real & (found.finished | ~found.finished.any(1, keepdim=True))
    weights = (found.scores / temperature).masked_fill(~trusted, -torch.inf).softmax(1).nan_to_num()
    size = max(1, ROOM // found.token_ids[0].numel() ** 2)
    parts = zip(found.token_ids.split(size), found.lengths.split(size), strict=True)
    similarity = torch.cat([_similarity(*part) for part in parts])
    agreed = (similarity * weights[:, None, :]).sum(2).masked_fill(~real, -torch.inf)
    return finished_first(found, agreed)


def _similarity(token_ids: Tensor, lengths: Tensor) -> Tensor:
    """Compare all hypotheses of an image with one another, float32 (B, n, n), 0 to 1."""
    total = torch.zeros(*lengths.shape, lengths.shape[1], device=lengths.device)
    for order in range(1, min(MAX_ORDER, token_ids.shape[2]) + 1):
        keys, real = ngram_keys(token_ids, lengths, order)
        # The k-th time that a sentence holds an n-gram is unlike the first: shared keys are then
        # the clipped matches.
        earlier = torch.ones(keys.shape[2], keys.shape[2], device=keys.device).tril(-1).bool()
        again = ((keys[..., :, None] == keys[..., None, :]) & earlier).sum(3)
        keys = keys * MULTIPLIER + again
        pairs = keys[:, :, None, :, None] == keys[:, None, :, None, :]  # B, n, n, P, P
        shared = (pairs & real[:, :, None, :, None] & real[:, None, :, None, :]).sum((3, 4))
        count = real.sum(2)
        norms = (count[:, :, None] * count[:, None, :]).clamp(min=1).sqrt()
        total += shared / norms / MAX_ORDER
    apart = (lengths[:, :, None] - lengths[:, None, :]).float()
    return total * torch.exp(-apart.square() / (2 * SPREAD**2))
