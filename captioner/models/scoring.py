"""What the decoder makes of a text: how probable an image makes it, and the state it leaves behind.

Captions start alike: of the words in 1,000 captions of photographs, three in ten stand in a
beginning that another caption has too. So captions are read as a tree, and each beginning goes
through the network once, for many images side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captioner.models.decoder import Decoder
from captioner.search import Step
from captioner.search.common import no_numbers
from captioner.text import Vocabulary

ROWS = 1024  # read together: beginnings times images, or captions

Tree: TypeAlias = dict[int, Any]  # word -> what follows it; end token -> the captions that end here


class Beginnings(NamedTuple):
    """K equally long beginnings of captions; N images are about to read the last word of each.

    Attributes:
        hidden: the states before that word, (S, P, N, H), of P beginnings one word shorter.
        parents: which of the P each of the K continues.
        words: the last word of each.
        log_probs: of each beginning, last word included, (K, N).
        trees: what follows each.
    """

    hidden: Tensor
    parents: list[int]
    words: list[int]
    log_probs: Tensor
    trees: list[Tree]


@torch.inference_mode()
def log_likelihoods(decoder: Decoder, hidden: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
    """Compute how probable every image makes every caption.

    The very sums of teacher forcing, but nothing is padded and no beginning is read twice.

    Args:
        decoder: in evaluation mode.
        hidden: from `init_hidden`, (S, N, H); S is L, or 2L for an LSTM.
        captions: the token ids of C captions, without start and end token.

    Returns:
        Natural logarithm of the probability of all words and the end token, float32 (N, C);
        NaN where a step gave what is no number.
    """
    tree: Tree = {}
    for i, caption in enumerate(captions):
        node = tree
        for word in caption:
            node = node.setdefault(word, {})
        node.setdefault(Vocabulary.eos_id, []).append(i)
    step = decoder.stepper()
    sums = torch.zeros(hidden.shape[1], len(captions), device=hidden.device)
    for images, part in zip(hidden.split(ROWS, dim=1), sums.split(ROWS), strict=True):
        start = Beginnings(
            images[:, None], [0], [Vocabulary.bos_id], part.new_zeros(1, len(part)), [tree]
        )
        # The deepest beginnings go first: few wait at a time, however long the captions are.
        waiting = [start]
        while waiting:
            waiting += _read(step, waiting.pop(), part)
    return sums


def _read(step: Step, here: Beginnings, sums: Tensor) -> Iterator[Beginnings]:
    """Read one word; write the sums (N, C) of the captions that end, yield what goes on."""
    count, images = here.log_probs.shape
    before = here.hidden[:, here.parents]  # (S, K, N, H)
    words = torch.tensor(here.words, device=sums.device).repeat_interleave(images)
    logits, after = step(words, before.flatten(1, 2))
    after = after.view_as(before)
    next_word = logits.float().log_softmax(-1)
    next_word.masked_fill_(no_numbers(logits)[:, None], torch.nan)
    next_word = next_word.view(count, images, -1)  # (K, N, V)

    going: list[tuple[int, int, Tree]] = []
    for k, tree in enumerate(here.trees):
        for word, rest in tree.items():
            if word == Vocabulary.eos_id:
                sums[:, rest] = (here.log_probs[k] + next_word[k, :, word])[:, None]
            else:
                going.append((k, word, rest))
    size = max(1, ROWS // images)
    for first in range(0, len(going), size):
        parents, last, trees = map(list, zip(*going[first : first + size], strict=True))
        log_probs = here.log_probs[parents] + next_word[parents, :, last]
        yield Beginnings(after, parents, last, log_probs, trees)


@torch.inference_mode()
def embeddings(decoder: Decoder, captions: Sequence[Sequence[int]]) -> Tensor:
    """Return the state in which captions leave the network that has seen the average image.

    That state is what the network remembers of the text (an LSTM's h; its c stays inside). The
    average training image is where it starts, for there it knows its way about: no image of
    training ever led to a state of zeros.

    Args:
        decoder: in evaluation mode.
        captions: the token ids of B captions, without start and end token.

    Returns:
        Hidden states, all layers side by side, float32 (B, L * H).
    """
    start = decoder.init_hidden(decoder.init_hidden.mean[None])  # (S, 1, H)
    states: Tensor = start.new_empty(len(captions), decoder.num_layers * start.shape[-1])
    same_length: dict[int, list[int]] = defaultdict(list)
    for i, caption in enumerate(captions):
        same_length[len(caption)].append(i)
    for members in same_length.values():
        for rows in torch.tensor(members).split(ROWS):
            ids = torch.tensor([[Vocabulary.bos_id, *captions[i]] for i in rows.tolist()])
            hidden = start.expand(-1, len(rows), -1).contiguous()
            _, hidden = decoder.run_cell(ids.to(start.device), hidden)
            h = hidden[: decoder.num_layers]  # (L, B, H)
            states[rows.to(start.device)] = h.transpose(0, 1).flatten(1)
    return states
