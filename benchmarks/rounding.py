"""Effect of bf16 on features, captions and scores.

    python benchmarks/rounding.py MODEL [--data FOLDER] [--split dev]

Captions a split three times: all in fp32; features in the encoder's own precision; features and
search in reduced precision. Prints the cosine of each CNN's features to the fp32 features. Prints
for each variant the scores and the number of captions equal to fp32. Features are stored in
`$CAPTIONER_CACHE` in fp16, as for training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import describe_machine
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.data.prepare import open_dataset, read_split
from captioner.encoder.encoder import FrozenEncoder, side_by_side
from captioner.evaluation.evaluate import caption_split
from captioner.metrics import PreparedReferences, score_captions
from captioner.model_config import model_folder
from captioner.run_dir import config_of_model
from captioner.text import PTB, tokenize


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", help="data set folder, if it has moved")
    parser.add_argument("--split", default="dev")
    given = parser.parse_args()
    print(describe_machine())
    config = config_of_model(model_folder(given.model), given.data)
    dataset, captioner = open_dataset(config.data), Captioner.load(given.model)
    encoder = captioner.encoder
    exact = side_by_side([FrozenEncoder(cnn.spec, cnn.state, "fp32") for cnn in encoder.cnns])
    exact.mirrored = encoder.mirrored
    full, rounded = (
        read_split(dataset, given.split, each, PTB, batch_size=config.encoder.batch_size, say=print)
        for each in (exact, encoder)
    )
    sizes = [cnn.feature_size for cnn in encoder.cnns]
    for cnn, a, b in zip(
        encoder.cnns, full.features.split(sizes, 1), rounded.features.split(sizes, 1), strict=True
    ):
        cosines = functional.cosine_similarity(a.double(), b.double())
        print(
            f"{cnn.spec.backbone} ({cnn.spec.weights}), {cnn.dtype}, {len(cosines):,} photographs: "
            f"smallest cosine {cosines.min():.4f}, mean {cosines.mean():.5f}"
        )
    references = PreparedReferences(full.references)
    first: list[str] = []
    for name, table, precision in (
        ("all in fp32", full, "fp32"),
        (f"features in {encoder.dtype}", rounded, "fp32"),
        ("features and search rounded", rounded, "auto"),
    ):
        options = captioner.settings(precision=precision)
        captions = [c[0].text for c in caption_split(captioner, table, options)]
        first = first or captions
        scores = score_captions([*map(tokenize, captions)], references, metrics=("bleu", "cider"))
        same = sum(caption == other for caption, other in zip(captions, first, strict=True))
        shown = "  ".join(f"{key} {scores[key].value:.4f}" for key in ("bleu_1", "bleu_4", "cider"))
        print(f"{name:32} {shown}  {same:,} captions as in fp32")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
