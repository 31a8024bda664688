"""The probabilities of the words of one given caption, with gradients if they are wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.search import Hypotheses, SpecialIds
from captioner.search.top_tokens import to_keys, top_tokens
from captioner.text.vocabulary import Vocabulary


def members_of(decoder: Decoder | Ensemble, features: Tensor) -> list[tuple[Decoder, Tensor]]:
    """Return each decoder with what it reads of features, (A, F)."""
    return decoder.split(features) if isinstance(decoder, Ensemble) else [(decoder, features)]


def word_log_probs(members: Sequence[tuple[Decoder, Tensor]], token_ids: Tensor) -> Tensor:
    """Compute the log-probabilities of all words at each place of one caption.

    Args:
        members: decoders, each with what it reads of A images, (A, F). Several are an ensemble:
            the mean of their distributions.
        token_ids: without start token, int64 (T,).

    Returns:
        float32 (A, T, V).
    """
    inputs = functional.pad(token_ids, (1, -1), value=Vocabulary.bos_id)
    each: list[Tensor] = []
    # The recurrent kernels of cuDNN have no backward pass in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False):
        for decoder, features in members:
            hidden, keys = decoder.begin(features)
            logits, _ = decoder(inputs.expand(len(features), -1), hidden, keys)
            each.append(logits.float().log_softmax(2))
    if len(each) == 1:
        return each[0]
    return torch.stack(each).logsumexp(0) - math.log(len(each))


def log_probs_of_words(members: Sequence[tuple[Decoder, Tensor]], token_ids: Tensor) -> Tensor:
    """Compute the log-probability of each word of one caption, float32 (A, T)."""
    found = word_log_probs(members, token_ids)
    return found.gather(2, token_ids[None, :, None].expand(len(found), -1, 1))[:, :, 0]


@torch.no_grad()
def given_caption(
    decoder: Decoder | Ensemble,
    features: Tensor,
    token_ids: Tensor,
    ids: SpecialIds,
    choices: int,
) -> Hypotheses:
    """Return a given caption as a search would have found it.

    Args:
        decoder: in evaluation mode.
        features: of one image, (1, F).
        token_ids: without start token, int64 (T,); the last one may be the end token.
        ids: the words that are no alternatives.
        choices: number C of the most probable words to keep for each place, 0 to V.

    Returns:
        One hypothesis; its score is its log-probability.
    """
    log_probs = word_log_probs(members_of(decoder, features), token_ids)[0]
    chosen = log_probs.gather(1, token_ids[:, None])
    keys = to_keys(chosen, token_ids[:, None])
    if choices:
        suppressed = torch.tensor(ids.suppress_ids, dtype=torch.int64, device=log_probs.device)
        allowed = log_probs.index_fill(1, suppressed, -torch.inf)
        keys = torch.cat((keys, to_keys(*top_tokens(allowed, choices))), dim=1)
    finished = token_ids[-1:] == ids.eos_id
    total = chosen.sum().view(1, 1)
    return Hypotheses(
        keys[None, None], (~(token_ids == ids.eos_id)).sum().view(1, 1), total, total,
        finished.view(1, 1),
    )  # fmt: skip
