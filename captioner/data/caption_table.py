"""A data set as tensors: captions as token ids, images as rows of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioner.system.memory import fits
from captioner.text import Vocabulary

BUCKET = 64  # batches whose captions are sorted by length together


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """Training captions of a split."""

    features: Tensor  # fp16 (R, F), one row per image and view
    token_ids: Tensor  # int64 (N, T), start token, words, end token, padding
    lengths: Tensor  # int64 (N,), tokens of each caption, with start and end token
    rows: Tensor  # int64 (N, views), the rows of `features` for the caption's image
    images: Tensor  # int64 (N,), index of the caption's image, ascending

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def build(
        cls,
        features: Tensor,
        captions: Sequence[Sequence[Sequence[str]]],
        vocabulary: Vocabulary,
        *,
        views: Tensor | None = None,
        max_length: int = 50,
    ) -> CaptionTable:
        """Build the table.

        Args:
            features: fp16 (R, F).
            captions: for each image, the tokens of each caption.
            vocabulary: converts tokens to ids.
            views: int64 (images, views), the rows of `features` for each image; None: row by row.
            max_length: maximum words of a caption; the rest is cut off.
        """
        encoded = [
            [vocabulary.bos_id, *vocabulary.encode(tokens[:max_length]), vocabulary.eos_id]
            for image in captions
            for tokens in image
        ]
        owner = torch.tensor([i for i, image in enumerate(captions) for _ in image])
        lengths = torch.tensor([len(ids) for ids in encoded])
        token_ids = pad_sequence(
            [torch.tensor(ids) for ids in encoded], True, padding_value=vocabulary.pad_id
        )
        views = torch.arange(len(captions))[:, None] if views is None else views
        return cls(features, token_ids, lengths, views[owner], owner)

    def per_image(self) -> CaptionTable:
        """Return a table with one empty caption per image, for self-critical training."""
        first = self._first_captions()
        empty = self.token_ids.new_tensor([Vocabulary.bos_id, Vocabulary.eos_id])
        return replace(
            self,
            token_ids=empty.repeat(len(first), 1),
            lengths=torch.full((len(first),), 2),
            rows=self.rows[first],
            images=self.images[first],
        )

    def sample(self, most: int) -> CaptionTable:
        """Return a table of at most `most` captions, evenly spaced."""
        count = min(most, len(self))
        chosen = torch.arange(count) * len(self) // count
        return replace(
            self,
            token_ids=self.token_ids[chosen],
            lengths=self.lengths[chosen],
            rows=self.rows[chosen],
            images=self.images[chosen],
        )

    def image_features(self) -> Iterator[Tensor]:
        """Yield the mean of each image's views, float32 (up to 8192, F)."""
        for rows in self.rows[self._first_captions()].split(8192):
            yield self.features[rows.to(self.features.device)].float().mean(1)

    def _first_captions(self) -> Tensor:
        """Return the index of each image's first caption, int64 (images,)."""
        return self.images.diff(prepend=torch.tensor([-1])).nonzero().squeeze(1)

    def to(self, device: torch.device) -> CaptionTable:
        """Move features and token ids to a device; lengths and rows stay on the CPU.

        Features that do not fit on the device stay in memory or on disk; `iterate` copies them
        batch by batch.
        """
        features = self.features
        if features.device != device and fits(features.nbytes, device):
            features = features.to(device)
        return replace(self, features=features, token_ids=self.token_ids.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """The captions of one training step."""

    features: Tensor  # (B, F)
    inputs: Tensor  # int64 (B, T), starts with the start token
    targets: Tensor  # int64 (B, T), the next tokens; padding after the end token
    tokens: int  # targets without padding; the divisor of the loss
    # int64 (B,), indices of the images in the training split; empty if not needed
    images: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: Tensor | None = None  # float32 (B,), factor of each caption's loss; None: 1

    def subset(self, index: int, of: int) -> Batch:
        """Return every `of`-th caption from `index` on.

        `tokens` counts the whole batch, so the losses of all subsets sum to the batch's loss.
        """
        chosen = slice(index, None, of)
        return replace(
            self,
            features=self.features[chosen],
            inputs=self.inputs[chosen],
            targets=self.targets[chosen],
            images=self.images[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )


def epoch_order(lengths: Tensor, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Draw random batches of captions of similar length for one epoch.

    The order depends only on the arguments, so a resumed run gets the same batches.

    Args:
        lengths: int64 (N,), tokens of each caption.
        batch_size: captions of a batch, B; some batches may be smaller.
        seed: of the run.
        epoch: from 0.

    Returns:
        Caption indices of each batch, int64 (B,).
    """
    generator = _generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for pool in order.split(batch_size * BUCKET):
        by_length = pool[lengths[pool].argsort(stable=True)]
        batches += by_length.split(batch_size)
    mixed = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in mixed]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**64)


def iterate(
    table: CaptionTable, batch_size: int, *, seed: int, epoch: int, start: int = 0
) -> Iterator[Batch]:
    """Yield the batches of `epoch_order` from `start` on, on the table's device."""
    batches = epoch_order(table.lengths, batch_size, seed=seed, epoch=epoch)
    views = torch.randint(table.rows.shape[1], (len(table),), generator=_generator(seed, epoch))
    device = table.token_ids.device
    for chosen in batches[start:]:
        lengths = table.lengths[chosen]
        longest = int(lengths.max())
        rows = table.rows[chosen, views[chosen]]
        token_ids = table.token_ids[chosen.to(device), :longest]
        yield Batch(
            features=table.features[rows.to(table.features.device)].to(device),
            inputs=token_ids[:, :-1],
            targets=token_ids[:, 1:],
            tokens=int(lengths.sum()) - len(chosen),
            images=table.images[chosen],
        )
