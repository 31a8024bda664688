"""Tiny seeded models and slow, plain searches to hold the fast ones against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from captioner import search
from captioner.config import DecodingConfig
from captioner.search import Hypotheses, SpecialIds, Step

PlainStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # the hidden state knows the image
BOS, EOS = 0, 1
NEUTRAL = DecodingConfig(length_penalty=0, min_length=0)


def beam_search(
    step: PlainStep,
    hidden: Tensor,
    *,
    suppress_ids: tuple[int, ...] = (),
    start: tuple[int, ...] = (),
    repeatable: tuple[int, ...] = (),
    n_best: int = 1,
    choices: int = 0,
    **options: float,
) -> Hypotheses:
    """Beam search with some settings; without length penalty or least length unless given."""
    ids = SpecialIds(BOS, EOS, suppress_ids, start, repeatable)
    return search.beam_search(
        of_any_image(step), hidden, ids, NEUTRAL.model_copy(update=options), n_best, choices
    )


def sample(
    step: PlainStep,
    hidden: Tensor,
    *,
    suppress_ids: tuple[int, ...] = (),
    start: tuple[int, ...] = (),
    n_best: int = 1,
    generator: torch.Generator | None = None,
    choices: int = 0,
    **options: float,
) -> Hypotheses:
    """Sampling with some settings, also with such that a config refuses."""
    ids = SpecialIds(BOS, EOS, suppress_ids, start)
    chosen = NEUTRAL.model_copy(update=options)
    return search.sample(of_any_image(step), hidden, ids, chosen, n_best, generator, choices)


def of_any_image(step: PlainStep) -> Step:
    """The step in the form that a search calls."""
    return lambda token_ids, hidden, _: step(token_ids, hidden)


def random_model(
    seed: int, *, vocab_size: int = 6, num_images: int = 3, sharpness: float = 2.0
) -> tuple[PlainStep, Tensor]:
    """A small recurrent step whose logits depend on the token and the state, and its images."""
    rng = torch.Generator().manual_seed(seed)
    embedding, recurrent, output, hidden = (
        torch.randn(shape, generator=rng, dtype=torch.float64)
        for shape in ((vocab_size, 4), (4, 4), (4, vocab_size), (1, num_images, 4))
    )

    def step(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # Written without matmul, whose rounding depends on the number of rows.
        state = torch.tanh(embedding[token_ids] + (hidden[0, :, :, None] * recurrent).sum(1))
        return sharpness * (state[:, :, None] * output).sum(1), state[None]

    return step, hidden


def tied_model(seed: int, *, vocab_size: int = 6, num_images: int = 3) -> tuple[PlainStep, Tensor]:
    """A step with logits of 0, 1 or 2 by token and image, so that most scores are tied."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_images, vocab_size, vocab_size)
    table = torch.randint(0, 3, shape, generator=rng).float()

    def step(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return table[hidden[0, :, 0].long(), token_ids], hidden

    return step, torch.arange(num_images).float().view(1, -1, 1)


@dataclass(frozen=True)
class Sentence:
    token_ids: tuple[int, ...]  # the end token included
    log_prob: float
    score: float
    finished: bool


def teacher_forced(step: Step, hidden: Tensor, token_ids: tuple[int, ...]) -> float:
    """Sum of the log-probabilities the model gives a sentence, for an image (1, 1, H)."""
    total = 0.0
    for before, token in zip((BOS, *token_ids), token_ids, strict=False):
        logits, hidden = step(torch.tensor([before]), hidden)
        total += logits[0].double().log_softmax(0)[token].item()
    return total


def whole_space(
    step: Step, hidden: Tensor, *, vocab_size: int, max_length: int, length_penalty: float = 0.0
) -> list[Sentence]:
    """Every sentence there is for one image, best first, cut-off ones last."""
    words = [token for token in range(vocab_size) if token != EOS]
    spelled = [
        (*prefix, EOS) for size in range(max_length) for prefix in product(words, repeat=size)
    ]
    spelled += list(product(words, repeat=max_length))
    sentences = []
    for token_ids in spelled:
        log_prob = teacher_forced(step, hidden, token_ids)
        score = log_prob / len(token_ids) ** length_penalty
        sentences.append(Sentence(token_ids, log_prob, score, token_ids[-1] == EOS))
    return sorted(sentences, key=lambda s: (not s.finished, -s.score))


def penalties(token_ids: tuple[int, ...], repeatable: tuple[int, ...]) -> list[int]:
    """Return for each token its earlier uses, 0 if it may be repeated."""
    free = {EOS, *repeatable}
    return [0 if t in free else token_ids[:i].count(t) for i, t in enumerate(token_ids)]


def repeats_ngram(token_ids: tuple[int, ...], size: int) -> bool:
    ngrams = [token_ids[i : i + size] for i in range(len(token_ids) - size + 1)]
    return len(set(ngrams)) < len(ngrams)


def plain_beam_search(
    step: PlainStep,
    hidden: Tensor,
    *,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    repeat_penalty: float = 0.0,
    n_best: int = 1,
    suppress_ids: tuple[int, ...] = (),
    start: tuple[int, ...] = (),
    repeatable: tuple[int, ...] = (),
    min_length: int = 0,
) -> list[Sentence]:
    """Beam search for one image with lists and loops, which never stops early but when greedy.

    The log-probabilities are less the penalties.
    """
    live = [((), torch.tensor(0.0), hidden)]
    finished: list[Sentence] = []
    for length in range(1, max_length + 1):
        grown = []
        for beam, (prefix, total, state) in enumerate(live):
            before = torch.tensor([(BOS, *prefix)[-1]])
            logits, new_state = step(before, state)
            log_probs = logits[0].log_softmax(0, dtype=torch.float32)
            for token in range(len(log_probs)):
                written = (*prefix, token)
                blocked = no_repeat_ngram_size and repeats_ngram(written, no_repeat_ngram_size)
                blocked |= written[: len(start)] != start[:length]
                blocked |= token == EOS and length <= min_length
                if token not in suppress_ids and not blocked:
                    log_prob = log_probs[token]
                    for _ in range(penalties(written, repeatable)[-1]):
                        log_prob = log_prob - repeat_penalty
                    new_total = total + log_prob
                    key = (-new_total.item(), beam, token)
                    grown.append((key, written, new_total, new_state))
        grown.sort(key=lambda candidate: candidate[0])
        for _, written, total, _ in grown[:beam_size]:
            if written[-1] == EOS:
                score = total / length**length_penalty
                finished.append(Sentence(written, total.item(), score.item(), True))
        live = [rest for _, *rest in grown if rest[0][-1] != EOS][:beam_size]
        if beam_size == 1 and finished:  # greedy: the first end is the end
            break
    cut_off = [
        Sentence(written, total.item(), (total / max_length**length_penalty).item(), False)
        for written, total, _ in live
    ]
    finished.sort(key=lambda sentence: -sentence.score)
    return (finished + cut_off)[:n_best]


def sentences_of(found: Hypotheses, image: int) -> list[Sentence]:
    """The real hypotheses of one image; checks that what pads them is as promised."""
    sentences = []
    for place in range(found.token_ids.shape[1]):
        length = int(found.lengths[image, place])
        finished = bool(found.finished[image, place])
        token_ids = found.token_ids[image, place].tolist()
        assert set(token_ids[length:]) <= {EOS}
        log_prob, score = found.log_probs[image, place].item(), found.scores[image, place].item()
        if log_prob == -torch.inf:
            assert (length, finished, score) == (0, False, -torch.inf)
            continue
        assert EOS not in token_ids[:length]
        spelled = (*token_ids[:length], EOS) if finished else tuple(token_ids[:length])
        sentences.append(Sentence(spelled, log_prob, score, finished))
    return sentences
