"""Reading ahead, and captioning with functions in the place of a model."""

import ast
import threading
from pathlib import Path

import pytest
import torch

from captioner import pipeline
from captioner.pipeline import run
from captioner.system.workers import AHEAD, WithinMemory, workers

CPU = torch.device("cpu")


def test_the_pipeline_imports_no_part_of_a_model() -> None:
    tree = ast.parse(Path(pipeline.__file__).read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [name for name in modules if name.startswith("captioner.")]
    assert set(own) <= {"captioner.errors", "captioner.system.workers"}


def test_captions_come_in_the_order_of_the_images_whatever_a_core_computes_at_a_time() -> None:
    sizes: list[int] = []

    def encode(pixels):
        sizes.append(len(pixels))
        return pixels[:, :1, 0, 0].float()

    def read(number):
        seen = torch.full((3, 2, 2), number, dtype=torch.uint8)
        return f"image {number}", None if number % 5 == 4 else seen

    batches = [range(7), range(7, 9), [10]]
    found = run(
        batches,
        read,
        encode,
        lambda features: [int(row) for row in features],
        device=CPU,
        images_per_pass=2,
        needed=lambda names: names != ["image 10"],
        num_workers=3,
    )
    expected = [(f"image {n}", None if n % 5 == 4 else n) for n in range(9)]
    assert list(found) == [expected[:7], expected[7:], [("image 10", None)]]
    assert sorted(sizes) == [2, 2, 2, 2]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_results_come_before_what_the_iterator_raises(size: int) -> None:
    def batches():
        for start in range(0, 9, size):
            yield (number for number in range(start, min(start + size, 9)))
        yield (1 / 0 for _ in "a")

    with workers(2, CPU) as crew:
        results = crew.map_ahead(lambda number: number * 10, batches())
        given = []
        with pytest.raises(ZeroDivisionError):
            for each in results:
                given += each
    assert given == [number * 10 for number in range(9)]


def test_no_more_batches_are_read_ahead_than_promised() -> None:
    asked: list[int] = []

    def batches():
        for number in range(10):
            asked.append(number)
            yield [number]

    with workers(2, CPU) as crew:
        results = crew.map_ahead(lambda number: number, batches())
        assert not asked
        for number in range(10):
            assert next(results) == [number]
            assert len(asked) == min(number + 1 + AHEAD, 10)


def test_an_item_is_read_before_the_next_of_its_batch_is_asked_for() -> None:
    read = threading.Event()

    def batch():
        yield "first"
        assert read.wait(timeout=600)
        yield "second"

    with workers(1, CPU) as crew:
        results = crew.map_ahead(lambda item: read.set() or item, [batch()])
        assert next(results) == ["first", "second"]


def test_a_device_with_memory_of_its_own_computes_the_whole_batch() -> None:
    batch = torch.arange(7)
    with workers(2, CPU) as crew:
        assert crew.compute(WithinMemory(len), batch, 3) == [3, 3, 1]
        crew.device = torch.device("meta")
        assert crew.compute(WithinMemory(len), batch, 3) == [7]
