"""What the decoder makes of a text: how probable an image makes it, and the state it leaves behind.

Captions start alike: of the words in 1,000 captions of photographs, three in ten stand in a
beginning that another caption has too. So captions are read as a tree, and each beginning goes
through the network once, for many images side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captioner.models.decoder import Decoder
from captioner.text import Vocabulary

# Rows read together: beginnings times images. A processor is fastest while the scores of all
# words fit its cache; an accelerator wants more work at once.
CPU_ROWS, DEVICE_ROWS = 256, 8192

Tree: TypeAlias = dict[int, Any]  # word -> what follows it; end token -> the captions that end here


class Beginnings(NamedTuple):
    """K beginnings of captions, equally long, that N images are to read the last word of.

    Attributes:
        hidden: states before that word, (S, P, N, H), of the P beginnings that lead here.
        parents: which of the P each of the K continues.
        words: the last word of each.
        log_probs: of each beginning with its last word, (K, N).
        trees: what follows each.
    """

    hidden: Tensor
    parents: Sequence[int]
    words: Sequence[int]
    log_probs: Tensor
    trees: Sequence[Tree]


@torch.inference_mode()
def log_likelihoods(decoder: Decoder, hidden: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
    """Compute how probable every image makes every caption.

    The sums that teacher forcing gives, without padding and without reading a word twice.

    Args:
        decoder: in evaluation mode.
        hidden: from `init_hidden`, (S, N, H): S = L, or 2L for an LSTM.
        captions: the token ids of C captions, without start and end token.

    Returns:
        Natural logarithms of the probability of all words and the end token, float32 (N, C).
    """
    tree: Tree = {}
    for i, caption in enumerate(captions):
        node = tree
        for word in caption:
            node = node.setdefault(word, {})
        node.setdefault(Vocabulary.eos_id, []).append(i)
    result = torch.zeros(hidden.shape[1], len(captions), device=hidden.device)
    rows = CPU_ROWS if hidden.device.type == "cpu" else DEVICE_ROWS
    for images, sums in zip(hidden.split(rows, dim=1), result.split(rows), strict=True):
        _read_tree(decoder, images, tree, sums, rows)
    return result


def _read_tree(decoder: Decoder, hidden: Tensor, tree: Tree, sums: Tensor, rows: int) -> None:
    """Fill in the log-likelihoods `sums` (N, C) of the captions in a tree, for N <= rows images."""
    states, images, width = hidden.shape
    start = Beginnings(
        hidden[:, None], [0], [Vocabulary.bos_id], sums.new_zeros(1, images), [tree]
    )
    # The deepest beginnings first: few of them wait at a time, however long the captions are.
    waiting = [start]
    while waiting:
        here = waiting.pop()
        words = torch.tensor(here.words, device=hidden.device).repeat_interleave(images)
        before = here.hidden[:, here.parents].flatten(1, 2)  # (S, K, N, H) -> (S, K * N, H)
        logits, after = decoder.step(words, before)
        following = logits.float().log_softmax(-1).view(len(here.trees), images, -1)  # (K, N, V)
        after = after.view(states, -1, images, width)
        ended = [(k, i) for k, tree in enumerate(here.trees) for i in tree.get(Vocabulary.eos_id, ())]
        going = [
            (k, word, rest)
            for k, tree in enumerate(here.trees)
            for word, rest in tree.items()
            if word != Vocabulary.eos_id
        ]
        if ended:
            k, i = map(list, zip(*ended, strict=True))
            sums[:, i] = (here.log_probs[k] + following[k, :, Vocabulary.eos_id]).T
        for first in range(0, len(going), max(1, rows // images)):
            k, last, trees = map(list, zip(*going[first:first+max(1, rows // images)], strict=True))
            log_probs = here.log_probs[k] + following[k, :, last]
            waiting.append(Beginnings(after, k, last, log_probs, trees))
