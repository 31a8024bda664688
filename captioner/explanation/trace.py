"""How one caption was written: what the search kept and cut, and how the hidden state moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioner.config import DecodingConfig
from captioner.decoder.captions import to_captions
from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.unrolled import unroll
from captioner.errors import ConfigError
from captioner.explanation.teacher_forcing import members_of
from captioner.search import Extensions, Hypotheses
from captioner.search.top_tokens import ids_of, log_probs_of
from captioner.system.foreign import excerpt
from captioner.text import Caption, Vocabulary

MAX_UNITS = 2**16
DIGITS = 6  # after the decimal point, in JSON


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence so far that the search looked at, by its last word.

    Attributes:
        id: its number, from 1 in the order of the steps.
        parent: `id` of the sentence that it extends by one word; 0: the start token.
        text: its last word; `<eos>` is the end token.
        caption: the sentence so far, as captions are written.
        log_prob: natural logarithm of the last word's probability, given the words before it.
        score: ranking score of the sentence so far: the sum of the log-probabilities divided by
            length ** length_penalty, without the neighbours' votes. Sampling: the sum.
        kept: the search extended it, or it is one of the captions that were ranked at the end.
            A finished sentence among the beam_size best of its step is kept too.
        finished: its last word is the end token.
    """

    id: int
    parent: int
    text: str
    caption: str
    log_prob: float
    score: float
    kept: bool
    finished: bool


@dataclass(frozen=True, slots=True)
class RankedCaption:
    """A caption that the search found.

    Attributes:
        id: `Candidate.id` of its last word or end token.
        text: the caption.
        log_prob: natural logarithm of its probability, end token included.
        score: the score that ranked it: `Candidate.score`, plus `votes`.
        votes: what the neighbours' votes added to the score, at least 0; 0 without neighbours.
    """

    id: int
    text: str
    log_prob: float
    score: float
    votes: float


@dataclass(frozen=True, slots=True)
class SearchTrace:
    """What a search looked at.

    Attributes:
        steps: the candidates of each step, the best of the step first. Beam search: the
            2 * beam_size best extensions of the live sentences. Sampling: the words that were drawn
            and, for each, the most probable words that were not.
        chosen: ids of the candidates along the chosen caption, one for each step.
        ranked: the captions that were ranked at the end, best first, the chosen one first:
            beam_size with neighbours, else n_best. With neighbours, the caption with the best
            `Candidate.score` need not be the first.
    """

    steps: tuple[tuple[Candidate, ...], ...]
    chosen: tuple[int, ...]
    ranked: tuple[RankedCaption, ...]


@dataclass(frozen=True, slots=True)
class StateTrace:
    """The hidden state while the chosen caption of T words, end token included, was written.

    Time 0 is the state that the image made. The state at time t gives word t. It is the h of the
    last layer. An ensemble's state holds the states of its models one after the other.

    Attributes:
        units: numbers of the units, from 0, those that move most first. A unit's movement is the
            sum of its absolute changes over time.
        values: T + 1 rows, one for each time, with the value of each of these units.
        norms: T + 1 Euclidean norms of the whole state, all units.
        influence: T numbers: for each word, the norm of the gradient of its log-probability with
            respect to the image's state, all layers, and c of an LSTM as well. It says how far the
            image's state is still felt. It is small for a word that is almost certain, because a
            small change of the state does not change its probability.
    """

    units: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    norms: tuple[float, ...]
    influence: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """How the caption of an image was written.

    Attributes:
        captions: up to n_best captions, best first, with their words and alternatives; the first
            is the chosen one.
        beam: what the search looked at.
        state: the hidden state while the chosen caption was written.
    """

    captions: tuple[Caption, ...]
    beam: SearchTrace
    state: StateTrace

    def to_json(self) -> dict[str, Any]:
        """Return `beam` and `state` in the form of JSON; the end token's text is empty."""
        steps = [[_row(candidate) for candidate in step] for step in self.beam.steps]
        ranked = [
            {
                "id": each.id,
                "caption": each.text,
                "log_prob": _rounded(each.log_prob),
                "score": _rounded(each.score),
                "votes": _rounded(each.votes),
            }
            for each in self.beam.ranked
        ]
        return {
            "beam": {"steps": steps, "chosen": [*self.beam.chosen], "ranked": ranked},
            "state": {
                "units": [*self.state.units],
                "values": [[*map(_rounded, row)] for row in self.state.values],
                "norms": [*map(_rounded, self.state.norms)],
                "influence": [*map(_rounded, self.state.influence)],
            },
        }


