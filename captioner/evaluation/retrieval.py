"""Find the image a caption was written for, and the caption written for an image.

The measure of Hodosh, Young, Hockenmaier (2013), "Framing Image Description as a Ranking Task",
the way Tanti, Gatt, Camilleri (2018), "Where to put the image in an image caption generator", take
it of captioners: the first caption of each of 1,000 images, and every pair's log-likelihood.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from tqdm import tqdm

from captioner import __version__
from captioner.metrics import Score, Signature
from captioner.metrics.bootstrap import interval
from captioner.metrics.references import Floats
from captioner.models.captioner import Captioner
from captioner.models.scoring import log_likelihoods
from captioner.training.prepare import SplitTable

IMAGES: Final = 1000  # at most: how often the right one comes first depends on their number
CUTS: Final = (1, 5, 10)
CHUNK = 50  # captions between two moves of the progress bar


def retrieve(
    captioner: Captioner,
    table: SplitTable,
    *,
    split: str,
    captions_each: int = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Rank the images of a split for each caption, and the captions for each image.

    Images rank by the log-likelihood of the caption given them. For captions that will not do:
    plain ones are probable whatever the image. They rank by how much likelier the image makes
    them than the images do on average, log P(caption | image) - log P(caption) (Mao et al. 2015,
    "Deep Captioning with Multimodal Recurrent Neural Networks"; there the average is over
    training images).

    Args:
        captioner: on its device.
        table: of the split; its first 1,000 images take part.
        split: its name, for the signature.
        captions_each: how many captions of each image take part, from its first on; at least 1.
        resamples: of the bootstrap over images that gives intervals; 0 for none.
        seed: equal seeds give equal intervals.

    Returns:
        `image_r1`, `image_r5`, `image_r10`: the share of captions, 0 to 1, whose image is among
        the first 1, 5, 10; `image_rank`: its median rank, 1 at best. `caption_...`: the same for
        the best-placed caption of each image.
    """
    chosen = [references[:captions_each] for references in table.references[:IMAGES]]
    owners = np.array([image for image, of_image in enumerate(chosen) for _ in of_image])
    tokens = [caption for of_image in chosen for caption in of_image]
    matrix = _matrix(captioner, table.features[:IMAGES], tokens)
    fields: dict[str, str | int | None] = {
        "by": "likelihood",
        "ties": "last",
        "tok": "ptb",
        "split": split,
        "images": len(chosen),
        "captions": len(tokens),
        "v": __version__,
    }
    ranks = np.full(
        (len(chosen), captions_each), np.nan
    )  # images may have fewer captions than others
    place = np.concatenate([np.arange(len(of_image)) for of_image in chosen])
    ranks[owners, place] = image_ranks(matrix, owners)
    scores = _scores("image", ranks, fields, resamples, seed)
    # The number of images would only be a constant.
    ratios = matrix - np.logaddexp.reduce(matrix, axis=0)
    ranks, fields["by"] = caption_ranks(ratios, owners)[:, None], "likelihood_ratio"
    return scores | _scores("caption", ranks, fields, resamples, seed)


def image_ranks(matrix: Floats, owners: np.ndarray) -> Floats:
    """Rank each caption's own image among all by how probable they make the caption.

    Args:
        matrix: log-likelihood of every caption given every image, (N, C).
        owners: int (C,), the image of each caption.

    Returns:
        (C,), from 1; images as good as the right one count as better, so that a model that
        ignores the image comes last and not first.
    """
    own = matrix[owners, np.arange(len(owners))]
    return np.asarray((matrix >= own).sum(0), dtype=np.float64)


def caption_ranks(matrix: Floats, owners: np.ndarray) -> Floats:
    """Rank each image's best own caption among the captions of all other images.

    Args:
        matrix: how well every caption suits every image, (N, C).
        owners: int (C,), the image of each caption; every image has one.

    Returns:
        (N,), from 1; captions as good as the right one count as better.
    """
    is_own = owners == np.arange(len(matrix))[:, None]  # (N, C)
    best = np.where(is_own, matrix, -np.inf).max(1, keepdims=True)
    return np.asarray(1 + ((matrix >= best) & ~is_own).sum(1), dtype=np.float64)


def _matrix(captioner: Captioner, features: torch.Tensor, tokens: list[list[str]]) -> Floats:
    """Return the log-likelihood of every caption given every image, (N, C)."""
    ids = [captioner.vocabulary.encode(caption) for caption in tokens]
    with torch.inference_mode():
        hidden = captioner.decoder.init_hidden(features.to(captioner.device))
    matrix = np.empty((len(features), len(ids)))
    # In the order of their words, so that captions that start alike are read together.
    order = sorted(range(len(ids)), key=ids.__getitem__)
    with tqdm(total=len(ids), desc="retrieval", unit="caption", disable=None) as bar:
        for first in range(0, len(ids), CHUNK):
            some = order[first : first + CHUNK]
            part = log_likelihoods(captioner.decoder, hidden, [ids[i] for i in some])
            matrix[:, some] = part.double().cpu().numpy()
            bar.update(len(some))
    return matrix


def _scores(
    found: str, ranks: Floats, fields: dict[str, str | int | None], resamples: int, seed: int
) -> dict[str, Score]:
    """Make scores of the ranks of each image's queries, (N, K), NaN where it has fewer than K."""
    values, per_image = _measures(ranks.reshape(-1)), _measures(ranks)
    intervals = None
    if resamples and len(ranks) > 1:
        drawn = np.random.default_rng(seed).integers(len(ranks), size=(resamples, len(ranks)))
        intervals = interval(_measures(ranks[drawn].reshape(resamples, -1))).tolist()
    names = [f"{found}_r{cut}" for cut in CUTS] + [f"{found}_rank"]
    return {
        name: Score(
            name,
            float(values[i]),
            per_image[:, i],
            tuple(intervals[i]) if intervals else None,
            str(Signature.build(name.replace("_", ""), fields)),
        )
        for i, name in enumerate(names)
    }


def _measures(ranks: Floats) -> Floats:
    """Return recall at each cut and the median rank: of (..., Q), NaN for none, to (..., 4)."""
    queries = (~np.isnan(ranks)).sum(-1)
    recalls = [(ranks <= cut).sum(-1) / queries for cut in CUTS]
    return np.stack([*recalls, np.nanmedian(ranks, axis=-1)], axis=-1)
