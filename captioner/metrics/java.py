"""METEOR and SPICE, computed by the official Java programs in `pycocoevalcap`.

If a program or Java is missing, the scores are NaN and `note` says what to install.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from captioner.metrics.inputs import MetricInputs
from captioner.metrics.metric import Metric
from captioner.metrics.references import Floats, PreparedReferences, Tokens
from captioner.text import PTB
from captioner.text.languages import is_latin

# English parameters of METEOR 1.5: weights of exact, stem, synonym and paraphrase matches;
# alpha: precision against recall; beta, gamma: fragmentation; delta: content words.
_STAGES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_METEOR_COLUMNS = 23


class _English(Metric):
    """A metric for English captions."""

    def use(self, inputs: MetricInputs, tokenizer: str) -> None:  # noqa: ARG002
        """Refuse captions of another tokeniser than `ptb`, or with few Latin letters, in `note`."""
        title = type(self).__name__.upper()
        if tokenizer != PTB.name:
            self.note = f"{title} knows English only, and text.tokenizer is {tokenizer}"
        elif not is_latin(word for caption in self._references.captions for word in caption):
            self.note = f"{title} knows English only, and most letters are not Latin"


class Meteor(_English):
    """METEOR 1.5: Java finds the matches, Python computes the score, so matches can be resampled.

    Source: Denkowski, Lavie: Meteor universal: language specific translation evaluation for any
    target language, WMT 2014.
    """

    names = ("meteor",)
    formula: ClassVar = {"meteor": "1.5"}

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        super().__init__(references)
        self.note = _missing("METEOR")

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Match each caption with its references: float64 (N, 23); NaN, with a note, on failure."""
        references = self._references
        references.check(hypotheses)
        undefined = np.full((len(hypotheses), _METEOR_COLUMNS), np.nan)
        if self.note:
            return undefined
        lines = [
            " ||| ".join(["SCORE", *map(_text, references.of(image)), _text(hypothesis)])
            for image, hypothesis in enumerate(hypotheses)
        ]
        command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en"]
        try:
            done = subprocess.run(
                [*command, "-norm"],
                cwd=_package() / "meteor",
                input="\n".join(lines) + "\n",
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
            )
            rows = [line.split() for line in done.stdout.splitlines()]
            if len(rows) != len(lines) or any(len(row) != _METEOR_COLUMNS for row in rows):
                raise ValueError(done.stderr or done.stdout)
            table = np.array(rows, np.float64)
        except (OSError, ValueError) as error:
            self.note = f"METEOR failed: {_last_line(str(error))}"
            return undefined
        # A caption that matches completely, in one chunk, has no fragmentation.
        whole = (table[:, 20] == 1) & (table[:, 21:23] == table[:, 0:2]).all(axis=1)
        table[whole, 20] = 0
        return table

    def combine(self, sums: Floats) -> Floats:
        """Compute the score (..., 1) from statistics (..., 23), of one image or summed."""
        length, matches, chunks = sums[..., 0:4], sums[..., 4:20], sums[..., 20]
        stages = matches.reshape(*sums.shape[:-1], 4, 4)  # (stage, content/function of each side)
        precision = _ratio(stages[..., 0], stages[..., 2], length[..., 0], length[..., 2])
        recall = _ratio(stages[..., 1], stages[..., 3], length[..., 1], length[..., 3])
        mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
        matched = sums[..., 21:23].sum(axis=-1) / 2
        fragmentation = _divide(chunks, matched)
        return np.asarray((mean * (1 - _GAMMA * fragmentation**_BETA))[..., None])


class Spice(_English):
    """SPICE: F-score of scene graph propositions, the mean over images.

    Source: Anderson, Fernando, Johnson, Gould: SPICE: semantic propositional image caption
    evaluation, ECCV 2016.
    """

    names = ("spice",)
    formula: ClassVar = {"spice": "1.0"}

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        super().__init__(references)
        self.note = _missing("SPICE")
        if not self.note and not list((_package() / "spice" / "lib").glob("*corenlp*-models.jar")):
            self.note = (
                "SPICE needs the Stanford CoreNLP models: "
                "run python -m pycocoevalcap.spice.get_stanford_models"
            )

    def score(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Return the F-score of each image, float64 (N,); NaN, with a note, on failure."""
        references = self._references
        references.check(hypotheses)
        if not self.note:
            from pycocoevalcap.spice.spice import Spice as Official

            truths = {
                image: [*map(_text, references.of(image))] for image in range(len(hypotheses))
            }
            written = {image: [_text(hypothesis)] for image, hypothesis in enumerate(hypotheses)}
            try:
                _, details = Official().compute_score(truths, written)
                scores = np.array([detail["All"]["f"] for detail in details], np.float64)
                if not (missing := int(np.isnan(scores).sum())):
                    return scores
                self.note = f"SPICE failed: no score for {missing:,} caption(s)"
            except Exception as error:  # pycocoevalcap raises any type for output it cannot read
                self.note = f"SPICE failed: {_last_line(str(error))}"
        return np.full(len(hypotheses), np.nan)


def _missing(metric: str) -> str:
    """Return what a Java metric needs and how to install it; empty if nothing is missing."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return f"{metric} needs pycocoevalcap: pip install 'captioner[coco]'"
    if shutil.which("java") is None:
        return f"{metric} needs Java: install a Java runtime so that `java` is on the PATH"
    return ""


def _package() -> Path:
    """Return the folder of pycocoevalcap, a namespace package without `__file__`."""
    return Path(importlib.import_module("pycocoevalcap").__path__[0])


def _text(tokens: Tokens) -> str:
    """Join tokens, without METEOR's separator "|||"."""
    return " ".join(tokens).replace("|||", "")


def _ratio(content: Floats, function: Floats, length: Floats, functions: Floats) -> Floats:
    """Return weighted matched words / weighted words; content words weigh more."""
    matched = (_STAGES * (_DELTA * content + (1 - _DELTA) * function)).sum(axis=-1)
    return _divide(matched, _DELTA * (length - functions) + (1 - _DELTA) * functions)


def _divide(a: Floats, b: Floats) -> Floats:
    """Return a / b; 0 if b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