def _row(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "parent": candidate.parent,
        "text": "" if candidate.finished else candidate.text,
        "caption": candidate.caption,
        "log_prob": _rounded(candidate.log_prob),
        "score": _rounded(candidate.score),
        "kept": candidate.kept,
        "finished": candidate.finished,
    }


def _rounded(number: float) -> float:
    return round(number, DIGITS) or 0.0  # without -0.0


class _Node(NamedTuple):
    """A candidate before it is known what the search ranked at the end."""

    id: int
    parent: int
    token_id: int
    log_prob: float
    score: float
    kept: bool


def check_units(units: int) -> None:
    """Raise a ConfigError if there can be no such number of units."""
    if type(units) is not int or not 0 <= units <= MAX_UNITS:
        raise ConfigError(f"units: must be 0 to {MAX_UNITS:,}, given {excerpt(units, 60)}")


def trace(
    decoder: Decoder | Ensemble,
    vocabulary: Vocabulary,
    features: Tensor,
    options: DecodingConfig,
    found: Hypotheses,
    watched: Sequence[Extensions],
    *,
    n_best: int,
    alternatives: int,
    units: int,
    weights: Tensor | None = None,
) -> Trace:
    """Return how the captions of one image were written.

    Args:
        decoder: of the model.
        vocabulary: the text of each token id.
        features: of the image, (1, F).
        options: search settings.
        found: at least n_best hypotheses for it, best first.
        watched: what `beam_search` looked at; of a sample, nothing.
        n_best: captions to return.
        alternatives: for each word of the captions, one less than the choices that `found` holds.
        units: units of the hidden state to return, at most.
        weights: where the captions look, see `attend`.
    """
    [captions] = to_captions(
        found, vocabulary, words=True, alternatives=alternatives, weights=weights
    )
    sentences = _sentences(found)[: len(captions)]
    beam = options.search == "beam"
    steps = _extended(watched, options) if beam else _drawn(found, sentences)
    by_word = {(node.parent, node.token_id): node for step in steps for node in step}
    paths = [_path(by_word, sentence) for sentence in sentences]
    along = {node.id for path in paths for node in path}
    texts = _texts(steps, vocabulary)
    ranked = [
        RankedCaption(
            path[-1].id,
            caption.text,
            caption.log_prob,
            caption.score,
            caption.score - path[-1].score if beam else 0.0,
        )
        for path, caption in zip(paths, captions, strict=True)
    ]
    return Trace(
        tuple(captions[:n_best]),
        SearchTrace(
            tuple(
                tuple(_candidate(node, along, texts, vocabulary) for node in step) for step in steps
            ),
            tuple(node.id for node in paths[0]),
            tuple(ranked),
        ),
        follow(decoder, features, sentences[0], units),
    )


@torch.inference_mode(False)
@torch.enable_grad()
def follow(
    decoder: Decoder | Ensemble, features: Tensor, token_ids: Sequence[int], units: int
) -> StateTrace:
    """Follow the hidden state over one sentence, by teacher forcing in float64.

    Args:
        decoder: of the model.
        features: of the image, (1, F).
        token_ids: the sentence without start token, T of them.
        units: units to return, at most.
    """
    length, features = len(token_ids), features.clone()  # of an inference tensor: a normal one
    # Row t is for the gradient of word t; all rows have the same states.
    inputs = torch.tensor([Vocabulary.bos_id, *token_ids[:-1]]).expand(length, -1)
    members = members_of(decoder, features)
    runs = [
        unroll(member, part.expand(length, -1), inputs, torch.arange(1, length + 1))
        for member, part in members
    ]
    # The mean of the models' distributions, but for a constant.
    log_probs = torch.stack([run.logits.log_softmax(1) for run in runs]).logsumexp(0)
    of_words = log_probs.gather(1, torch.tensor(token_ids)[:, None]).sum()
    gradients = torch.autograd.grad(of_words, [run.states[0] for run in runs])
    influence = torch.stack([each.square().sum((0, 2)) for each in gradients]).sum(0).sqrt()
    pairs = zip(runs, members, strict=True)
    top = [torch.stack(run.states)[:, m.num_layers - 1, 0] for run, (m, _) in pairs]
    h = torch.cat(top, dim=1).detach()  # (T + 1, units)
    movement = h.diff(dim=0).abs().sum(0)
    order = movement.sort(descending=True, stable=True).indices[:units]
    return StateTrace(
        tuple(order.tolist()),
        tuple(map(tuple, h[:, order].tolist())),
        tuple(h.norm(dim=1).tolist()),
        tuple(influence.tolist()),
    )


