"""Checks of a captioner, each a function of arrays.

The captions of a healthy model depend on the image: the features are correct, the initial hidden
state depends on the features, and the captions depend on the state. Each check tests one link of
this chain.
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
# Limits of warning and problem:
SHIFT = (0.5, 1.0)  # standard deviations; about 0.05 for a dev split
DROP = (0.3, 0.1)  # minimum fraction of the score lost when images are shuffled
MOST_COMMON = (0.2, 0.5)  # fraction of images with the most common caption
CONSTANT = (0.1, 0.5)  # fraction of constant units
CONSTANT_FEATURES = (0.5, 0.95)  # fraction of constant dimensions
COVERAGE = (0.9, 0.75)  # minimum fraction of the references' words in the vocabulary


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check: a line with the finding, and one with the remedy, if needed."""

    name: str
    status: Status
    finding: str
    advice: str = ""


def graded(name: str, status: Status, finding: str, advice: str) -> Check:
    """Return a check that gives advice only if the status is not "ok"."""
    return Check(name, status, finding, "" if status == "ok" else advice)


def check_preprocessing(
    trained: str | None,
    here: str,
    arithmetic: str | None,
    here_in_it: str,
    changed: Sequence[str] = (),
) -> Check:
    """Compare the encoder with the encoder of training, by fingerprint.

    `here` is the model's, `here_in_it` the model's in the arithmetic of training. Without a run,
    `trained` is None; in a run of version 0.1, `arithmetic` is None.
    """
    name = "preprocessing"
    if trained is None:
        return Check(
            name,
            "warning",
            "the model is not in a run folder, so its encoder cannot be compared with training",
            "set --model to the run folder, if there is one; the next checks do not need the run",
        )
    if arithmetic is None:
        return Check(
            name,
            "warning",
            "trained by an older captioner, which resized images otherwise and did not record it",
            "features differ slightly from those of training; train again to remove the difference",
        )
    if trained == here:
        return Check(name, "ok", "encoder, weights, transform and precision are those of training")
    if trained == here_in_it:
        return Check(name, "ok", f"as in training, which computed features in {arithmetic}")
    differences = "; ".join(changed) or "its weights or its transform"
    return Check(
        name,
        "problem",
        f"not the encoder of training: changed: {differences}",
        "restore preprocessor_config.json, config.json and model.safetensors, or train again",
    )


def check_store(stored: Floats, fresh: Floats) -> Check:
    """Compare stored features with newly computed features of the same images, both (n, F)."""
    stored, fresh = stored.astype(np.float64), fresh.astype(np.float64)
    length = np.maximum(np.linalg.norm(fresh, axis=1), 1e-12)
    error = np.linalg.norm(stored - fresh, axis=1) / length
    wrong = int((~(error <= TOLERANCE)).sum())
    finding = (
        f"{len(fresh):,} recomputed features agree (largest error {error.max():.1%} of a "
        f"feature's length)"
    )
    if wrong:
        finding = f"{wrong:,} of {len(fresh):,} stored features do not match their images"
    advice = (
        "delete the store with `captioner features --clear NAME` (NAME is above), then train again"
    )
    return graded("feature store", "problem" if wrong else "ok", finding, advice)


def check_features(features: Floats, mean: Floats, std: Floats) -> Check:
    """Compare the features of a split, (N, F), with the training images, and with each other.

    The mean and the standard deviation, (F,), are those of the training images.
    """
    name = "features"
    values = features.astype(np.float64)
    varying = np.ptp(values, axis=0) > 0
    if len(values) > 1 and not varying.any():
        advice = "look at the images; if they differ, the CNN's weights are broken"
        return Check(name, "problem", "every image has the same features", advice)
    squared = float(np.mean(((values.mean(axis=0) - mean) / std) ** 2))
    # The mean of N images has variance 1 / N.
    shift = max(0.0, squared - 1 / len(values)) ** 0.5
    constant = float(1 - varying.mean())
    finding = (
        f"mean differs from the training images by {shift:.2f} standard deviations; "
        f"{constant:.0%} of {len(varying):,} dimensions are constant"
    )
    if (status := _above(shift, SHIFT)) != "ok":
        advice = "if the images are similar to the training images, compare the preprocessing"
        return Check(name, status, finding, advice)
    advice = "check encoder.weights; they may be broken"
    return graded(name, _above(constant, CONSTANT_FEATURES), finding, advice)


def check_units(name: str, low: Floats, high: Floats, advice: str) -> Check:
    """Count the constant units by their smallest and largest values, both (H,)."""
    constant = ~(high - low >= 1e-3)  # counts NaN too
    finding = f"{int(constant.sum()):,} of {len(constant):,} units are constant"
    return graded(name, _above(float(constant.mean()), CONSTANT), finding, advice)


def check_distinct(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Check:
    """Count the distinct captions, one per image; equal references permit equal captions."""
    (caption, times), *_ = Counter(captions).most_common(1)
    fraction = times / len(captions)
    reference = Counter(texts[0] for texts in references).most_common(1)[0][1] / len(references)
    finding = (
        f"{len(set(captions)):,} for {len(captions):,} images; the most common, "
        f"{excerpt(caption)}, for {fraction:.1%}"
    )
    status = _above(fraction, MOST_COMMON) if fraction > 2 * reference else "ok"
    advice = "train longer, at a lower rate or with more data; the checks above may show why"
    return graded("distinct captions", status, finding, advice)


def check_shuffle(real: float, shuffled: Sequence[float]) -> Check:
    """Compare the CIDEr of the captions with their scores for shuffled images."""
    by_chance = float(np.mean(shuffled))
    status = _below(1 - by_chance / real, DROP) if real > 0 else "problem"
    verb = "stays at" if status == "problem" else "falls to"
    finding = f"cider {real:.3f} {verb} {by_chance:.3f} for shuffled images"
    if not real > 0:
        finding = "cider is 0: no caption resembles its references"
    advice = (
        "the captions do not depend on the image: see the checks above; if all are ok, train "
        "longer, or raise decoder.hidden_size"
    )
    return graded("shuffled images", status, finding, advice)


def check_vocabulary(coverage: float, used: int, size: int) -> Check:
    """Check the vocabulary: its coverage of the references' words, 0 to 1, and its use."""
    finding = (
        f"covers {coverage:.1%} of the reference words; captions use {used:,} of {size:,} entries"
    )
    advice = "lower text.min_count, or train on captions of similar images"
    return graded("vocabulary", _below(coverage, COVERAGE), finding, advice)


def verdict(checks: Sequence[Check]) -> str:
    """Return a summary of the checks; the first problem is the first to repair."""
    problems = [check for check in checks if check.status == "problem"]
    warnings = [check for check in checks if check.status == "warning"]
    names = ", ".join(check.name for check in problems or warnings)
    if problems:
        return (
            f"unhealthy: {len(problems)} problem(s) ({names}). Start with {problems[0].name}: "
            f"{problems[0].advice}."
        )
    if warnings:
        return f"the captions follow the images; look at {len(warnings)} warning(s): {names}."
    return "healthy: the captions follow the images. There is nothing to do."


def _above(value: float, limits: tuple[float, float]) -> Status:
    """Return the status of a value that should be small; NaN is a problem."""
    warning, problem = limits
    if not value < problem:
        return "problem"
    return "warning" if value >= warning else "ok"


def _below(value: float, limits: tuple[float, float]) -> Status:
    """Return the status of a value that should be large."""
    return _above(-value, (-limits[0], -limits[1]))
