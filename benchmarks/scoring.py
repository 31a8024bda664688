"""Time scoring with intervals, compared with pycocoevalcap without intervals, in one run.

    python benchmarks/scoring.py [--images 1000]

Targets: all metrics without Java, with intervals: at most 1.5 times the wall time of
pycocoevalcap's pure-Python BLEU + ROUGE + CIDEr. CIDEr-D rewards of 1,000 captions with 5
references each: at most 0.1 s. 1,000 resamples of 5,000 images: at most 5 s. The exit code is 1 if
a target is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioner.metrics import CiderD, score_captions
from captioner.metrics.bootstrap import resampled_sums

Caption = list[str]


def random_captions(images: int) -> tuple[list[Caption], list[list[Caption]]]:
    """Draw captions with the lengths and the skewed word frequencies of real captions."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    frequencies = [1 / (rank + 3) for rank in range(len(words))]

    def caption() -> Caption:
        return rng.choices(words, frequencies, k=rng.randint(6, 16))

    references = [[caption() for _ in range(5)] for _ in range(images)]
    hypotheses = [
        [word if rng.random() < 0.7 else rng.choice(words) for word in captions[0]]
        for captions in references
    ]
    return hypotheses, references


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest wall time of several calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    images = parser.parse_args().images
    hypotheses, references = random_captions(images)
    truths = {i: [" ".join(c) for c in captions] for i, captions in enumerate(references)}
    written = {i: [" ".join(c)] for i, c in enumerate(hypotheses)}

    def official() -> None:
        Bleu(4).compute_score(truths, written, verbose=0)
        Rouge().compute_score(truths, written)
        Cider().compute_score(truths, written)

    baseline = seconds(official)
    plain = seconds(lambda: score_captions(hypotheses, references))
    intervals = seconds(lambda: score_captions(hypotheses, references, resamples=1000))
    reward = CiderD(references)
    rewarding = seconds(lambda: reward.score(hypotheses))
    statistics = np.ones((5000, 16))
    resampling = seconds(lambda: resampled_sums(statistics, resamples=1000, seed=0), repeats=3)

    print(f"{images} captions, 5 references each (seconds, best of 5)")
    print(f"pycocoevalcap BLEU + ROUGE + CIDEr, no intervals  {baseline:.3f}  1.00x")
    print(f"captioner, all four, no intervals                 {plain:.3f}  {plain / baseline:.2f}x")
    print(
        f"captioner, all four, intervals of 1,000 resamples {intervals:.3f}  "
        f"{intervals / baseline:.2f}x  (at most 1.50x)"
    )
    print(f"CIDEr-D reward, references prepared               {rewarding:.3f}  (at most 0.100)")
    print(f"1,000 resamples of 5,000 images, 16 statistics    {resampling:.3f}  (at most 5.000)")
    kept = intervals <= 1.5 * baseline and rewarding <= 0.1 and resampling <= 5
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
