"""The dev split, captioned and scored after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from captioner.captioner import Captioner
from captioner.data.prepare import SplitTable
from captioner.decoder.decoder import Decoder
from captioner.errors import ImageError
from captioner.metrics import PreparedReferences, Score, score_captions
from captioner.text import tokenize

SEARCHED = 256  # images searched together


class DevSplit:
    """Scores a decoder on the dev split.

    Attributes:
        table: the split.
        captions: those of the last score, one for each image; empty where the model gives none.
    """

    def __init__(
        self,
        table: SplitTable,
        assemble: Callable[[Decoder], Captioner],
        say: Callable[[str], None],
    ):
        """Get ready to score.

        Args:
            table: the split.
            assemble: makes a captioner of a decoder, on the device to search on.
            say: takes messages, such as how many images got no caption.
        """
        self.table = table
        self.captions: list[str] = []
        self._assemble = assemble
        self._say = say
        self._references: Future[PreparedReferences] | None = None

    def score(self, decoder: Decoder) -> dict[str, Score]:
        """Caption the split with a decoder's weights of now, and score the captions.

        Args:
            decoder: in evaluation mode afterwards.

        Returns:
            BLEU and CIDEr-D, by name.
        """
        captioner = self._assemble(decoder)
        captions: list[str] = []
        broken: list[ImageError] = []
        # A worker counts the references and tokenises captions while the device writes more.
        with ThreadPoolExecutor(1) as worker:
            if self._references is None:
                self._references = worker.submit(PreparedReferences, self.table.references)
            tokens: list[Future[list[list[str]]]] = []
            for features in self.table.features.split(SEARCHED):
                found = captioner.search_each(features)
                broken += [error for error in found if isinstance(error, ImageError)]
                batch = ["" if isinstance(best, ImageError) else best[0].text for best in found]
                tokens.append(worker.submit(lambda texts: [*map(tokenize, texts)], batch))
                captions += batch
        if broken:
            self._say(f"dev: {len(broken):,} picture(s) count as without a caption: {broken[0]}")
        self.captions = captions
        return score_captions(
            [words for batch in tokens for words in batch.result()],
            self._references.result(),
            metrics=("bleu", "cider_d"),
            decode=captioner.decoding.summary(),
            split="dev",
        )
