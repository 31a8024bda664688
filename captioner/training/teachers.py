"""Trained models that teach another: several of them, distilled into one.

An ensemble writes better captions than any of its members and costs as much as all of them. A
single model that learns the ensemble's distribution of every next word, beside the word that came,
keeps some of what it knows (Hinton et al., 2015, "Distilling the Knowledge in a Neural Network";
for sequences Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", word-level).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from captioner.models.decoder import Decoder
from captioner.training.tables import Batch

Described: TypeAlias = tuple[dict[str, Any], dict[str, Tensor]]  # a decoder's settings and weights
Lesson: TypeAlias = Callable[[slice, Tensor], tuple[Tensor, float]]


class Teachers:
    """Decoders that say how probable they hold each next word, on average."""

    def __init__(self, decoders: Sequence[Decoder], share: float):
        """Get ready to teach.

        Args:
            decoders: of the pupil's features and vocabulary; on its device.
            share: of the loss that is theirs, 0 to 1.
        """
        self.decoders = [decoder.eval().requires_grad_(False) for decoder in decoders]
        self.share = share

    @classmethod
    def build(cls, found: Sequence[Described], device: torch.device, share: float) -> Self:
        """Build decoders from their settings and weights; see `__init__`."""
        decoders = []
        for settings, weights in found:
            decoder = Decoder(**settings)
            decoder.load_state_dict(weights)
            decoders.append(decoder.to(device))
        return cls(decoders, share)

    @torch.no_grad()
    def read(self, batch: Batch) -> Lesson:
        """Read captions, each as its people wrote it.

        Returns:
            What tells, for tokens of a piece of the captions, the probabilities of each of them,
            float32 (N, V), and their share of the loss. It is given the piece, and which of its
            B * T places are asked for, int64 (N,).
        """
        read = [
            decoder.run_cell(batch.inputs, decoder.init_hidden(batch.features))[0]
            for decoder in self.decoders
        ]

        @torch.no_grad()
        def lesson(piece: slice, places: Tensor) -> tuple[Tensor, float]:
            taught = None
            for decoder, outputs in zip(self.decoders, read, strict=True):
                chosen = outputs[:, piece].flatten(0, 1).index_select(0, places)
                probs = decoder.to_logits(chosen).float().softmax(-1)
                taught = probs if taught is None else taught.add_(probs)
            assert taught is not None
            return taught.div_(len(read)), self.share

        return lesson
