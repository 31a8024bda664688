"""Turning next-token scores into sentences: beam search and sampling.

Everything here works on token ids and a `Step` function, for a whole batch at once, and knows
nothing of networks, images or words.
"""

from captioner.search.beam import beam_search
from captioner.search.common import Hypotheses, Step
from captioner.search.sampling import sample

__all__ = [
    "Hypotheses",
    "Step",
    "beam_search",
    "sample",
]
