"""Neighbours: what people wrote about similar training images votes on candidates."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.data.caption_table import CaptionTable
from captioner.decoder.neighbours import (
    MAX_ORDER,
    MULTIPLIER,
    NEAREST,
    TEMPERATURE,
    Neighbours,
    count_ngrams,
    flat,
    ngram_keys,
)
from captioner.errors import ConfigError, ModelError
from captioner.search import Hypotheses
from captioner.text import tokenize
from captioner.training.run import train

import toys

IMAGES, EACH, WIDTH, SIZE = 40, 3, 9, 6


@pytest.fixture(scope="module")
def written() -> list[list[list[int]]]:
    """Captions of forty images, of few words, so that they share n-grams."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, WIDTH + 1, (IMAGES, EACH), generator=generator).tolist()
    return [
        [torch.randint(4, 12, (length,), generator=generator).tolist() for length in image]
        for image in lengths
    ]


def padded(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(sentences), max(map(len, sentences)), dtype=torch.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence)
    return ids, torch.tensor([len(sentence) for sentence in sentences])


@pytest.fixture(scope="module")
def neighbours(written) -> Neighbours:
    ids, lengths = padded([caption for image in written for caption in image])
    owners = torch.arange(IMAGES).repeat_interleave(EACH)
    states = torch.randn(IMAGES, SIZE, generator=torch.Generator().manual_seed(1))
    return Neighbours(
        functional.normalize(states).half().float(), **count_ngrams(ids, lengths, owners)
    )


def ngrams(sentence: list[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(sentence[i : i + order]) for i in range(len(sentence) - order + 1))


def by_the_book(candidate: list[int], written, cosines: list[float]) -> float:
    """Expected CIDEr (not D, not times ten) over the nearest; n-grams of one image do not match."""
    nearest = sorted(range(IMAGES), key=lambda i: -cosines[i])[:NEAREST]
    shares = torch.tensor([cosines[i] / TEMPERATURE for i in nearest]).softmax(0).tolist()
    total = 0.0
    for order in (1, 2, 3, 4):
        seen_in = Counter(
            g for image in written for g in set().union(*(ngrams(c, order) for c in image))
        )

        def vector(sentence, order=order, seen_in=seen_in):
            counts = ngrams(sentence, order)
            weights = {g: n * math.log(IMAGES / max(1, seen_in[g])) for g, n in counts.items()}
            norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
            return {g: w / norm for g, w in weights.items()}

        ours = vector(candidate)
        for share, image in zip(shares, nearest, strict=True):
            for caption in written[image]:
                theirs = vector(caption)
                cosine = sum(w * theirs.get(g, 0.0) for g, w in ours.items() if seen_in[g] > 1)
                total += share * cosine / EACH / 4
    return total


def test_votes_are_the_expected_cider_by_the_book(written, neighbours):
    candidates = [written[3][0], [4, 5, 6, 7, 4, 5], [11], [4, 4, 4, 4, 4], [50, 51]]
    ids, lengths = padded(candidates)
    states = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2)) * 7
    votes = neighbours.votes(ids.expand(2, -1, -1), lengths.expand(2, -1), states)
    cosines = functional.normalize(states) @ neighbours.states.float().t()
    for image in range(2):
        expected = [by_the_book(c, written, cosines[image].tolist()) for c in candidates]
        assert votes[image].tolist() == pytest.approx(expected, abs=2e-3)
    assert votes[:, -1].tolist() == [0, 0]
    assert 0 < votes[:, :-1].min() <= votes.max() <= 1


def test_pictures_are_counted_in_pieces_where_there_are_many_ngrams(neighbours, monkeypatch):
    ids, lengths = padded([[4, 5, 6], [7, 8, 9, 10], [4, 4]])
    states = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(3))
    arguments = ids.expand(5, -1, -1), lengths.expand(5, -1), states
    whole = neighbours.votes(*arguments)
    monkeypatch.setattr("captioner.decoder.neighbours.MAX_SUMS", 2 * len(neighbours.keys))
    torch.testing.assert_close(neighbours.votes(*arguments), whole)


def test_what_is_said_of_the_most_similar_picture_wins(written, neighbours):
    ids, lengths = padded([written[3][0], written[8][0]])
    for image, winner in ((3, 0), (8, 1)):
        own = neighbours.states[image : image + 1].float()
        votes = neighbours.votes(ids[None], lengths[None], own)
        assert votes.argmax() == winner


