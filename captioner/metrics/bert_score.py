"""BERTScore: words of a caption matched with those of references by a language model's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.inputs import BertVectors, MetricInputs, SystemCaptions, TokenVectors
from captioner.metrics.metric import Metric, as_written, with_count
from captioner.metrics.references import Floats, Tokens

BLOCK = 32  # images whose vectors are in memory at once


class BertScore(Metric):
    """Precision, recall and F1 of BERTScore, -1 to 1; a caption without a word scores 0.

    Precision: the mean over the caption's tokens of the highest cosine with a token of the
    reference; recall: the other way round. Tokens are not weighted by idf, nor scores rescaled.
    Of several references the best counts, for each of the three, as in the paper's program.

    Source: Zhang, Kishore, Wu, Weinberger, Artzi: BERTScore: evaluating text generation with BERT,
    ICLR 2020.
    """

    names = ("bert_precision", "bert_recall", "bert_f1")
    formula: ClassVar = {"idf": "no"}
    _bert: BertVectors | None = None
    _written: Sequence[Sequence[str]] = ()

    def use(self, inputs: MetricInputs, tokenizer: str) -> None:  # noqa: ARG002
        """Take the language model and the references; a note says why there is none."""
        self._bert, self._written = inputs.bert, inputs.references
        if not self._bert:
            self.note = inputs.missing.get("bert_score", "needs a language model")

    def fields(self) -> dict[str, str]:
        """Return the fields of the formula, and the model with its layer."""
        return {"bert": self._bert.name if self._bert else "none", **self.formula}

    def measure(self, captions: SystemCaptions | Sequence[Tokens]) -> Floats:
        """Return the three scores of each image and the count 1, (N, 4).

        Raises:
            ConfigError: if the captions are tokens.
            DataError: if the images are not those of the references.
        """
        written = as_written(captions, "bert_score")
        self._references.check(written.best)
        if not self._bert:
            return with_count(np.full((len(written.best), 3), np.nan))
        rows: list[Floats] = []
        for start in range(0, len(written.texts), BLOCK):
            images = range(start, min(start + BLOCK, len(written.texts)))
            texts = {text for image in images for text in self._written[image]}
            different = sorted(texts | {written.texts[image][0] for image in images})
            found = dict(zip(different, self._bert.tokens(different), strict=True))
            for image in images:
                if not written.best[image]:
                    rows.append(np.zeros(3))
                    continue
                caption = found[written.texts[image][0]]
                pairs = [_match(caption, found[text]) for text in self._written[image]]
                rows.append(np.max(pairs, axis=0))
        return with_count(np.array(rows))


def _match(caption: TokenVectors, reference: TokenVectors) -> Floats:
    """Return precision, recall and F1 against one reference, (3,); 0 without inner tokens."""
    if not (caption.inner.any() and reference.inner.any()):
        return np.zeros(3)
    cosines = caption.vectors @ reference.vectors.T
    precision = cosines.max(axis=1)[caption.inner].mean()
    recall = cosines.max(axis=0)[reference.inner].mean()
    total = precision + recall
    return np.array([precision, recall, 2 * precision * recall / total if total else 0.0])
