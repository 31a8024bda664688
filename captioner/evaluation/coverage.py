"""How good a search's n-best lists are: the scores of the best caption in each.

An oracle that knows the references picks for every image the caption of highest CIDEr, as is done
with the n-best lists of speech recognition and translation. It is no score of a system, but shows
how much a better ranking of the same lists could gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from captioner.metrics import PreparedReferences, Score, score_captions
from captioner.metrics.references import Tokens


def oracle(
    n_best: Sequence[Sequence[Tokens]],
    references: PreparedReferences,
    *,
    decode: str,
    split: str,
    resamples: int = 0,
) -> dict[str, Score]:
    """Score the best caption of each list.

    Args:
        n_best: the captions of each image as tokens, one at least.
        references: of the images.
        decode: how the captions were searched for, for the signature.
        split: the data split, for the signature.
        resamples: of the bootstrap behind the intervals.

    Returns:
        `oracle_bleu_4` and `oracle_cider`.
    """
    longest = max(map(len, n_best))
    ranks = [
        [captions[min(rank, len(captions) - 1)] for captions in n_best] for rank in range(longest)
    ]
    each = [
        score_captions(captions, references, metrics=["cider"])["cider"].per_image
        for captions in ranks
    ]
    best = np.argmax(each, axis=0).tolist()
    chosen = [ranks[rank][image] for image, rank in enumerate(best)]
    scores = score_captions(
        chosen,
        references,
        metrics=["bleu", "cider"],
        resamples=resamples,
        decode=f"{decode},n{longest}",
        split=split,
    )
    return {
        f"oracle_{name}": replace(
            scores[name],
            name=f"oracle_{name}",
            # Another name, so that nobody compares it with what a system reached.
            signature=f"oracle{scores[name].signature}",
        )
        for name in ("bleu_4", "cider")
    }
