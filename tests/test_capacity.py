"""The simulation of captioning jobs gives what can be calculated by hand."""

import json
import sys
from pathlib import Path

import pytest

from captioner.captioning.records import BATCH_SIZE
from captioner.pipeline import IMAGES_PER_SEARCH
from captioner.system import workers as captioner_workers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import capacity  # noqa: E402
from capacity import Times, simulate, steady  # noqa: E402

sys.path.pop(0)

TIMES = Times(decode=0.006, cnn=0.009, search=0.003)
SUM = 0.018


def test_it_knows_the_constants_of_captioner():
    assert capacity.BATCH == BATCH_SIZE
    assert capacity.SEARCHED == IMAGES_PER_SEARCH
    assert capacity.AHEAD == captioner_workers.AHEAD


def test_a_core_does_one_thing_after_another():
    found = simulate(TIMES, 1000)
    assert found.rate == pytest.approx(1 / SUM)
    assert found.busy["cores"] == pytest.approx(1)
    assert found.first == "cores: cnn"


@pytest.mark.parametrize(("workers", "decoders"), [(1, 2), (2, 1), (4, 2)])
def test_free_cores_add_up(workers, decoders):
    found = steady(TIMES, workers, decoders)
    assert found.rate == pytest.approx(workers * decoders / SUM, rel=0.01)


def test_one_thread_searches_while_the_other_has_nothing_to_do():
    times = Times(decode=0, cnn=0, search=0.01)
    assert simulate(times, 128, decoders=2).rate == pytest.approx(100)
    assert simulate(times, 256, decoders=2).rate == pytest.approx(200)


def test_a_slow_network_bounds_all():
    found = steady(TIMES, 20, 2, size=1e5, bytes_per_second=1e8)
    assert found.rate == pytest.approx(1000, rel=0.01)
    assert found.first == "network"
    wide = steady(TIMES, 20, 2, size=1e5, bytes_per_second=1e12)
    assert wide.rate == pytest.approx(40 / SUM, rel=0.01)
    assert wide.first == "cores: cnn"


def test_beside_a_gpu_the_slower_side_bounds():
    times = Times(decode=0.006, cnn=0.0004, search=0.0001, gpu=True)
    few, many = (steady(times, 1, decoders) for decoders in (4, 16))
    assert few.rate == pytest.approx(4 / 0.006, rel=0.05)
    assert few.first == "cores: decode"
    assert many.rate == pytest.approx(1 / 0.0005, rel=0.05)
    assert many.first == "GPU"


def test_the_guide_shows_what_the_command_prints():
    page = (ROOT / "docs" / "guides" / "scale.md").read_text()
    content = json.loads(capacity.TIMES.read_text())
    assert capacity.plan(content) in page
