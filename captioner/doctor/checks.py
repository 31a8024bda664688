"""What can be wrong with a captioner, each as one small check over arrays.

A healthy model's captions follow the image: its features are those of the image, the features
reach the decoder's first hidden state, and the captions change with it. Each check looks at one
link of that chain, and says in one line what it found and in another what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from captioner.system.foreign import excerpt

Floats = NDArray[np.floating[Any]]
Status = Literal["ok", "warning", "problem"]

TOLERANCE = 0.05  # of a feature vector's length; bf16 on another machine differs by about 0.01
SHIFTED = (0.5, 1.0)  # standard deviations, warning and problem: a dev split is about 0.05 off
FALL = (0.3, 0.1)  # share of the score that must be lost when images are shuffled
COMMONEST = (0.2, 0.5)  # share of images that get the commonest caption
UNMOVED = (0.1, 0.5)  # share of units that never move
COVERAGE = (0.9, 0.75)  # share of the words people used that the model knows


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what was looked at.
        status: "ok", "warning" or "problem".
        finding: one line: what was found.
        advice: one line: what to do; empty where nothing has to be done.
    """

    name: str
    status: Status
    finding: str
    advice: str = ""


OLDER = Check(
    "preprocessing",
    "warning",
    "trained by an older captioner, which resized pictures otherwise and kept no note of how",
    "features differ a little from those of training; train again to be rid of that",
)


def check_preprocessing(
    trained: str | None,
    here: str,
    arithmetic: str,
    here_in_it: str,
    changed: Sequence[str] = (),
) -> Check:
    """Compare the encoder with the one the decoder was trained on.

    Args:
        trained: fingerprint kept by the training run; None where there is no run.
        here: fingerprint of the model's own encoder, preprocessing and weights included.
        arithmetic: of training, such as "bf16 on cuda".
        here_in_it: fingerprint of the model's own encoder in the arithmetic of training.
        changed: what is known to differ, for example "preprocess.mean: (0.5, ...), was (0.4, ...)".
    """
    name = "preprocessing"
    if trained is None:
        return Check(
            name,
            "warning",
            "no training run around this model, so there is nothing to compare with",
            "point --model at the run folder, if you have it; the next checks tell as much",
        )
    if trained == here:
        return Check(name, "ok", "encoder, weights, transform and precision are those of training")
    if trained == here_in_it:
        return Check(name, "ok", f"as in training, which computed features in {arithmetic}")
    what = "; ".join(changed) or "its weights or its transform"
    return Check(
        name,
        "problem",
        f"not the encoder of training: changed: {what}",
        "restore preprocessor_config.json, config.json and model.safetensors, or train again",
    )


def check_store(stored: Floats, fresh: Floats) -> Check:
    """Compare stored features with those computed from the images again.

    Args:
        stored: (n, F).
        fresh: (n, F), of the same images.
    """
    stored, fresh = stored.astype(np.float64), fresh.astype(np.float64)
    length = np.maximum(np.linalg.norm(fresh, axis=1), 1e-12)
    error = np.linalg.norm(stored - fresh, axis=1) / length
    wrong = int((~(error <= TOLERANCE)).sum())
    if not wrong:
        finding = (
            f"{len(fresh):,} features computed again from their images agree (largest error "
            f"{error.max():.1%} of a feature's length)"
        )
        return Check("feature store", "ok", finding)
    return Check(
        "feature store",
        "problem",
        f"{wrong:,} of {len(fresh):,} stored features are not those of their images",
        "`captioner features --clear NAME` (named above) has them computed again; then train again",
    )


def check_features(features: Floats, mean: Floats, std: Floats) -> Check:
    """Compare the features with those the decoder was trained on, and with each other.

    Args:
        features: of a split, (N, F).
        mean: of each dimension over the training images, (F,).
        std: likewise.
    """
    name = "features"
    values = features.astype(np.float64)
    moving = np.ptp(values, axis=0) > 0
    if len(values) > 1 and not moving.any():
        return Check(
            name,
            "problem",
            "every image has the same features",
            "look at the pictures: are they all alike? If not, the CNN's weights are broken",
        )
    squared = float(np.mean(((values.mean(axis=0) - mean) / std) ** 2))
    # The mean of N images varies by itself, with variance 1 / N.
    shift = max(0.0, squared - 1 / len(values)) ** 0.5
    still = 1 - moving.mean()
    finding = (
        f"{shift:.2f} standard deviations off the training images on average; "
        f"{still:.0%} of {len(moving):,} dimensions never move"
    )
    if (status := _above(shift, SHIFTED)) != "ok":
        advice = "are these pictures of another kind? If not, compare preprocessing with training's"
        return Check(name, status, finding, advice)
    if (status := _above(float(still), (0.5, 0.95))) != "ok":
        return Check(name, status, finding, "check encoder.weights; a sound CNN has few such")
    return Check(name, "ok", finding)