def test_ranking_adds_votes_and_keeps_the_unfinished_behind(written, neighbours):
    ids, lengths = padded([written[3][0], [50, 51], written[3][1], [], [4]])
    scores = torch.tensor([[-1.0, -0.5, -0.9, -torch.inf, -0.1]])
    finished = torch.tensor([[True, True, True, False, False]])
    found = Hypotheses(ids[None, ..., None], lengths[None], scores * 2, scores, finished)
    hidden = neighbours.states[3].float().view(2, 1, SIZE // 2)
    ranked = neighbours.rank(found, hidden, 10.0)
    votes = neighbours.votes(ids[None], lengths[None], neighbours.states[3:4].float())
    expected = (scores + 10 * votes)[0]
    order = sorted(range(5), key=lambda i: (not finished[0, i], -expected[i].item()))
    assert order[:2] in ([0, 2], [2, 0])
    assert order[-1] == 3
    torch.testing.assert_close(ranked.scores[0], expected[order])
    torch.testing.assert_close(ranked.log_probs[0], 2 * scores[0, order])
    assert ranked.token_ids[0].equal(ids[order])
    assert neighbours.rank(found, hidden, 0.0).lengths[0].tolist() == [2, len(written[3][1]),
        len(written[3][0]), 1, 0]  # fmt: skip


def test_captions_without_any_common_ngram_have_no_votes():
    ids, lengths = padded([[4], [5]])
    alone = Neighbours(torch.eye(2), **count_ngrams(ids, lengths, torch.arange(2)))
    assert alone.votes(ids[None], lengths[None], torch.ones(1, 2)).tolist() == [[0, 0]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Config, Captioner]:
    """Train a toy whose neighbours vote."""
    folder = tmp_path_factory.mktemp("neighbours")
    config = toys.config(folder, epochs=2)
    tree = config.model_dump()
    tree["decoding"] |= {"neighbours": 3.0}
    tree["encoder"] |= {"flip": True}
    config = Config.model_validate(tree)
    return config, Captioner.load(train(config, folder / "run", device="cpu").folder, "cpu")


def test_a_run_keeps_what_people_wrote_and_its_model_captions_with_it(trained, tmp_path):
    _, captioner = trained
    kept = captioner.neighbours
    assert kept is not None
    assert captioner.decoding.neighbours == 3.0
    states = captioner.decoder.num_layers * captioner.decoder.hidden_size  # h without c
    assert kept.states.shape == (len(kept.starts) - 1, states)
    torch.testing.assert_close(kept.states.float().norm(dim=1), torch.ones(len(kept.states)),
                               atol=1e-2, rtol=0)  # fmt: skip
    features = torch.randn(4, captioner.encoder.feature_size)
    captioner.save(tmp_path / "model")
    again = Captioner.load(tmp_path / "model", "cpu")
    found = captioner.search(features, n_best=3)
    assert again.search(features, n_best=3) == found
    alone = captioner.search(features, captioner.settings(neighbours=0), n_best=3)
    assert found != alone
    assert all(a.score >= b.score for own in found for a, b in pairwise(own))


def test_an_ensemble_asks_the_neighbours_of_its_first_model(trained, tmp_path):
    _, captioner = trained
    captioner.save(tmp_path / "first")
    other = Captioner.load(tmp_path / "first", "cpu")
    with torch.no_grad():
        for weight in other.decoder.parameters():
            weight.mul_(-1)
    other.neighbours = None
    other.decoding = other.decoding.model_copy(update={"neighbours": 0.0})
    other.save(tmp_path / "second")
    both = Captioner.load([tmp_path / "first", tmp_path / "second"], "cpu")
    features = torch.randn(4, captioner.encoder.feature_size)
    plain, voted = (
        both.search(features, both.settings(neighbours=each), n_best=3) for each in (0.0, 3.0)
    )
    states = flat(captioner.decoder.init_hidden(features)[: captioner.decoder.num_layers])
    for image in range(4):
        for caption in voted[image]:
            ids = torch.tensor([[captioner.vocabulary.encode(tokenize(caption.text))]])
            length = torch.tensor([[ids.shape[2]]])
            vote = captioner.neighbours.votes(ids, length, states[image : image + 1]).item()
            before = {each.text: each.score for each in plain[image]}
            assert caption.text not in before or caption.score == pytest.approx(
                before[caption.text] + 3 * vote, abs=1e-4
            )
        assert {each.text for each in plain[image]} & {each.text for each in voted[image]}


def test_states_are_of_whole_features_also_without_a_moving_average(trained, tmp_path):
    config, _ = trained
    tree = config.model_dump()
    tree["training"] |= {"ema_decay": 0.0}
    tree["decoder"] |= {"feature_dropout": 0.9}
    seen = []
    own = Neighbours.gather

    def noted(decoder, features, ngrams):
        features = list(features)
        made = own(decoder, features, ngrams)
        seen.append((made.states, own(decoder.eval(), features, ngrams).states))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Neighbours, "gather", noted)
        train(Config.model_validate(tree), tmp_path / "run", device="cpu")
    assert seen
    assert all(torch.equal(first, again) for first, again in seen)


