"""A search on a GPU finds what the processor finds."""

from __future__ import annotations

import pytest
import torch

import toys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_search_finds_the_captions_of_the_processor(beam_size: int) -> None:
    captioner = toys.captioner()
    features = torch.randn(64, captioner.encoder.feature_size)
    options = captioner.settings(beam_size=beam_size, precision="fp32")
    wanted = captioner.search(features, options)
    found = captioner.to("cuda").search(features, options)
    same = [a[0].text == b[0].text for a, b in zip(found, wanted, strict=True)]
    assert sum(same) >= 62  # two near ties may fall the other way
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-3)
