"""Captions and scores the dev split after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from captioner.captioner import SEARCH_BATCH, Captioner
from captioner.data.prepare import SplitTable
from captioner.decoder.decoder import Decoder
from captioner.errors import ImageError
from captioner.metrics import PreparedReferences, Score, score_captions
from captioner.text import tokenize


class DevSplit:
    """Scores a decoder on the dev split."""

    def __init__(
        self,
        table: SplitTable,
        assemble: Callable[[Decoder], Captioner],  # on the device to search on
        say: Callable[[str], None],
    ):
        self.table = table
        self.captions: list[str] = []  # of the last `score`, by image; "" if the search failed
        self._assemble = assemble
        self._say = say
        self._references: Future[PreparedReferences] | None = None

    def score(self, decoder: Decoder) -> dict[str, Score]:
        """Caption the split with a decoder's current weights; return BLEU and CIDEr-D, by name.

        The decoder stays in evaluation mode.
        """
        captioner = self._assemble(decoder)
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
                tokens.append(worker.submit(lambda texts: [*map(tokenize, texts)], batch))
                captions += batch
        if failures:
            self._say(f"dev: {len(failures):,} image(s) scored as empty captions: {failures[0]}")
        self.captions = captions
        return score_captions(
            [words for batch in tokens for words in batch.result()],
            self._references.result(),
            metrics=("bleu", "cider_d"),
            decode=captioner.decoding.summary(),
            split="dev",
        )
