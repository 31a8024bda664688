"""Compare captioner's scores and tokens with the official ones on the same inputs.

    python benchmarks/parity.py [--flickr8k FOLDER] [--rounds 50]

Needs `pip install 'captioner[coco,test]'`. Without Java, tokens are not compared. The exit code is
1 if a score differs by more than 1e-6, or if the tokens of a Flickr8k caption differ.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from captioner.metrics import Bleu, score_captions
from captioner.text import tokenize

Caption = list[str]
Captions = tuple[list[Caption], list[list[Caption]]]
BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
TOLERANCE = 1e-6


def random_captions(rng: random.Random, shortest: int) -> Captions:
    """Draw captions of 2 to 60 images from few words, so that n-grams of all lengths match."""
    words = [f"w{i}" for i in range(rng.randint(2, 12))]
    images, references = rng.randint(2, 60), rng.randint(1, 5)

    def caption(least: int) -> Caption:
        return rng.choices(words, k=rng.randint(least, 14))

    return (
        [caption(shortest) for _ in range(images)],
        [[caption(max(1, shortest)) for _ in range(references)] for _ in range(images)],
    )


def ours(captions: Captions) -> dict[str, float]:
    scores = score_captions(*captions, metrics=("bleu", "rouge_l", "cider"))
    return {name: score.value for name, score in scores.items()}


def pycocoevalcap(captions: Captions) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu as OfficialBleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truths = {i: [" ".join(c) for c in references] for i, references in enumerate(captions[1])}
    written = {i: [" ".join(c)] for i, c in enumerate(captions[0])}
    bleu, _ = OfficialBleu(4).compute_score(truths, written, verbose=0)
    return {
        **dict(zip(BLEU, bleu, strict=True)),
        "rouge_l": Rouge().compute_score(truths, written)[0],
        "cider": Cider().compute_score(truths, written)[0],
    }


def nltk(captions: Captions) -> dict[str, float]:
    from nltk.translate.bleu_score import corpus_bleu

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns about scores of 0
        return {
            name: corpus_bleu(captions[1], captions[0], weights=[1 / n] * n)
            for n, name in enumerate(BLEU, 1)
        }


def sacrebleu(captions: Captions) -> dict[str, float]:
    import sacrebleu as package

    written = [" ".join(caption) for caption in captions[0]]
    columns = [[" ".join(c) for c in column] for column in zip(*captions[1], strict=True)]
    options = {"smooth_method": "none", "tokenize": "none", "force": True}
    return {
        name: package.BLEU(max_ngram_order=n, **options).corpus_score(written, columns).score / 100
        for n, name in enumerate(BLEU, 1)
    }


def unmatched(captions: Captions) -> set[str]:
    """Return the names of BLEU scores that are 0 because an order has no matching n-gram."""
    matched = Bleu(captions[1]).statistics(captions[0]).sum(axis=0)[4:8]
    return {name for n, name in enumerate(BLEU, 1) if (matched[:n] == 0).any()}


def compare_scores(rounds: int) -> float:
    """Print the largest difference of each score over random captions; return the largest.

    If no n-gram of an order matches, BLEU is 0 except in pycocoevalcap, which adds 1e-15 to the
    matches. These sets have separate rows.
    """
    short = [random_captions(random.Random(seed), 0) for seed in range(rounds)]
    long = [random_captions(random.Random(seed), 4) for seed in range(rounds)]
    worst = 0.0
    print(f"{'score':10}{'against':16}{'captions':26}{'sets':>5}  largest difference")
    for scorer, kind, sets in (
        (pycocoevalcap, "of 0 to 14 tokens", short),
        (pycocoevalcap, "of 4 to 14 tokens", long),
        (sacrebleu, "of 0 to 14 tokens", short),
        (sacrebleu, "of 4 to 14 tokens", long),
        (nltk, "of 4 to 14 tokens", long),
    ):
        differences, smoothed = defaultdict(list), defaultdict(list)
        for captions in sets:
            mine, zero = ours(captions), unmatched(captions)
            for name, value in scorer(captions).items():
                is_smoothed = scorer is pycocoevalcap and name in zero
                table = smoothed if is_smoothed else differences
                table[name].append(abs(mine[name] - value))
        for name, values in differences.items():
            print(f"{name:10}{scorer.__name__:16}{kind:26}{len(values):5}  {max(values):.1e}")
            worst = max(worst, *values)
        for name, values in smoothed.items():
            print(
                f"{name:10}{scorer.__name__:16}{'  no match: 0 here':26}{len(values):5}"
                f"  {max(values):.1e}  (due to the 1e-15; not counted)"
            )
    return worst


def compare_tokens(path: Path) -> int:
    """Return and print the number of captions whose tokens differ from Java's."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = path.read_text(encoding="utf-8").split("\n")
    captions = [line.split("\t", 1)[1] for line in lines if line]
    official = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    different = [c for i, c in enumerate(captions) if tokenize(c) != official[i][0].split()]
    print(f"tokens of {path.name}: {len(different)} of {len(captions)} captions differ from Java's")
    for caption in different[:20]:
        print(f"  {caption!r}: {tokenize(caption)}")
    return len(different)


def main() -> int:
    shared = os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[2] / "shared")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flickr8k", type=Path, default=Path(shared) / "flickr8k")
    parser.add_argument("--rounds", type=int, default=50, help="random sets of captions")
    options = parser.parse_args()
    np.seterr(all="raise", under="ignore", divide="ignore")
    failed = compare_scores(options.rounds) > TOLERANCE
    path = options.flickr8k / "Flickr8k.token.txt"
    if shutil.which("java") is None or not path.is_file():
        print(f"tokens: not compared; needs java on the PATH and {path}")
    else:
        failed |= compare_tokens(path) > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
