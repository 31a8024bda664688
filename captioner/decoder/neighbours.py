"""Rank candidate captions by the captions of similar training images.

A candidate's vote is its CIDEr against the captions of the nearest training images. The vote is
added to the model's score. Two images are similar if the decoder's initial states h are similar.

Source: Devlin et al. (2015), "Exploring Nearest Neighbor Approaches for Image Captioning", who
use votes alone.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captioner.decoder.decoder import Decoder
from captioner.decoder.packing import check_kinds
from captioner.metrics.cider import TfIdf
from captioner.metrics.references import MAX_ORDER, PreparedReferences
from captioner.search import Hypotheses
from captioner.search.common import finished_first

MULTIPLIER = 6_364_136_223_846_793_005  # of Knuth's MMIX generator; products wrap around
NEAREST = 32  # training images that vote
TEMPERATURE = 0.05  # an image's weight is softmax(cosine / TEMPERATURE)
MIN_IMAGES = 2  # an n-gram of fewer images is dropped: four fifths of all, no effect on scores
UNIT = 2**40  # votes are summed as integers in units of 1 / UNIT
MAX_SUMS = 2**22  # sums, one per image and n-gram, in memory at once; more are slower to clear
KINDS = {
    "states": (torch.float16, 2),
    "keys": (torch.int64, 1),
    "idf": (torch.float32, 1),
    "starts": (torch.int64, 1),
    "ngrams": (torch.int32, 1),
    "weights": (torch.float16, 1),
}


class Neighbours(NamedTuple):
    """The initial states h of R training images, and the n-grams of their captions.

    The weight of an n-gram in an image is its mean TF-IDF over the image's captions and all orders.
    Each caption's vector of each order is first scaled to length 1.
    """

    # h of all layers, scaled to length 1, float32 (R, D); float16 on disk. An LSTM's older models
    # have c as well.
    states: Tensor
    keys: Tensor  # of G n-grams, int64 (G,), ascending
    idf: Tensor  # log(R / number of images with the n-gram), float32 (G,)
    starts: Tensor  # image r has entries starts[r] to starts[r + 1] - 1, int64 (R + 1,)
    ngrams: Tensor  # the n-gram of each entry, an index into keys, int32 (E,)
    weights: Tensor  # TF-IDF weight of each entry's n-gram in its image, float16 (E,)

    @classmethod
    @torch.inference_mode()
    def gather(
        cls, decoder: Decoder, features: Iterable[Tensor], ngrams: Mapping[str, Tensor]
    ) -> Self:
        """Compute the initial states h of R images, and set evaluation mode.

        Args:
            decoder: the decoder.
            features: batches of features, (B, F), on the decoder's device.
            ngrams: n-grams of the images' captions, from `count_ngrams`.
        """
        decoder.eval()
        h = (flat(decoder.init_hidden(batch)[: decoder.num_layers]) for batch in features)
        return cls(torch.cat([functional.normalize(each) for each in h]), **ngrams)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, for `read`."""
        return self._replace(states=self.states.half())._asdict()

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], state_sizes: Container[int]) -> Self:
        """Build neighbours from untrusted tensors; D is one of the state sizes.

        Raises:
            ValueError: if a tensor is missing, or does not fit the others or the decoder.
        """
        check_kinds(tensors, KINDS)
        stored = cls(**{name: tensors[name] for name in KINDS})
        states, starts, entries = stored.states, stored.starts, len(stored.ngrams)
        fits = (
            states.shape[1] in state_sizes
            and 0 < len(states) == len(starts) - 1
            and len(stored.keys) == len(stored.idf)
            and len(stored.weights) == entries
            and int(starts[0]) == 0
            and int(starts[-1]) == entries
            and bool((starts[1:] >= starts[:-1]).all())  # a difference may overflow
            and bool((stored.keys[1:] > stored.keys[:-1]).all())
            and bool(((stored.ngrams >= 0) & (stored.ngrams < len(stored.keys))).all())
            and bool(((stored.idf >= 0) & (stored.idf <= math.log(len(states)) + 1e-3)).all())
            and bool(((stored.weights >= 0) & (stored.weights <= 1)).all())
        )
        if not fits:
            raise ValueError("neighbours: its tensors do not fit each other or the decoder")
        return stored._replace(states=states.float())

    def to(self, device: torch.device) -> Neighbours:
        """Move to a device."""
        return Neighbours(*(tensor.to(device) for tensor in self))

    def rank(self, hypotheses: Hypotheses, hidden: Tensor, weight: float) -> Hypotheses:
        """Rank hypotheses by score + weight x vote, unfinished ones last.

        Args:
            hypotheses: n hypotheses for each of B images.
            hidden: initial states of the images, (S, B, H), h first; of an ensemble, (1, B, all
                states), those of the model with these neighbours first.
            weight: weight of the votes; a vote is 0 to 1.
        """
        states = flat(hidden)[:, : self.states.shape[1]]
        votes = self.votes(hypotheses.token_ids, hypotheses.lengths, states)
        return finished_first(hypotheses, hypotheses.scores + weight * votes)

    def votes(self, token_ids: Tensor, lengths: Tensor, states: Tensor) -> Tensor:
        """Compute the CIDEr of sentences against the captions of the nearest training images.

        Source: CIDEr (Vedantam et al., 2015).

        Args:
            token_ids: n sentences for each of B images, int64 (B, n, T).
            lengths: words of each sentence, int64 (B, n).
            states: initial states of the images, (B, D).

        Returns:
            CIDEr without the usual factor 10, float32 (B, n), 0 to 1.
        """
        if not len(self.keys):
            return torch.zeros(lengths.shape, device=lengths.device)
        size = max(1, MAX_SUMS // len(self.keys))
        cosines = functional.normalize(states.float()) @ self.states.t()
        nearest = cosines.topk(min(NEAREST, len(self.states)), dim=1)
        nearness = (nearest.values / TEMPERATURE).softmax(1)
        inputs = (token_ids, lengths, nearest.indices, nearness)
        batches = zip(*(values.split(size) for values in inputs), strict=True)
        return torch.cat([self._votes(*batch) for batch in batches])

    def _votes(
        self, token_ids: Tensor, lengths: Tensor, nearest: Tensor, nearness: Tensor
    ) -> Tensor:
        num_images, num_ngrams = len(nearest), len(self.keys)
        # Integers: a GPU adds in any order, which changes the sums of floats.
        summed = torch.zeros(num_images, num_ngrams, dtype=torch.int64, device=nearest.device)
        first, last = self.starts[nearest.flatten()], self.starts[nearest.flatten() + 1]
        counts = last - first
        # All entries of all neighbours, one after the other.
        entries = torch.arange(int(counts.sum()), device=nearest.device)
        entries += (first - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        images = torch.arange(num_images, device=nearest.device).repeat_interleave(nearest.shape[1])
        places = images.repeat_interleave(counts) * num_ngrams + self.ngrams[entries]
        weights = self.weights[entries].float() * nearness.flatten().repeat_interleave(counts)
        summed.view(-1).index_add_(0, places, (weights * UNIT).long())

        rare = math.log(len(self.states))  # the idf of an unknown n-gram
        total = torch.zeros(lengths.shape, device=nearest.device)
        for order in range(1, min(MAX_ORDER, token_ids.shape[2]) + 1):
            keys, real = ngram_keys(token_ids, lengths, order)  # b, n, P
            where = torch.searchsorted(self.keys, keys).clamp(max=num_ngrams - 1)
            known = real & (self.keys[where] == keys)
            idf = torch.where(known, self.idf[where], rare) * real
            times = ((keys[..., :, None] == keys[..., None, :]) & real[..., None, :]).sum(3)
            norms = (times * idf.square()).sum(2).sqrt().clamp(min=1e-9)
            by_ngram = summed.gather(1, where.flatten(1)).view_as(idf) / UNIT * known
            total += (by_ngram * idf).sum(2) / norms
        return total


def ngram_keys(token_ids: Tensor, lengths: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Hash the n-grams of sentences.

    Args:
        token_ids: int64 (..., T), T at least `order`.
        lengths: tokens of each sentence without padding, int64 (...).
        order: n, at least 1.

    Returns:
        keys: int64 (..., T-n+1); n-grams of different orders have different keys.
        real: bool, the shape of keys; False if the n-gram holds padding.
    """
    grams = token_ids.unfold(-1, order, 1)
    keys = torch.full_like(grams[..., 0], order)
    for place in range(order):
        keys = keys * MULTIPLIER + grams[..., place]
    places = torch.arange(keys.shape[-1], device=keys.device)
    return keys, places < (lengths - order + 1)[..., None]


def count_ngrams(token_ids: Tensor, lengths: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Count the n-grams of captions: the fields of `Neighbours` without the states.

    Args:
        token_ids: int64 (N, T), without start token, padded at the end.
        lengths: words of each caption, int64 (N,).
        images: index of each caption's image, int64 (N,); every index from 0 appears.
    """
    captions: list[list[list[str]]] = [[] for _ in range(int(images.max()) + 1)]
    for row, length, image in zip(
        token_ids.tolist(), lengths.tolist(), images.tolist(), strict=True
    ):
        captions[image].append([*map(str, row[:length])])
    references = PreparedReferences(captions)
    vectors, counts = TfIdf(references), references.counts
    owners = references.image[counts.caption]
    weights = vectors.weights / np.maximum(vectors.norms[counts.caption, counts.order], 1e-9)
    weights /= references.per_image[owners] * MAX_ORDER

    ids = np.array([int(name) for name in references.words])
    ngrams = [torch.from_numpy(ids[words]) for words in references.ngrams()]
    orders = zip(ngrams, torch.arange(1, MAX_ORDER + 1), strict=True)
    keys = torch.cat([ngram_keys(each, order, int(order))[0][:, 0] for each, order in orders])
    common = torch.from_numpy(np.flatnonzero(vectors.frequency >= MIN_IMAGES))
    common = common[keys[common].argsort()]
    number = torch.full((references.size,), -1)
    number[common] = torch.arange(len(common))
    kept = number[counts.ngram] >= 0
    places, entry = (
        torch.from_numpy(owners)[kept] * len(common) + number[counts.ngram][kept]
    ).unique(return_inverse=True)
    summed = torch.zeros(len(places), dtype=torch.float64)
    summed.index_add_(0, entry, torch.from_numpy(weights)[kept])
    owner = places // max(1, len(common))
    return {
        "keys": keys[common],
        "idf": torch.from_numpy(vectors.idf)[common].float(),
        "starts": functional.pad(owner.bincount(minlength=len(captions)).cumsum(0), (1, 0)),
        "ngrams": (places % max(1, len(common))).int(),
        "weights": summed.half(),
    }


def flat(states: Tensor) -> Tensor:
    """Concatenate the states of each row, (S, B, H) to (B, S * H)."""
    return states.transpose(0, 1).flatten(1)