def check_units(name: str, low: Floats, high: Floats, advice: str) -> Check:
    """Count the units that are the same wherever one looks.

    Args:
        name: of the check.
        low: smallest value of each unit, (H,).
        high: largest.
        advice: what to do if they are too many.
    """
    still = ~(high - low >= 1e-3)  # so that what is no number counts as well
    finding = f"{int(still.sum()):,} of {len(still):,} units never move"
    status = _above(float(still.mean()), UNMOVED)
    return Check(name, status, finding, "" if status == "ok" else advice)


def check_distinct(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Check:
    """Count the distinct captions of a split.

    Args:
        captions: of each image.
        references: what people wrote about each; if they all wrote the same, so may the model.
    """
    name = "distinct captions"
    (commonest, times), *_ = Counter(captions).most_common(1)
    share = times / len(captions)
    written = Counter(texts[0] for texts in references).most_common(1)[0][1] / len(references)
    finding = (
        f"{len(set(captions)):,} for {len(captions):,} images; the commonest, "
        f"{excerpt(commonest)}, for {share:.1%}"
    )
    status = _above(share, COMMONEST) if share > 2 * written else "ok"
    advice = "train longer, at a lower rate or with more data; the checks above may say why"
    return Check(name, status, finding, "" if status == "ok" else advice)


def check_shuffle(real: float, shuffled: Sequence[float], metric: str) -> Check:
    """Compare the score with that of the same captions given to other images.

    Args:
        real: score of the captions.
        shuffled: scores after images were shuffled between captions.
        metric: name of the score.
    """
    name = "shuffled images"
    by_chance = float(np.mean(shuffled))
    finding = f"{metric} {real:.3f} falls to {by_chance:.3f} when captions go to other images"
    advice = (
        "the captions do not depend on the image: see the checks above; if all are ok, train "
        "longer, or raise decoder.hidden_size"
    )
    if not real > 0:
        return Check(name, "problem", f"{metric} is 0: no caption resembles its references", advice)
    status = _below(1 - by_chance / real, FALL)
    if status == "problem":
        finding = f"{metric} {real:.3f} stays at {by_chance:.3f} when captions go to other images"
    return Check(name, status, finding, "" if status == "ok" else advice)


def check_vocabulary(coverage: float, used: int, size: int) -> Check:
    """Look at the words the model knows and uses.

    Args:
        coverage: share of the words in the references that it knows, 0 to 1.
        used: distinct words of its captions.
        size: words it knows.
    """
    status = _below(coverage, COVERAGE)
    return Check(
        "vocabulary",
        status,
        f"knows {coverage:.1%} of the words people used; its captions use {used:,} of its {size:,}",
        "" if status == "ok" else "lower text.min_count, or train on captions about such images",
    )


def verdict(checks: Sequence[Check]) -> str:
    """Say in plain words what the checks come to; the first problem is the one to mend first."""
    problems = [check for check in checks if check.status == "problem"]
    warnings = [check for check in checks if check.status == "warning"]
    if problems:
        names = ", ".join(check.name for check in problems)
        return (
            f"ill: {len(problems)} problem(s) ({names}). Start with {problems[0].name}: "
            f"{problems[0].advice}."
        )
    if warnings:
        names = ", ".join(check.name for check in warnings)
        return f"the captions follow the images; look at {len(warnings)} warning(s): {names}."
    return "healthy: the captions follow the images. There is nothing to do."


def _above(value: float, limits: tuple[float, float]) -> Status:
    """Judge a value that should be small; one that is no number is a problem."""
    warning, problem = limits
    if not value < problem:
        return "problem"
    return "warning" if value >= warning else "ok"


def _below(value: float, limits: tuple[float, float]) -> Status:
    """Judge a value that should be large."""
    warning, problem = limits
    return _above(-value, (-warning, -problem))
