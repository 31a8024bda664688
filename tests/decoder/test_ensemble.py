"""Several models as one: the average of their distributions decides on every word."""

import pytest
import torch

from captioner.captioner import Captioner
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.encoder import side_by_side
from captioner.errors import ModelError
from captioner.model_dir import Model, join_models
from captioner.text import Vocabulary

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")


def decoders():
    torch.manual_seed(1)
    shapes = ({"cell": "lstm", "num_layers": 2}, {"cell": "gru"}, {"cell": "elman"})
    return [toys.decoder(**shape).eval() for shape in shapes]


def parts(captioner):
    return Model(captioner.encoder, captioner.decoder, captioner.vocabulary, captioner.decoding)


def together(models):
    encoder, decoder = join_models(models)
    return Captioner(encoder, decoder, models[0][1].vocabulary, models[0][1].decoding)


def test_a_step_averages_the_distributions_and_keeps_every_state():
    members = decoders()
    width = toys.batch().features.shape[1]
    columns = [torch.arange(width), torch.arange(width).flip(0), torch.arange(width)]
    ensemble = Ensemble(members, columns)
    features, ids = torch.randn(5, width), torch.randint(4, 20, (5, 3))
    with torch.inference_mode():
        hidden, step = ensemble.stepper().start(features)
        own = [m.init_hidden(features[:, c]) for m, c in zip(members, columns, strict=True)]
        for t in range(3):
            log_probs, hidden = step(ids[:, t], hidden, torch.arange(5))
            wanted = torch.zeros_like(log_probs)
            for k, member in enumerate(members):
                logits, own[k] = member.step(ids[:, t], own[k])
                wanted += logits.softmax(-1) / 3
            torch.testing.assert_close(log_probs.exp(), wanted, atol=1e-6, rtol=1e-4)


def test_a_model_agrees_with_itself():
    one = toys.captioner()
    both = together([("a", parts(one)), ("b", parts(one))])
    assert both.encoder is one.encoder  # looks once
    features = torch.randn(7, one.encoder.feature_size)
    for captions, expected in zip(both.search(features), one.search(features), strict=True):
        assert captions[0].text == expected[0].text
        assert captions[0].log_prob == pytest.approx(expected[0].log_prob, rel=1e-4)


def test_members_may_look_through_different_cnns(tmp_path):
    one, other = toys.captioner(), toys.captioner()
    other.encoder = toys.encoder(seed=1)
    for captioner, name in ((one, "a"), (other, "b")):
        captioner.save(tmp_path / name)
    both = Captioner.load([tmp_path / "a", tmp_path / "b"], "cpu")
    assert both.encoder.feature_size == 2 * one.encoder.feature_size
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    start, _ = both.decoder.stepper().start(both.encoder(pixels))
    own = [c.decoder.init_hidden(c.encoder(pixels)) for c in (one, other)]
    expected = torch.cat([state.transpose(0, 1).flatten(1) for state in own], 1)[None]
    torch.testing.assert_close(start, expected)
    assert isinstance(both.score(torch.zeros(3, 32, 32), "w5 w6"), float)


def test_a_member_may_look_through_one_cnn_twice():
    cnn = toys.encoder()
    twice = side_by_side([cnn, toys.encoder()])
    one = parts(toys.captioner())
    doubled = one._replace(
        encoder=twice, decoder=toys.decoder(feature_size=twice.feature_size, vocab_size=15).eval()
    )
    both = together([("a", one), ("b", doubled)])
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert both.encoder.feature_size == cnn.feature_size  # and yet it looks once
    start, _ = both.decoder.stepper().start(both.encoder(pixels))
    own = [each.decoder.init_hidden(each.encoder(pixels)) for each in (one, doubled)]
    expected = torch.cat([state.transpose(0, 1).flatten(1) for state in own], 1)[None]
    torch.testing.assert_close(start, expected)


def test_what_an_ensemble_cannot_be_is_said_in_one_line(tmp_path):
    one, other = toys.captioner(), toys.captioner()
    ensemble = together([("a", parts(one)), ("b", parts(other))])
    with pytest.raises(ModelError, match="an ensemble cannot be saved"):
        ensemble.save(tmp_path / "c")
    with pytest.raises(ModelError, match="an ensemble cannot be used for embeddings"):
        ensemble.embed("w5")
    words = other.vocabulary
    odd = parts(other)._replace(vocabulary=Vocabulary.build([(*words.words[:-1], "odd")], 1))
    with pytest.raises(ModelError, match="b: vocabulary differs from a"):
        join_models([("a", parts(one)), ("b", odd)])
    other.encoder.mirrored = True
    with pytest.raises(ModelError, match=r"b: encoder\.mirrored differs from a"):
        join_models([("a", parts(one)), ("b", parts(other))])
