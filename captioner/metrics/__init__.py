"""Metrics of captions, computed on tokens, with statistics per image for resampling."""

from captioner.metrics.bleu import Bleu
from captioner.metrics.calibration import Bin, Calibration, calibration
from captioner.metrics.cider import Cider, CiderD
from captioner.metrics.inputs import MetricInputs, SystemCaptions
from captioner.metrics.pointing import Pointing, Thing, pointing
from captioner.metrics.references import PreparedReferences
from captioner.metrics.rouge import RougeL
from captioner.metrics.scores import (
    METRICS,
    OF_WORDS,
    Comparison,
    Score,
    compare_captions,
    score_captions,
)
from captioner.metrics.signature import Signature, compatible, differences, read_signature
from captioner.metrics.word_use import WordUse, compare_word_use, word_use

__all__ = [
    "METRICS",
    "OF_WORDS",
    "Bin",
    "Bleu",
    "Calibration",
    "Cider",
    "CiderD",
    "Comparison",
    "MetricInputs",
    "Pointing",
    "PreparedReferences",
    "RougeL",
    "Score",
    "Signature",
    "SystemCaptions",
    "Thing",
    "WordUse",
    "calibration",
    "compare_captions",
    "compare_word_use",
    "compatible",
    "differences",
    "pointing",
    "read_signature",
    "score_captions",
    "word_use",
]