def _sentences(found: Hypotheses) -> list[list[int]]:
    """Return the token ids of the image's sentences, end tokens included."""
    sizes = (found.lengths + found.finished)[0].tolist()
    return [row[:size] for row, size in zip(found.token_ids[0].tolist(), sizes, strict=True)]


def _extended(watched: Sequence[Extensions], options: DecodingConfig) -> list[list[_Node]]:
    """Return the candidates of each step of a beam search of one image."""
    steps: list[list[_Node]] = []
    alive, number = [0], 0  # ids of the live prefixes, and the last id
    for length, (totals, keys, beams, live) in enumerate(watched, 1):
        scores = totals / math.pow(length, options.length_penalty)
        columns = ids_of(keys), log_probs_of(keys), scores, beams
        rows = [*zip(*(column[0].tolist() for column in columns), strict=True)]
        numbers = [*accumulate((row[2] > -torch.inf for row in rows), initial=number)][1:]
        going = live[0].tolist()
        steps.append(
            [
                _Node(
                    number,
                    alive[beam],
                    token_id,
                    log_prob,
                    score,
                    place < options.beam_size
                    if token_id == Vocabulary.eos_id
                    else place in going and length < len(watched),
                )
                for place, (number, (token_id, log_prob, score, beam)) in enumerate(
                    zip(numbers, rows, strict=True)
                )
                if score > -torch.inf
            ]
        )
        alive, number = [numbers[place] for place in going], numbers[-1]
    return steps


def _drawn(found: Hypotheses, sentences: Sequence[Sequence[int]]) -> list[list[_Node]]:
    """Return the words drawn at each step, and the most probable that were not.

    Sentences that begin alike share their first candidates.
    """
    nodes: dict[tuple[int, int], _Node] = {}
    ids, log_probs = ids_of(found.written[0]).tolist(), log_probs_of(found.written[0]).tolist()
    steps = []
    last = [_Node(0, 0, Vocabulary.bos_id, 0.0, 0.0, True)] * len(sentences)
    for place in range(max(map(len, sentences))):
        step = []
        for row in [row for row, sentence in enumerate(sentences) if place < len(sentence)]:
            before = last[row]
            for token_id, log_prob in zip(ids[row][place], log_probs[row][place], strict=True):
                if (before.id, token_id) not in nodes and log_prob > -torch.inf:
                    score = before.score + log_prob
                    node = _Node(len(nodes) + 1, before.id, token_id, log_prob, score, False)
                    nodes[before.id, token_id] = node
                    step.append(node)
            last[row] = nodes[before.id, ids[row][place][0]]
        steps.append(sorted(step, key=lambda node: -node.score))
    return steps


def _path(by_word: Mapping[tuple[int, int], _Node], sentence: Sequence[int]) -> list[_Node]:
    """Return the candidates along a sentence; `by_word` has them by parent and token id."""
    path: list[_Node] = []
    for token_id in sentence:
        path.append(by_word[path[-1].id if path else 0, token_id])
    return path


def _texts(steps: Sequence[Sequence[_Node]], vocabulary: Vocabulary) -> dict[int, str]:
    """Return the sentence up to each candidate, by its id."""
    sentences: dict[int, list[int]] = {0: []}
    for node in (node for step in steps for node in step):
        sentences[node.id] = [*sentences[node.parent], node.token_id]
    join = vocabulary.tokenizer.detokenize
    return {number: join(vocabulary.decode(sentence)) for number, sentence in sentences.items()}


def _candidate(
    node: _Node, along: set[int], texts: dict[int, str], vocabulary: Vocabulary
) -> Candidate:
    """Return a candidate; `along` holds the ids of those along the ranked captions."""
    return Candidate(
        node.id,
        node.parent,
        vocabulary.shown(node.token_id),
        texts[node.id],
        node.log_prob,
        node.score,
        node.kept or node.id in along,
        node.token_id == vocabulary.eos_id,
    )
