"""Different captions and words of a split, and the content words of the references in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from captioner.metrics.references import Tokens

# English words that only connect others, as `tokenize` splits them. Numerals are content.
_CONNECTING = (
    "a an the this that these those some any no every each either neither both all another other "
    "others such much many more most few several own same what which who whom whose when where why "
    "how i me my mine myself we us our ours ourselves you your yours yourself he him his himself "
    "she her hers herself it its itself they them their theirs themselves someone somebody "
    "something anyone anybody anything everyone everybody everything nobody nothing about above "
    "across after against along alongside amid among amongst around as at atop before behind below "
    "beneath beside besides between beyond by despite down during except for from in inside into "
    "like near of off on onto out outside over past per since than through throughout to toward "
    "towards under underneath until up upon via with within without and but or nor so yet if "
    "because although though while whereas whether unless am is are was were be been being has "
    "have had having do does did doing done can could will would shall should may might must ca wo "
    "not n't 's 'm 'd 'll 're 've there here then also too very just only even again -lrb- -rrb- "
    "-lsb- -rsb- -lcb- -rcb-"
)
FUNCTION_WORDS = frozenset(_CONNECTING.split())


@dataclass(frozen=True, slots=True)
class WordUse:
    """The words of one caption for each image."""

    captions: int
    different_captions: int
    words: int  # different ones
    distinct_1: float  # different words over all words; 0 without words
    distinct_2: float  # different pairs of neighbouring words over all pairs; 0 without pairs
    content_words: int  # different ones of the references
    content_words_used: int  # those of them that a caption contains

    def as_text(self) -> dict[str, str]:
        """Return the numbers as a person reads them."""
        content = f"{self.content_words_used:,} of {self.content_words:,}"
        if self.content_words:
            content += f", {self.content_words_used / self.content_words:.1%}"
        return {
            "captions": f"{self.different_captions:,} of {self.captions:,} different",
            "words": f"{self.words:,} different",
            "distinct_1": f"{self.distinct_1:.3f}",
            "distinct_2": f"{self.distinct_2:.3f}",
            "content_words": content,
        }


def word_use(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> WordUse:
    """Count the different captions and words, and the references' content words among them.

    A content word is not in `FUNCTION_WORDS`, and at least two references contain it, of one image
    or of two. It counts once, however frequent it is. Distinct-1 and distinct-2 (Li et al. 2016)
    fall with the number of captions.

    Args:
        captions: the tokens of one caption for each image.
        references: the tokens of each image's reference captions.
    """
    words = Counter(word for caption in captions for word in caption)
    pairs = Counter(pair for caption in captions for pair in pairwise(caption))
    holding = Counter(word for image in references for caption in image for word in set(caption))
    content = {word for word, times in holding.items() if times > 1} - FUNCTION_WORDS
    return WordUse(
        captions=len(captions),
        different_captions=len(set(map(tuple, captions))),
        words=len(words),
        distinct_1=len(words) / max(1, words.total()),
        distinct_2=len(pairs) / max(1, pairs.total()),
        content_words=len(content),
        content_words_used=len(content & words.keys()),
    )


def compare_word_use(
    captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> dict[str, WordUse]:
    """Return the word use of captions, and of each image's first reference against its others."""
    return {
        "captions": word_use(captions, references),
        "first_references": word_use(
            [image[0] for image in references], [image[1:] for image in references]
        ),
    }
