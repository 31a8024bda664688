"""Beam search and sampling over token ids and a `Step` function, for a whole batch at once.

Nothing here depends on networks, images or words.
"""

from captioner.search.beam import Extensions, beam_search
from captioner.search.common import Hypotheses, SpecialIds, Step
from captioner.search.sampling import sample

__all__ = ["Extensions", "Hypotheses", "SpecialIds", "Step", "beam_search", "sample"]
