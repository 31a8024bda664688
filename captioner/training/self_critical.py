"""Self-critical training: the model draws captions; those that score well become more probable.

Source: Rennie et al. (2017), "Self-critical Sequence Training for Image Captioning". Each
caption is compared with the others drawn for its image, as in Luo (2020), "A Better Variant of
Self-Critical Sequence Training": a better one becomes more probable, a worse one less.

Drawing turns a batch of images into a batch of captions, each with a weight. The rest of a step is
teacher forcing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captioner.config import TrainingConfig
from captioner.data.caption_table import Batch
from captioner.decoder.decoder import Decoder
from captioner.errors import DataError
from captioner.metrics import Bleu, CiderD, PreparedReferences
from captioner.search import sample
from captioner.system.world import World
from captioner.text import Vocabulary


class SelfCritical:
    """Draws captions for images, and weighs them by their rewards.

    The reward is CIDEr-D, 0 to 10, plus `bleu_weight` times the caption's own BLEU-4, 0 to 1.
    The end token counts as a word of captions and references: otherwise a caption that breaks off
    ("a dog on a") loses nothing, and models learn to write such captions.
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
        world: World | None = None,
    ):
        """Count the n-grams of the references.

        Args:
            decoder: draws captions, with its weights of the moment.
            vocabulary: words of its ids.
            references: for each training image, the tokens of each of its captions; they give
                the document frequencies too.
            config: the `training` section.
            max_length: most tokens of a caption, end token included.
            dtype: of matrix products while drawing.
            world: the processes that train together; None: this one alone.

        Raises:
            DataError: if there is only one image, where CIDEr-D is undefined.
        """
        self.decoder = decoder
        self.samples = config.samples
        self.bleu_weight = config.bleu_weight
        self.max_length = max_length
        self.dtype = dtype
        self.world = world or World()
        self.words = vocabulary.specials + vocabulary.words
        end = vocabulary.specials[vocabulary.eos_id]
        prepared = PreparedReferences([[[*words, end] for words in image] for image in references])
        self.cider, self.bleu = CiderD(prepared), Bleu(prepared)
        if self.cider.note:
            raise DataError("training.objective: scst compares images, the data has one to train")
        self._sums = np.zeros(3)  # captions, their rewards, and their squared advantages: sums

    def write(self, batch: Batch) -> Batch:
        """Draw captions for this process's images.

        Dropout is off meanwhile, as it is when captions are written for people.

        Args:
            batch: B images; its captions do not matter.

        Returns:
            `samples` captions for each, one image after the other, weighed by their advantages:
            the reward less the mean reward of the image's other captions. `tokens` are those of
            all processes.
        """
        decoder = self.decoder
        was_training = decoder.training
        decoder.eval()
        with torch.no_grad():
            drawn = sample(
                decoder.stepper(self.dtype),
                decoder.init_hidden(batch.features),
                bos_id=Vocabulary.bos_id,
                eos_id=Vocabulary.eos_id,
                suppress_ids=Vocabulary.unwritable,
                max_length=self.max_length,
                n_samples=self.samples,
            )
        decoder.train(was_training)
        targets = drawn.token_ids.flatten(0, 1).clone()  # clones of inference tensors can be used
        ends = targets == Vocabulary.eos_id
        targets[ends.cumsum(1) > ends.long()] = Vocabulary.pad_id  # all behind the first end
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
        """Score captions against the references of their images.

        Args:
            targets: int64 (N, T), words and end token, padding.
            images: int64 (N,), which image each describes.

        Returns:
            float64 (N,), on the processor.
        """
        captions = [
            [self.words[i] for i in row if i != Vocabulary.pad_id] for row in targets.tolist()
        ]
        described = images.numpy()
        rewards = self.cider.score(captions, described)
        if self.bleu_weight:
            bleu = self.bleu.combine(self.bleu.statistics(captions, described))
            rewards = rewards + self.bleu_weight * bleu[:, -1]
        return torch.from_numpy(rewards)

    def report(self, device: torch.device) -> dict[str, float]:
        """Return what the captions drawn since the last report were worth, over all processes.

        Args:
            device: that the processes share sums on.

        Returns:
            `reward`, their mean, and `advantage_std`, how far they lay from the others of their
            image.
        """
        sums = torch.tensor(self._sums, dtype=torch.float32, device=device)
        self._sums = np.zeros(3)
        count, reward, squares = self.world.sum(sums).tolist()
        return {"reward": reward / count, "advantage_std": (squares / count) ** 0.5}
