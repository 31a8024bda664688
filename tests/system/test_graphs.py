"""Batches of fixed sizes; here what records a CUDA graph is replaced by its eager form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.system.graphs import Function, Graphed, fixed_rows


class Recorder:
    """Replays by calling the function, into memory that each replay overwrites."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, function: Function, batch: Tensor) -> Function:
        self.recorded.append(len(batch))
        given, found = batch.clone(), function(batch)

        def replay(batch: Tensor) -> Tensor:
            self.replayed.append(len(batch))
            given.copy_(batch)
            found.copy_(function(given))
            return found.clone()

        return replay


def double(batch: Tensor) -> Tensor:
    return batch.flatten(1).double() * 2


def test_sizes_are_few() -> None:
    sizes = [fixed_rows(rows) for rows in range(1, 257)]
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert sizes[255] == 256


def test_results_are_those_of_the_function_whatever_the_size() -> None:
    recorder = Recorder()
    graphed = Graphed(double, recorder)
    results, wanted = [], []
    for rows in (8, 8, 5, 8, 3, 8, 4, 1):
        batch = torch.randint(256, (rows, 3, 2, 2), dtype=torch.uint8)
        results.append(graphed(batch))
        wanted.append(double(batch))
    assert recorder.recorded == [8, 4]  # at the second batch of a size
    assert recorder.replayed == [8, 8, 8, 8, 4]
    for ours, theirs in zip(results, wanted, strict=True):  # no replay changed an earlier result
        assert ours.equal(theirs)


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    calls: list[int] = []

    def record(function: Function, batch: Tensor) -> Function:
        calls.append(len(batch))
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = Graphed(double, record)
    batch = torch.ones(2, 1)
    assert all(graphed(batch).equal(double(batch)) for _ in range(4))
    assert calls == [2]


def test_short_memory_releases_the_graphs_and_is_passed_on() -> None:
    recorder, short = Recorder(), [False]

    def function(batch: Tensor) -> Tensor:
        if short[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return double(batch)

    graphed = Graphed(function, recorder)
    batch = torch.ones(2, 1)
    graphed(batch), graphed(batch)
    short[0] = True
    with pytest.raises(torch.OutOfMemoryError):
        graphed(torch.ones(4, 1))
    assert not graphed._known
    short[0] = False
    assert graphed(batch).equal(double(batch))
    assert recorder.recorded == [2]