def test_the_views_of_a_picture_are_seen_as_one(trained, tmp_path, monkeypatch):
    config, _ = trained
    seen = []
    own = CaptionTable.image_features

    def noted(table):
        seen.append(torch.cat(list(own(table))))
        rows = table.rows[table.images.diff(prepend=torch.tensor([-1])) > 0]
        torch.testing.assert_close(seen[-1], table.features[rows].float().mean(1))
        assert rows.shape[1] == 2
        return own(table)

    monkeypatch.setattr(CaptionTable, "image_features", noted)
    train(config, tmp_path / "run", device="cpu")
    assert seen


def test_asking_for_votes_that_nobody_can_give_is_refused():
    captioner = toys.captioner()
    with pytest.raises(
        ConfigError, match=r"decoding\.neighbours: this model stores no training captions"
    ):
        captioner.settings(neighbours=2.0)


WRAPPED = torch.tensor([2**63 - 1, -(2**63)])


def overflowing(starts: Tensor) -> Tensor:
    """Differences of these wrap around to what looks ascending."""
    starts = starts.clone()
    starts[1:4] = torch.tensor([2**63 - 1, -(2**63), -1])
    return starts


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("states", lambda t: t[:, 1:], "do not fit"),
        ("states", lambda t: t[1:], "do not fit"),
        (
            "states",
            lambda t: t.float(),
            "neighbours.states must be a 2-dimensional torch.float16 tensor",
        ),
        ("keys", lambda t: t.flip(0), "do not fit"),
        ("keys", None, "neighbours.keys is missing"),
        ("idf", lambda t: t[1:], "do not fit"),
        ("idf", lambda t: t * torch.inf, "holds a number that is not finite"),
        ("starts", lambda t: t.flip(0), "do not fit"),
        ("starts", lambda t: t + 1, "do not fit"),
        ("starts", overflowing, "do not fit"),
        ("keys", lambda t: torch.cat((t[:-2], WRAPPED)), "do not fit"),
        ("idf", lambda t: t * 100, "do not fit"),
        ("idf", lambda t: -t - 0.1, "do not fit"),
        ("weights", lambda t: t + 2, "do not fit"),
        ("weights", lambda t: t - 1.5, "do not fit"),
        ("ngrams", lambda t: t + 10**6, "do not fit"),
        ("ngrams", lambda t: t - 10**6, "do not fit"),
        (
            "ngrams",
            lambda t: t[None],
            "neighbours.ngrams must be a 1-dimensional torch.int32 tensor",
        ),
        ("weights", lambda t: t[1:], "do not fit"),
    ],
)
def test_a_strangers_neighbours_are_checked(trained, tmp_path, name, change, reason):
    _, captioner = trained
    captioner.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensor = tensors.pop(f"neighbours.{name}")
    if change:
        tensors[f"neighbours.{name}"] = change(tensor).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        Captioner.load(tmp_path, "cpu")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_they_move_with_the_captioner(trained):
    _, captioner = trained
    moved = captioner.neighbours.to(torch.device("meta"))
    assert {t.device.type for t in moved.tensors().values()} == {"meta"}
    assert moved._replace(states=captioner.neighbours.states).states.device.type == "cpu"


def test_keys_tell_ngrams_and_their_orders_apart_and_say_which_are_real():
    token_ids = torch.tensor([[5, 6, 5, 6], [6, 5, 6, 1], [0, 0, 0, 0]])
    lengths = torch.tensor([4, 3, 1])
    with torch.device("meta"):  # nothing may be made elsewhere than where the tokens are
        first, real = ngram_keys(token_ids[None, :2], lengths[None, :2], 2)
    assert first.shape == real.shape == (1, 2, 3)
    # Models hold keys: they must stay as they are.
    assert (
        first[0, 1, 2].item() == (((2 * MULTIPLIER + 6) * MULTIPLIER + 1) + 2**63) % 2**64 - 2**63
    )
    assert (MULTIPLIER, MAX_ORDER) == (6_364_136_223_846_793_005, 4)
    seen = {}
    for order in (1, 2, 3, 4):
        keys, real = ngram_keys(token_ids, lengths, order)
        assert keys.shape == real.shape == (3, 5 - order)
        places = range(5 - order)
        assert real.tolist() == [[p + order <= length for p in places] for length in (4, 3, 1)]
        for row, of_row in enumerate(keys.tolist()):
            for place, key in enumerate(of_row):
                gram = tuple(token_ids[row, place : place + order].tolist())
                assert seen.setdefault(key, gram) == gram
    assert len(seen) == len(set(seen.values())) == 4 + 4 + 4 + 3
