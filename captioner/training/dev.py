"""Captions and scores the dev split after every epoch, and computes its loss."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from captioner.captioner import SEARCH_BATCH, Captioner
from captioner.data.caption_table import CaptionTable, iterate
from captioner.data.dataset import Dataset
from captioner.data.prepare import SplitTable
from captioner.decoder.decoder import Decoder
from captioner.errors import ImageError
from captioner.metrics import PreparedReferences, Score, compare_word_use, score_captions
from captioner.model_card import Results
from captioner.model_dir import plugin_label
from captioner.training.bptt import total_loss

RESAMPLES = 1000  # for the intervals of the final scores
LOSS_CAPTIONS = 1000  # most captions for the loss: about 1% of the time of training on Flickr8k


class DevSplit:
    """Computes the loss and the scores of a decoder on the dev split."""

    def __init__(
        self,
        table: SplitTable,
        targets: CaptionTable,  # of the split's references
        assemble: Callable[[Decoder], Captioner],  # on the device to search on
        say: Callable[[str], None],
    ):
        self.table = table
        self.targets = targets.sample(LOSS_CAPTIONS)
        self.captions: list[str] = []  # of the last `score`, by image; "" if the search failed
        self._assemble = assemble
        self._say = say
        self._references: Future[PreparedReferences] | None = None

    def loss(self, decoder: Decoder, *, label_smoothing: float, batch_size: int) -> float:
        """Return the mean loss of references, in nats per token; see `bptt.total_loss`.

        At most `LOSS_CAPTIONS` references count, evenly spaced, always the same. The
        decoder stays in evaluation mode.
        """
        decoder.eval()
        table = self.targets.to(decoder.output.bias.device)
        losses, tokens = [], 0
        for batch in iterate(table, batch_size, seed=0, epoch=0):
            losses.append(total_loss(decoder, batch, label_smoothing=label_smoothing))
            tokens += batch.tokens
        return float(torch.stack(losses).cpu().double().sum()) / tokens

    def score(self, decoder: Decoder) -> dict[str, Score]:
        """Caption the split with a decoder's current weights; return BLEU and CIDEr-D, by name.

        The decoder stays in evaluation mode.
        """
        captioner = self._assemble(decoder)
        return self._scores(captioner, self._caption(captioner), ("bleu", "cider_d"))

    def results(self, captioner: Captioner, dataset: Dataset) -> Results:
        """Return the results of the trained model, as `captioner evaluate --split dev` does."""
        tokens = self._caption(captioner)
        scores = self._scores(captioner, tokens, ("bleu", "rouge_l", "cider"), RESAMPLES)
        truth = dataset.truth(self.table.examples, self.captions)
        return Results("dev", scores, compare_word_use(tokens, self.table.references), truth)

    def _caption(self, captioner: Captioner) -> list[list[str]]:
        """Caption the split; return the tokens of each caption."""
        words = captioner.vocabulary.tokenizer.words
        captions: list[str] = []
        failures: list[ImageError] = []
        # A thread counts the references and tokenises captions while the device searches.
        with ThreadPoolExecutor(1) as worker:
            if self._references is None:
                self._references = worker.submit(PreparedReferences, self.table.references)
            tokens: list[Future[list[list[str]]]] = []
            for features in self.table.features.split(SEARCH_BATCH):
                results = captioner.search_each(features)
                failures += [result for result in results if isinstance(result, ImageError)]
                batch = ["" if isinstance(best, ImageError) else best[0].text for best in results]
                tokens.append(worker.submit(lambda texts: [*map(words, texts)], batch))
                captions += batch
        if failures:
            self._say(f"dev: {len(failures):,} image(s) scored as empty captions: {failures[0]}")
        self.captions = captions
        return [caption for batch in tokens for caption in batch.result()]

    def _scores(
        self,
        captioner: Captioner,
        tokens: list[list[str]],
        metrics: tuple[str, ...],
        resamples: int = 0,
    ) -> dict[str, Score]:
        references = self._references.result() if self._references else self.table.references
        return score_captions(
            tokens,
            references,
            metrics=metrics,
            resamples=resamples,
            tokenizer=captioner.vocabulary.tokenizer.name,
            decode=captioner.decoding.summary()
            + plugin_label(captioner.encoder, captioner.decoder),
            split="dev",
        )
