import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.decoder import likelihood
from captioner.decoder.likelihood import embeddings, log_likelihoods
from captioner.errors import ImageError
from captioner.text import Vocabulary

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

CELLS = ["rnn", "gru", "lstm", "elman"]
CAPTIONS = [[4, 5, 6], [4, 5, 6, 7, 8], [], [9], [4, 5, 6], [4, 7, 4, 4], [3, 3], [4, 5]]


def by_hand(decoder, hidden, caption):
    """The log-likelihood of a caption given one image, one step after the other."""
    total, word = 0.0, Vocabulary.bos_id
    for target in [*caption, Vocabulary.eos_id]:
        logits, hidden = decoder.step(torch.tensor([word]), hidden)
        total += math.log(logits[0].softmax(0)[target])
        word = target
    return total


@pytest.fixture
def hidden():
    """Of five images, for any decoder."""

    def make(decoder):
        generator = torch.Generator().manual_seed(1)
        return decoder.stepper().start(torch.randn(5, decoder.feature_size, generator=generator))

    return make


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_sum_of_the_steps(cell, layers, hidden):
    decoder = toys.decoder(cell=cell, num_layers=layers).eval()
    with torch.inference_mode():
        states, step = hidden(decoder)
        found = log_likelihoods(step, states, CAPTIONS)
        assert found.shape == (5, len(CAPTIONS))
        for image in range(5):
            for i, caption in enumerate(CAPTIONS):
                expected = by_hand(decoder, states[:, image : image + 1], caption)
                assert found[image, i].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found[:, 0], found[:, 4])  # the same caption
    assert found.var(0).min() > 0  # images matter


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_how_much_is_read_together_changes_nothing(rows, hidden, monkeypatch):
    decoder = toys.decoder().eval()
    with torch.inference_mode():
        states, step = hidden(decoder)
        whole = log_likelihoods(step, states, CAPTIONS)
        monkeypatch.setattr(likelihood, "ROWS", rows)
        assert torch.allclose(log_likelihoods(step, states, CAPTIONS), whole, atol=1e-5)
        assert torch.allclose(embeddings(decoder, CAPTIONS), embed_one_by_one(decoder), atol=1e-6)


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.sampled_from([3, 4, 5, 6]), max_size=6), max_size=12), st.integers(0, 11)
)
def test_the_company_of_other_captions_changes_nothing(captions, i):
    decoder = toys.decoder(cell="gru").eval()
    states, step = decoder.stepper().start(torch.ones(2, 6))
    states = states.detach()
    together = log_likelihoods(step, states, captions)
    assert together.shape == (2, len(captions))
    if i < len(captions):
        alone = log_likelihoods(step, states, [captions[i]])
        assert torch.allclose(together[:, i : i + 1], alone, atol=1e-5)


def test_the_probabilities_of_all_captions_add_up():
    # words 3..5 of a vocabulary of 6, at most 7 of them; the rest of the probability is in longer
    # captions and in the two tokens no caption holds
    decoder = toys.decoder(vocab_size=6).eval()
    with torch.no_grad():
        decoder.output.bias[[0, 1]] = -50.0
        decoder.output.bias[2] = 3.0
    captions = [[]]
    for _ in range(7):
        captions += [[*c, w] for c in captions if len(c) == len(captions[-1]) for w in (3, 4, 5)]
    hidden, step = decoder.stepper().start(torch.ones(1, 6))
    found = log_likelihoods(step, hidden.detach(), captions)
    assert found.exp().sum().item() == pytest.approx(1, abs=2e-3)
    assert found.exp().sum() <= 1 + 1e-5


def test_long_captions_are_read_to_their_end():
    decoder = toys.decoder().eval()
    torch.manual_seed(0)
    caption = torch.randint(4, 20, (300,)).tolist()
    states, step = decoder.stepper().start(torch.ones(1, 6))
    (found,) = log_likelihoods(step, states.detach(), [caption])[0].tolist()
    with torch.inference_mode():
        logits, _ = decoder(torch.tensor([[Vocabulary.bos_id, *caption]]), states)
        expected = logits[0].log_softmax(-1)[range(301), [*caption, Vocabulary.eos_id]].sum()
    assert found == pytest.approx(expected.item(), rel=1e-4)


