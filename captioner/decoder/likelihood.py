"""Log-likelihood of captions given images, and embeddings of captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioner.decoder.decoder import Decoder
from captioner.search import Step
from captioner.search.common import no_numbers
from captioner.text import Vocabulary

ROWS = 1024  # (image, caption) pairs per batch


@torch.inference_mode()
def log_likelihoods(step: Step, hidden: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
    """Compute the log-likelihood of every caption given every image, by teacher forcing.

    Args:
        step: the step of a decoder in evaluation mode.
        hidden: from `init_hidden`, (S, N, H); S is L, or 2L for an LSTM.
        captions: token ids of C captions, without start and end tokens.

    Returns:
        Summed log-probabilities of words and end token, in nats, float32 (N, C); NaN if the
        logits of a step have no finite maximum.
    """
    images, device = hidden.shape[1], hidden.device
    if not captions:
        return torch.empty(images, 0, device=device)
    ids = [torch.tensor([Vocabulary.bos_id, *words, Vocabulary.eos_id]) for words in captions]
    tokens = pad_sequence(ids, batch_first=True, padding_value=Vocabulary.pad_id).to(device)
    sums = []
    places = torch.arange(images, device=device).split(max(1, ROWS // len(captions)))
    for numbers in places:
        batch = hidden[:, numbers]
        rows = tokens.repeat(batch.shape[1], 1)  # all captions for each image
        states = batch.repeat_interleave(len(captions), dim=1)
        total = torch.zeros(len(rows), device=device)
        for token, target in zip(rows.T, rows.T[1:], strict=False):
            logits, states = step(token, states, numbers)
            log_probs = logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
            log_probs.masked_fill_(no_numbers(logits), torch.nan)
            total += log_probs.masked_fill(target == Vocabulary.pad_id, 0)
        sums.append(total.view(-1, len(captions)))
    return torch.cat(sums)


@torch.inference_mode()
def embeddings(decoder: Decoder, captions: Sequence[Sequence[int]]) -> Tensor:
    """Compute the hidden state after each caption, started from the average training image.

    The average image gives a typical initial state; zeros do not.

    Args:
        decoder: in evaluation mode.
        captions: token ids of B captions, without start and end tokens.

    Returns:
        Hidden states of all layers, concatenated, float32 (B, L * H); only h for an LSTM.
    """
    start = decoder.init_hidden(decoder.init_hidden.mean[None])  # (S, 1, H)
    states: Tensor = start.new_empty(len(captions), decoder.num_layers * start.shape[-1])
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, caption in enumerate(captions):
        by_length[len(caption)].append(i)
    for indices in by_length.values():
        for rows in torch.tensor(indices).split(ROWS):
            ids = torch.tensor([[Vocabulary.bos_id, *captions[i]] for i in rows.tolist()])
            hidden = start.expand(-1, len(rows), -1).contiguous()
            _, hidden = decoder.run_cell(ids.to(start.device), hidden)
            h = hidden[: decoder.num_layers]  # (L, B, H)
            states[rows.to(start.device)] = h.transpose(0, 1).flatten(1)
    return states
