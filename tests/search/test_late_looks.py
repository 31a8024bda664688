"""On a GPU a search looks only now and then at what is finished, and finds the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.search import Hypotheses, beam

from search_toys import BOS, EOS, beam_search, random_model, tied_model

WISHES = (
    {},
    {"beam_size": 1},
    {"beam_size": 1, "length_penalty": 2.0},
    {"n_best": 3, "length_penalty": 1.0, "choices": 2},
    {"n_best": 2, "no_repeat_ngram_size": 2, "repeat_penalty": 0.5},
    {"min_length": 3, "suppress_ids": (2,), "start": (3,)},
)


def same(found: Hypotheses, wanted: Hypotheses) -> None:
    length = wanted.written.shape[2]
    assert (found.token_ids[:, :, length:] == EOS).all()
    # Places after the end hold whatever was probable there.
    written = torch.arange(length) <= wanted.lengths[..., None]
    assert found.written[:, :, :length][written].equal(wanted.written[written])
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pause", [2, 4, 50])
@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("make", [random_model, tied_model])
def test_looking_later_finds_the_same_sentences(monkeypatch, make, wish, pause) -> None:
    wish = {"beam_size": 3, "max_length": 9, "suppress_ids": (BOS,)} | wish
    for seed in range(5):
        step, hidden = make(seed, vocab_size=7, num_images=6)
        wanted = beam_search(step, hidden, **wish)
        with monkeypatch.context() as patch:
            patch.setattr(beam, "_steps_between_looks", lambda device: pause)
            same(beam_search(step, hidden, **wish), wanted)


@pytest.mark.parametrize("pause", [2, 4, 50])
def test_what_overflows_after_the_end_of_a_sentence_does_not_reach_it(monkeypatch, pause) -> None:
    """The image is finished, and steps on beside others until the next look."""

    def step(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        age = hidden[0, :, 0]
        logits = torch.zeros(len(token_ids), 5)
        logits[:, EOS] = torch.where(hidden[0, :, 1] == 0, 20, -20)  # image 0 ends at once
        logits[(hidden[0, :, 1] == 0) & (age > 0)] = torch.nan
        logits[(hidden[0, :, 1] == 0) & (age > 1)] = torch.inf
        return logits, hidden + torch.tensor([1.0, 0.0])

    hidden = torch.stack((torch.zeros(3), torch.arange(3.0)), dim=1)[None]
    wish = {"beam_size": 2, "n_best": 1, "max_length": 6}
    wanted = beam_search(step, hidden, **wish)
    assert wanted.log_probs.isfinite().all()
    monkeypatch.setattr(beam, "_steps_between_looks", lambda device: pause)
    same(beam_search(step, hidden, **wish), wanted)


@pytest.mark.parametrize("pause", [2, 50])
def test_a_broken_image_is_broken_and_alone(monkeypatch, pause) -> None:
    model, hidden = random_model(1, num_images=4)

    def step(token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits, after = model(token_ids, hidden[:, :, :4])
        logits[hidden[0, :, 4] == 2] = torch.nan
        return logits, torch.cat((after, hidden[:, :, 4:]), dim=2)

    hidden = torch.cat((hidden, torch.arange(4.0).view(1, 4, 1)), dim=2)
    wanted = beam_search(step, hidden, beam_size=3, n_best=2, max_length=7)
    assert wanted.log_probs[2].isnan().all()
    assert not wanted.log_probs[[0, 1, 3]].isnan().any()
    monkeypatch.setattr(beam, "_steps_between_looks", lambda device: pause)
    same(beam_search(step, hidden, beam_size=3, n_best=2, max_length=7), wanted)


def test_the_processor_looks_at_each_step_and_other_devices_do_not() -> None:
    assert beam._steps_between_looks(torch.device("cpu")) == 1
    assert beam._steps_between_looks(torch.device("cuda")) == beam.GPU_STEPS > 1
