"""Reading ahead, and captioning with functions in the place of a model."""

import ast
import threading
from pathlib import Path

import pytest
import torch

from captioner import pipeline
from captioner.pipeline import one_ahead, run
from captioner.system.workers import AHEAD, WithinMemory, workers

CPU = torch.device("cpu")


def test_the_pipeline_imports_no_part_of_a_model() -> None:
    tree = ast.parse(Path(pipeline.__file__).read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [name for name in modules if name.startswith("captioner.")]
    assert set(own) <= {
        "captioner.errors",
        "captioner.images.plain_jpeg",
        "captioner.system.gpu",
        "captioner.system.graphs",
        "captioner.system.stages",
        "captioner.system.workers",
    }


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


def test_a_batch_is_gathered_by_a_thread_before_it_is_asked_for() -> None:
    gathered: list[list[int]] = []
    main = threading.get_ident()

    def gather(batch: list[int]) -> list[int]:
        assert threading.get_ident() != main
        gathered.append(batch)
        return [-number for number in batch]

    with workers(1, CPU) as crew:
        results = crew.map_ahead(lambda number: number * 10, [[1, 2], [], [3]], gather)
        assert list(results) == [[-10, -20], [-30]]
    assert gathered == [[10, 20], [30]]


def test_what_gathering_raises_comes_in_its_turn() -> None:
    def gather(batch: list[int]) -> list[int]:
        return [1 // number for number in batch]

    with workers(2, CPU) as crew:
        results = crew.map_ahead(lambda number: number, [[1], [0], [2]], gather)
        assert next(results) == [1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_the_next_result_is_computed_before_one_is_used() -> None:
    made: list[int] = []

    def results():
        for number in range(4):
            made.append(number)
            yield number
        raise OSError("gone")

    used = []
    with pytest.raises(OSError, match="gone"):
        for number in one_ahead(results()):
            used.append((number, len(made)))
    assert used == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead(iter([]))) == []
    assert list(one_ahead(iter([7]))) == [7]


def test_memory_that_runs_out_halves_the_batch_from_then_on() -> None:
    """A device whose allocator gives 100 numbers."""
    sizes: list[int] = []

    def double(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if batch.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return batch * 2

    limited = WithinMemory(double)
    batch = torch.arange(640).view(64, 10)
    assert torch.cat(limited(batch)).equal(batch * 2)
    assert sizes == [64, 32, 16, *[8] * 8]
    sizes.clear()
    assert torch.cat(limited(batch[:12])).equal(batch[:12] * 2)
    assert sizes == [8, 4]
    with pytest.raises(torch.OutOfMemoryError):
        limited(torch.zeros(1, 101))
