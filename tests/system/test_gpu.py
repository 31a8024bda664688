"""Streams and graphs of a CUDA device, with stand-ins that note what they are told."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from captioner.system.gpu import SideStream, use
from captioner.system.graphs import record

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class FakeStream:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def synchronize(self) -> None:
        self.told.append(f"{self.name} ends")

    def record_event(self) -> str:
        self.told.append(f"{self.name} marks")
        return "mark"

    def wait_event(self, event: str) -> None:
        self.told.append(f"{self.name} waits for {event}")


class FakeTensor:
    is_cuda, device = True, CUDA

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def record_stream(self, stream: FakeStream) -> None:
        self.told.append(f"kept for {stream.name}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []

    @contextmanager
    def current(stream: FakeStream):
        told.append(f"{stream.name} is current")
        yield
        told.append(f"{stream.name} was current")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(f"side of {device}", told))
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("main", told))
    return told


def test_a_side_stream_is_current_in_its_block_and_waits_and_marks(told: list[str]) -> None:
    side = SideStream(CUDA)
    with side.current():
        told.append("work")
    assert side.mark() == "mark"
    side.wait()
    side_of = "side of cuda:0"
    wanted = [f"{side_of} is current", "work", f"{side_of} was current"]
    assert told == [*wanted, f"{side_of} marks", f"{side_of} ends"]


@pytest.mark.parametrize("side", [SideStream(CPU), SideStream(CUDA, wanted=False)])
def test_elsewhere_there_is_one_stream(side: SideStream, told: list[str]) -> None:
    with side.current():
        side.wait()
        assert side.mark() is None
    assert not told


def test_tensors_of_another_stream_are_waited_for_once_and_kept_each(told: list[str]) -> None:
    tensors: Any = [FakeTensor(told), FakeTensor(told)]
    use(tensors, made="mark")  # type: ignore[arg-type]
    assert told == ["main waits for mark", "kept for main", "kept for main"]
    told.clear()
    use(tensors)
    assert told == ["kept for main", "kept for main"]
    use([torch.ones(1)])
    assert len(told) == 2


def test_a_recorded_function_reads_and_leaves_memory_of_its_own(monkeypatch, told) -> None:
    calls: list[str] = []

    class FakeGraph:
        def replay(self) -> None:
            calls.append("replayed")

    @contextmanager
    def recording(graph: FakeGraph, stream: FakeStream, capture_error_mode: str):
        assert capture_error_mode == "thread_local"
        calls.append("recording")
        yield
        calls.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    given: list[torch.Tensor] = []

    def function(batch: torch.Tensor) -> torch.Tensor:
        given.append(batch)
        return batch * 2

    first = torch.ones(2, 3)
    replay = record(function, first)
    assert calls == ["recording", "recorded"]
    found = replay(torch.full((2, 3), 5.0))
    assert calls[-1] == "replayed"
    assert given[0].eq(5).all()  # the graph reads from here
    assert first.eq(1).all()
    assert found.data_ptr() != replay(first).data_ptr()
