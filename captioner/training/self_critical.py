"""Self-critical training: the model samples captions and learns from their scores.

Source: Rennie et al. (2017), "Self-critical Sequence Training for Image Captioning". The baseline
of a caption is the mean reward of the other captions sampled for its image, after Luo (2020), "A
Better Variant of Self-Critical Sequence Training". A caption above the baseline becomes more
probable, a caption below less.

Sampling turns a batch of images into a batch of captions with weights. The rest of a step is
teacher forcing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captioner.config import DecodingConfig, TrainingConfig
from captioner.data.caption_table import Batch
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.errors import DataError
from captioner.metrics import Bleu, CiderD, PreparedReferences
from captioner.search import sample
from captioner.system.world import World
from captioner.text import Vocabulary

ALONE = World()


class SelfCritical:
    """Samples captions for images, and weights them by their rewards.

    The reward is CIDEr-D, 0 to 10, plus `bleu_weight` times the caption's own BLEU-4, 0 to 1.
    The end token counts as a word of captions and references. Without it an unfinished caption
    ("a dog on a") loses no reward, and models learn to write unfinished captions.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        references: Sequence[Sequence[Sequence[str]]],
        config: TrainingConfig,
        *,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        world: World = ALONE,
    ):
        """Count the n-grams of the references: the tokens of each caption of each training image.

        A sampled caption has at most `max_length` tokens, end token included. `dtype` is the type
        of matrix products while sampling.

        Raises:
            DataError: if there is only one image, for which CIDEr-D is undefined.
        """
        self.decoder = decoder
        self.samples = config.samples
        self.bleu_weight = config.bleu_weight
        # Samples come from the model's own distribution: it also learns how poor an empty one is.
        self.options = DecodingConfig(search="sample", max_length=max_length, min_length=0)
        self.dtype = dtype
        self.world = world
        self.tokenizer, self.tokens = vocabulary.tokenizer, vocabulary.specials + vocabulary.words
        end = vocabulary.specials[vocabulary.eos_id]
        prepared = PreparedReferences([[[*words, end] for words in image] for image in references])
        self.cider, self.bleu = CiderD(prepared), Bleu(prepared)
        if self.cider.note:
            raise DataError(
                "training.objective: scst needs two or more training images, the data has one"
            )
        self._sums = np.zeros(3)  # captions, rewards, squared advantages

    def write(self, batch: Batch) -> Batch:
        """Sample captions for this process's images, without dropout.

        Returns:
            `samples` captions of each image, image by image. The weight of a caption is its
            advantage: its reward minus the mean reward of the image's other captions. `tokens`
            counts the tokens of all processes.
        """
        decoder = self.decoder
        was_training = decoder.training
        decoder.eval()
        with torch.no_grad():
            hidden, step = decoder.stepper(self.dtype).start(batch.features)
            sampled = sample(step, hidden, SPECIAL_IDS, self.options, n_best=self.samples)
        decoder.train(was_training)
        targets = sampled.token_ids.flatten(0, 1).clone()  # autograd refuses inference tensors
        ends = targets == Vocabulary.eos_id
        targets[ends.cumsum(1) > ends.long()] = Vocabulary.pad_id  # after the first end token
        start = targets.new_full((len(targets), 1), Vocabulary.bos_id)
        images = batch.images.repeat_interleave(self.samples)
        rewards = self.rewards(targets, images).view(-1, self.samples)
        others = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        advantages = rewards - others
        self._sums += [rewards.numel(), rewards.sum().item(), advantages.square().sum().item()]
        return replace(
            batch,
            features=batch.features.repeat_interleave(self.samples, dim=0),
            inputs=torch.cat((start, targets[:, :-1]), dim=1)[:, : targets.shape[1]],
            targets=targets,
            tokens=int(self.world.sum((targets != Vocabulary.pad_id).sum())),
            images=images,
            weights=advantages.flatten().to(targets.device, torch.float32),
        )

    def rewards(self, targets: Tensor, images: Tensor) -> Tensor:
        """Return the rewards of captions, float64 (N,), on the CPU.

        Targets, int64 (N, T), are words, end token and padding; images are indices, int64 (N,).
        """
        captions = [self._words(row) for row in targets.tolist()]
        indices = images.numpy()
        rewards = self.cider.score(captions, indices)
        if self.bleu_weight:
            bleu = self.bleu.combine(self.bleu.statistics(captions, indices))
            rewards = rewards + self.bleu_weight * bleu[:, -1]
        return torch.from_numpy(rewards)

    def _words(self, token_ids: list[int]) -> list[str]:
        """Return the words of a caption, and the end token if it has one."""
        ids = [token_id for token_id in token_ids if token_id != Vocabulary.pad_id]
        tokens = [self.tokens[token_id] for token_id in ids]
        length = len(tokens) - (Vocabulary.eos_id in ids)
        return [*self.tokenizer.words_in(tokens[:length]), *tokens[length:]]

    def report(self, device: torch.device) -> dict[str, float]:
        """Return statistics of all processes' captions since the last report.

        `reward` is the mean reward, `advantage_std` the root mean square of the advantages. The
        processes sum on the device.
        """
        sums = torch.tensor(self._sums, dtype=torch.float32, device=device)
        self._sums = np.zeros(3)
        count, reward, squares = self.world.sum(sums).tolist()
        return {"reward": reward / count, "advantage_std": (squares / count) ** 0.5}
