"""A crew whose workers die: by chance, by a picture, for ever. No Ray here; its parts are toys."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captioner.captioning import crew as module
from captioner.captioning.crew import DIED, TRIES, Crew
from captioner.captioning.engine import Listed
from captioner.captioning.journal import Done
from captioner.captioning.records import Record
from captioner.captioning.sources import Item
from captioner.errors import CaptionerError, ImageError
from captioner.system.batches import in_turn

BATCH = 5


class LostError(Exception):
    """What Ray raises for a task of a dead worker."""


class Toy:
    """Ray with workers that die on some images, and by the dice between tasks."""

    exceptions = SimpleNamespace(
        **dict.fromkeys(
            ("RayActorError", "WorkerCrashedError", "OutOfMemoryError", "ObjectLostError"),
            LostError,
        ),
        NodeDiedError=LostError,
    )

    def __init__(self, deadly: set[str], dice: random.Random, chance: float = 0.0):
        self.deadly, self.dice, self.chance = deadly, dice, chance
        self.asked = True  # whether a worker survives a question
        self.answers: dict[int, Any] = {}
        self.met: list[str] = []  # deadly images, each time
        self.started = self.tasks = 0

    def start(self) -> Worker:
        self.started += 1
        return Worker(self)

    def wait(self, tasks: list[int]) -> tuple[list[int], list[int]]:
        while not (ready := [task for task in tasks if task in self.answers]):
            self.dice.choice(Worker.living).turn()
        return [self.dice.choice(ready)], []

    def get(self, task: int) -> Any:
        if self.answers[task] is LostError:
            raise LostError("a worker died")
        return self.answers[task]

    def kill(self, worker: Worker) -> None:
        worker.die()


class Worker:
    """Does its tasks one after another."""

    living: list[Worker] = []  # noqa: RUF012 one toy at a time

    def __init__(self, toy: Toy):
        self.toy, self.queue, self.alive = toy, deque[tuple[int, str, Any]](), True
        self.living.append(self)

    def __getattr__(self, method: str) -> Any:
        def remote(_: object, argument: Any) -> int:
            self.toy.tasks += 1
            if self.alive:
                self.queue.append((self.toy.tasks, method, argument))
            else:
                self.toy.answers[self.toy.tasks] = LostError
            return self.toy.tasks

        return SimpleNamespace(remote=remote)

    def die(self) -> None:
        self.toy.answers |= {task: LostError for task, *_ in self.queue}
        self.queue.clear()
        if self.alive:
            self.living.remove(self)
        self.alive = False

    def turn(self) -> None:
        if not self.queue:
            return
        task, method, argument = self.queue[0]
        if self.toy.dice.random() < self.toy.chance:
            self.die()
            return
        if method == "arithmetic" and not self.toy.asked:
            self.die()
            return
        answer: Any = f"{method} of it"
        if method == "digest":
            answer = b"digest"
        if method == "caption":
            answer = []
            for batch in argument:
                names = {image.item.name for image in batch if image.item.source is not DIED}
                if deadly := self.toy.deadly & names:
                    self.toy.met += deadly
                    self.die()
                    return
                answer.append(([image.position for image in batch], [*map(done(batch), batch)]))
        self.queue.popleft()
        self.toy.answers[task] = answer


def done(batch: list[Listed]) -> Any:
    """A caption that depends on which images share a batch, as last digits do."""
    names = [image.item.name for image in batch if not isinstance(image.item.source, ImageError)]

    def record(image: Listed) -> Done:
        found = Record(image.item.name, given_id=" ".join(names))
        if isinstance(image.item.source, ImageError):
            found = Record(image.item.name).complete(image.item.source)
        return Done(image.item.name, b"", found)

    return record


@pytest.fixture(autouse=True)
def no_worker_is_left():
    Worker.living.clear()
    yield
    assert not Worker.living


def caption(toy: Toy, names: list[str], workers: int = 2) -> list[Done]:
    items = [Item(name, Path(name)) for name in names]
    batches = (
        (Listed(position, item) for position, item in batch)
        for batch in in_turn(enumerate(items), BATCH)
    )
    crew = Crew(toy, toy.start, workers, [])
    try:
        finished = list(crew.caption(batches))
    finally:
        crew.close()
    assert [p for positions, _ in finished for p in positions] == [*range(len(names))]
    return [image for _, batch in finished for image in batch]


NAMES = [f"{number}.png" for number in range(123)]


def test_without_deaths_blocks_grow_and_each_image_is_done_once():
    toy = Toy(set(), random.Random(0))
    found = caption(toy, NAMES)
    assert [image.name for image in found] == NAMES
    assert toy.started == 2
    assert found[0].record.given_id == "0.png 1.png 2.png 3.png 4.png"


@pytest.mark.parametrize("seed", range(6))
def test_workers_that_die_by_chance_change_nothing(seed):
    wanted = caption(Toy(set(), random.Random(0)), NAMES)
    toy = Toy(set(), random.Random(seed), chance=0.15)
    assert caption(toy, NAMES) == wanted
    assert toy.started > 2


@pytest.mark.parametrize("seed", range(3))
def test_an_image_that_kills_costs_itself_after_two_tries(seed):
    deadly = {"7.png", "8.png", "60.png", "122.png"}
    toy = Toy(deadly, random.Random(seed))
    found = caption(toy, NAMES)
    failed = [image for image in found if image.record.error]
    assert {image.name for image in failed} == deadly
    assert {image.digest for image in failed} == {b"digest"}  # known when the job goes on
    assert {image.record.kind for image in failed} == {"worker_died"}
    # The others meet in their batches as if it were a broken file.
    assert found[5].record.given_id == found[9].record.given_id == "5.png 6.png 9.png"
    assert toy.met.count("60.png") >= TRIES
    assert toy.started < 2 + 20 * len(deadly)


def test_images_that_kill_only_together_are_captioned_apart(monkeypatch):
    toy = Toy(set(), random.Random(0))
    turn = Worker.turn

    def crowded(worker: Worker) -> None:
        if worker.queue and worker.queue[0][1] == "caption":
            batches = worker.queue[0][2]
            if any(len(batch) > 3 and batch[0].position == 5 for batch in batches):
                worker.die()
                return
        turn(worker)

    monkeypatch.setattr(Worker, "turn", crowded)
    found = caption(toy, NAMES)
    assert [image.name for image in found] == NAMES
    assert not any(image.record.error for image in found)
    assert found[5].record.given_id == "5.png"


def test_workers_that_die_before_they_have_the_model_end_the_job():
    toy = Toy(set(), random.Random(0), chance=1)
    with pytest.raises(CaptionerError, match=r"6 workers died one after another .* a worker died"):
        caption(toy, NAMES)
    assert toy.started < 10


def test_the_arithmetic_is_that_of_a_worker():
    toy = Toy(set(), random.Random(1), chance=0.3)
    crew = Crew(toy, toy.start, 2, [])
    assert crew.arithmetic == "arithmetic of it"
    crew.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_that_die_of_the_question_end_the_job(workers):
    toy = Toy(set(), random.Random(2))
    toy.asked = False
    crew = Crew(toy, toy.start, workers, [])
    with pytest.raises(CaptionerError) as error:
        assert crew.arithmetic
    crew.close()
    [line] = str(error.value).splitlines()
    assert line == (
        "3 workers died one after another after they loaded the model, when asked for their "
        "device: a worker died; give each more memory, or look for the cause in Ray's logs of the "
        "workers"
    )
    assert toy.started == workers + 3


class CutOffError(Exception):
    """Of a list of images."""


@pytest.mark.parametrize("good", [0, 1, 7, 40, 88])
def test_a_list_that_breaks_loses_no_image_before_the_break(good):
    def broken():
        for position, name in enumerate(NAMES[:good]):
            yield position, Item(name, Path(name))
        raise CutOffError

    toy = Toy(set(), random.Random(good))
    crew = Crew(toy, toy.start, 2, [])
    batches = (
        (Listed(position, item) for position, item in batch) for batch in in_turn(broken(), BATCH)
    )
    found: list[Done] = []
    with pytest.raises(CutOffError):
        for _, batch in crew.caption(batches):
            found += batch
    crew.close()
    assert [image.name for image in found] == NAMES[:good]


@pytest.mark.parametrize("end", [CaptionerError("of a worker"), KeyboardInterrupt()])
def test_a_job_that_ends_early_keeps_the_finished_blocks(monkeypatch, end):
    toy = Toy(set(), random.Random(0))
    get, finished = toy.get, set[str]()

    def failing(task: int) -> Any:
        answer = get(task)
        names = {image.name for _, batch in answer for image in batch}
        if "20.png" in names:
            raise end
        finished.update(names)
        return answer

    monkeypatch.setattr(toy, "get", failing)
    # The block before the failing one is slow.
    wait, turns = toy.wait, iter(range(10**6))
    monkeypatch.setattr(
        toy, "wait", lambda tasks: wait(tasks[1:] if next(turns) > 3 and tasks[1:] else tasks)
    )
    crew = Crew(toy, toy.start, 2, [])
    items = enumerate(Item(name, Path(name)) for name in NAMES)
    batches = ((Listed(*pair) for pair in batch) for batch in in_turn(items, BATCH))
    found: list[str] = []
    with pytest.raises(type(end)):
        for _, batch in crew.caption(batches):
            found += [image.name for image in batch]
    crew.close()
    assert sorted(found) == sorted(finished)
    assert found != NAMES[: len(found)]  # with a gap


def test_a_block_does_not_hold_more_bytes_than_it_may(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 2 * BATCH)
    batches = (
        iter([Listed(n * BATCH + k, Item("x", b"1234")) for k in range(BATCH)]) for n in range(9)
    )
    sizes = [len(block) for block in module._blocks(batches, lambda item: item, 1)]
    assert sizes == [1] * 9