def embed_one_by_one(decoder):
    rows = []
    with torch.inference_mode():
        for caption in CAPTIONS:
            hidden = decoder.init_hidden(decoder.init_hidden.mean[None])
            for word in [Vocabulary.bos_id, *caption]:
                _, hidden = decoder.step(torch.tensor([word]), hidden)
            rows.append(hidden[: decoder.num_layers].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_an_embedding_is_the_state_after_the_last_word(cell, layers):
    decoder = toys.decoder(cell=cell, num_layers=layers).eval()
    decoder.measure(torch.randn(20, 6) + 3)
    found = embeddings(decoder, CAPTIONS)
    assert found.shape == (len(CAPTIONS), layers * 8)
    assert torch.allclose(found, embed_one_by_one(decoder), atol=1e-6)
    same = torch.cdist(found, found) < 1e-4
    assert same.sum() == len(CAPTIONS) + 2  # each itself, and captions 0 and 4 each other
    assert embeddings(decoder, []).shape == (0, layers * 8)


def test_embeddings_start_from_the_average_image():
    # norm "none": the state depends on where the average lies
    decoder = toys.decoder(feature_norm="none").eval()
    before = embeddings(decoder, CAPTIONS)
    decoder.measure(torch.randn(20, 6) + 3)
    assert (embeddings(decoder, CAPTIONS) - before).abs().min() > 0


@pytest.fixture(scope="module")
def captioner():
    return toys.captioner(cell="lstm")


@pytest.fixture
def pictures(tmp_path):
    return [toys.draw(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue", "white")]


TEXTS = ["A red square.", "a blue square in the middle", "a zebra", ""]


def test_one_image_and_one_caption_give_a_number(captioner, pictures):
    score = captioner.score(pictures[0], "A red square in the middle.")
    assert isinstance(score, float)
    words = captioner.vocabulary.encode(["a", "red", "square", "in", "the", "middle"])
    with torch.inference_mode():
        hidden = captioner.decoder.init_hidden(captioner.encode([Image.open(pictures[0])]))
        total = by_hand(captioner.decoder, hidden, words)
    assert score == pytest.approx(total / 7, rel=1e-5)  # six words and the end
    total_found = captioner.score(pictures[0], "A red square in the middle.", per_token=False)
    assert total_found == pytest.approx(total, rel=1e-5)


def test_many_give_all_pairs(captioner, pictures):
    matrix = captioner.score(iter(pictures), iter(TEXTS))
    assert matrix.shape == (3, 4)
    assert matrix.max() < 0
    for i, picture in enumerate(pictures):
        row = captioner.score(picture, TEXTS)
        assert row.shape == (4,)
        assert torch.allclose(row, matrix[i], atol=1e-5)
        for j, text in enumerate(TEXTS):
            assert captioner.score(picture, text) == pytest.approx(matrix[i, j].item(), abs=1e-5)
    assert torch.allclose(captioner.score(pictures, TEXTS[1]), matrix[:, 1], atol=1e-5)
    assert captioner.score([], TEXTS).shape == (0, 4)
    assert captioner.score(pictures, []).shape == (3, 0)
    assert captioner.score(pictures[:1], TEXTS[:1]).shape == (1, 1)


def test_more_images_than_go_through_the_cnn_together(captioner, pictures, monkeypatch):
    whole = captioner.score(pictures, TEXTS)
    monkeypatch.setattr("captioner.captioner.BATCH_SIZE", 2)
    assert torch.allclose(captioner.score(pictures, TEXTS), whole, atol=1e-5)


def test_score_agrees_with_the_search(pictures):
    captioner = toys.captioner(cell="gru")
    with torch.no_grad():
        captioner.decoder.output.bias[Vocabulary.eos_id] = 2.0
    found = captioner.search(captioner.encode([Image.open(pictures[0])]), n_best=3)[0]
    assert all(caption.finished for caption in found)
    for caption in found:
        score = captioner.score(pictures[0], caption.text, per_token=False)
        assert score == pytest.approx(caption.log_prob, rel=1e-5)


def test_an_unknown_word_counts_as_the_unknown_word(captioner, pictures):
    assert captioner.score(pictures[0], "a zebra") == captioner.score(pictures[0], "A giraffe!")
    assert captioner.score(pictures[0], "a zebra") != captioner.score(pictures[0], "a red")
    assert captioner.score(pictures[0], "a zebra zebra") != captioner.score(pictures[0], "a zebra")


def test_a_broken_image_is_one_clear_error(captioner, tmp_path):
    with pytest.raises(ImageError, match="cannot be read"):
        captioner.score(tmp_path / "nothing.jpg", "a square")


def test_embed_takes_texts_as_people_write_them(captioner):
    one = captioner.embed("A red square.")
    assert one.shape == (8,)
    assert one.dtype == torch.float32
    many = captioner.embed(iter(["a red square", "a blue square"]))
    assert many.shape == (2, 8)
    assert torch.equal(one, many[0])
    assert not torch.allclose(many[0], many[1])
