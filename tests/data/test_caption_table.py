import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.caption_table import CaptionTable, epoch_order, iterate
from captioner.text import Vocabulary

import toys


def make_table(views: int = 1) -> CaptionTable:
    captions = [
        [["a", "red", "square"], ["a", "square"]],
        [["the", "blue", "unicorn", "in", "the", "middle"]],
        [["a", "green", "square"], ["square"], ["in", "the", "middle"]],
    ]
    features = torch.arange(3 * views * 2, dtype=torch.float16).view(-1, 2)
    rows = torch.arange(3 * views).view(3, views)
    return CaptionTable.build(features, captions, toys.vocabulary(), views=rows, max_length=5)


def test_captions_are_framed_cut_and_padded():
    table, words = make_table(), toys.vocabulary()
    assert len(table) == 6
    assert words.decode(table.token_ids[0].tolist()) == ["a", "red", "square"]
    assert table.token_ids[0, 0] == words.bos_id
    assert table.token_ids[0, 4] == words.eos_id
    assert (table.token_ids[0, 5:] == words.pad_id).all()
    # longer than five words: cut, and an unknown word is <unk>
    assert table.lengths[2] == 7
    assert table.token_ids[2, 3] == words.unk_id
    assert table.rows.squeeze(1).tolist() == [0, 0, 1, 2, 2, 2]


@given(st.integers(1, 9))
def test_a_sample_is_spread_evenly(most):
    table, sampled = make_table(), make_table().sample(most)
    chosen = [number * 6 // min(most, 6) for number in range(min(most, 6))]
    assert len(set(chosen)) == len(sampled)
    for name in ("token_ids", "lengths", "rows", "images"):
        assert torch.equal(getattr(sampled, name), getattr(table, name)[chosen])


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=200),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_caption_once(lengths, batch_size, epoch):
    batches = epoch_order(torch.tensor(lengths), batch_size, seed=1, epoch=epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = torch.randint(2, 20, (300,))

    def order(seed, epoch):
        return torch.cat(epoch_order(lengths, 16, seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_buckets_waste_little_on_padding():
    lengths = torch.randint(5, 25, (5000,), generator=torch.Generator().manual_seed(0))
    batches = epoch_order(lengths, 50, seed=0, epoch=0)
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    assert padded / int(lengths.sum()) < 1.05


def test_batches_pair_each_caption_with_its_own_image():
    table = make_table()
    seen = []
    for batch in iterate(table, 2, seed=0, epoch=0):
        assert batch.tokens == int((batch.targets != Vocabulary.pad_id).sum())
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        for features, inputs in zip(batch.features, batch.inputs, strict=True):
            words = tuple(toys.vocabulary().decode(inputs.tolist()))
            seen.append((features.tolist(), words))
    assert ([2.0, 3.0], ("the", "blue", "<unk>", "in", "the")) in seen
    assert ([4.0, 5.0], ("square",)) in seen
    assert len(seen) == 6


def test_views_alternate_and_belong_to_the_image():
    table = make_table(views=2)
    shown = set()
    for epoch in range(8):
        for batch in iterate(table, 1, seed=0, epoch=epoch):
            if batch.tokens == 2:  # "square", of the third image: rows 4 and 5
                shown.add(batch.features[0, 0].item())
    assert shown == {8.0, 10.0}


@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_can_be_entered_anywhere(start):
    table = make_table(views=2)
    whole = list(iterate(table, 2, seed=3, epoch=1))
    part = list(iterate(table, 2, seed=3, epoch=1, start=start))
    assert len(part) == len(whole) - start
    for one, other in zip(whole[start:], part, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.features, other.features)
