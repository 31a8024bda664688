"""The workers of a cluster: each has blocks to caption; a lost worker is replaced.

A block whose worker dies is tried again. A picture that kills its worker each time, by its need of
memory or by a crash of a decoder, is found by cutting the block into pieces, and costs itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from captioner.captioning.engine import Batches, Finished, Listed
from captioner.captioning.journal import Done
from captioner.captioning.records import Record
from captioner.captioning.sources import Item
from captioner.errors import CaptionerError, ImageError

BLOCK_BATCHES = 8  # batches per block: a worker reads one batch while it captions another
BLOCK_BYTES = 2**28  # of archive members; a block that reaches it gets no further batch
BLOCKS_AHEAD = 2  # blocks that a worker has: one to caption, one to continue with
TRIES = 2  # of a block, and of an image, whose worker dies
PIECES = 8  # into which images are cut to find the one that kills
MOST_LOST = 3  # for each worker: replaced one after another, none with a model loaded
ASKED = 3  # workers that may die one after another of a question
DIED = ImageError(
    "the worker that captioned it died, twice: too little memory, or a crash of a decoder",
    kind="worker_died",
)

Block = list[list[Listed]]  # whole batches
Steps = Generator[tuple[str, Any], Any, Any]  # yields what to ask a worker; None: the worker died


@dataclass(slots=True, eq=False)
class _Run:
    """Steps that workers take, one after another."""

    steps: Steps
    asked: tuple[str, Any] = ("", None)
    answer: Any = None
    done: bool = False

    def go_on(self, answer: Any = None) -> None:
        """Take the next step, with the answer to the last one."""
        try:
            self.asked = self.steps.send(answer)
        except StopIteration as end:
            self.answer, self.done = end.value, True


class Crew:
    """Workers that caption: an `Engine`."""

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        count: int,
        models: list[Any],
        sent: Callable[[Item], Item] = lambda item: item,
    ):
        """Start the workers.

        Args:
            ray: the module.
            start: starts a worker; it has the methods of `ray.Worker`.
            count: number of workers.
            models: what the workers load, from Ray's store.
            sent: makes an item that a worker can read.
        """
        self.ray, self.start, self.models, self.sent = ray, start, models, sent
        errors = ray.exceptions
        self.lost_errors = (
            *(errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError),
            *(errors.ObjectLostError, errors.NodeDiedError),
        )
        self.running: dict[Any, tuple[Any, _Run | None]] = {}  # tasks, in the order of their start
        self.todo: deque[_Run] = deque()
        self.free: deque[Any] = deque()  # a worker stands here once for each block it may have
        self.count, self.lost, self.why = count, 0, ""
        for _ in range(count):
            self._hire()

    @property
    def arithmetic(self) -> str:
        """Number format and device of the first worker that is ready.

        Raises:
            CaptionerError: if workers die again and again, before or when they are asked.
        """
        run = self._begun(_asked("arithmetic"))
        while not run.done:
            self._wait()
        if run.answer is None:
            raise self._gone(ASKED, "after they loaded the model, when asked for their device")
        return cast(str, run.answer)

    def caption(self, batches: Batches) -> Iterator[Finished]:
        """Caption the images without a known record; yield batches in the order of the list.

        If the job ends early, the last batches are those of finished blocks, in no unbroken row.

        Raises:
            CaptionerError: if workers die again and again before they have loaded the model.
            Exception: any exception of the iterator of batches, after the captions of all images
                before it.
        """
        runs: deque[_Run] = deque()
        turns = BLOCKS_AHEAD * self.count
        blocks = _blocks(batches, self.sent, turns)
        ended: Exception | None = None
        while runs or ended is None:
            try:
                while ended is None and len(runs) < 2 * turns and not self.todo:
                    try:
                        runs.append(self._begun(tried(next(blocks))))
                    except Exception as error:  # usually StopIteration
                        ended = error
                if runs:
                    self._wait()
            except BaseException:  # a job that ends keeps what is finished
                for run in runs:
                    yield from run.answer if run.done else ()
                raise
            while runs and runs[0].done:
                yield from runs.popleft().answer
        if ended and not isinstance(ended, StopIteration):
            raise ended

    def close(self) -> None:
        """End the workers."""
        for worker in {*self.free, *(worker for worker, _ in self.running.values())}:
            self._end(worker)

    def _hire(self) -> None:
        # A worker is free when it has finished its first, empty block: its model is loaded.
        worker = self.start()
        self.running[worker.caption.remote(self.models, [])] = worker, None

    def _end(self, worker: Any) -> None:
        with suppress(Exception):  # it may be dead
            self.ray.kill(worker)

    def _begun(self, steps: Steps) -> _Run:
        run = _Run(steps)
        run.go_on()
        self.todo.append(run)
        self._assign()
        return run

    def _assign(self) -> None:
        while self.todo and self.free:
            worker, run = self.free.popleft(), self.todo.popleft()
            method, argument = run.asked
            self.running[getattr(worker, method).remote(self.models, argument)] = worker, run

    def _wait(self) -> None:
        """Wait for a task; take its answer, or replace its worker."""
        [task], _ = self.ray.wait(list(self.running))
        try:
            answer = self.ray.get(task)
        except self.lost_errors as error:
            self.why = str(error)
            self._replace(self.running[task][0])
        else:
            worker, run = self.running.pop(task)
            self.free.extend([worker] * (1 if run else BLOCKS_AHEAD))
            self._take(run, answer)
        self._assign()

    def _take(self, run: _Run | None, answer: Any) -> None:
        if run is None:
            self.lost = 0
            return
        run.go_on(answer)
        if not run.done:
            self.todo.appendleft(run)

    def _replace(self, worker: Any) -> None:
        """Replace a worker. Its oldest unfinished task fails; the tasks behind it did nothing."""
        self._end(worker)
        self.free = deque(other for other in self.free if other is not worker)
        tasks = [task for task, (whose, _) in self.running.items() if whose is worker]
        is_oldest = True
        for task in tasks:
            _, run = self.running.pop(task)
            try:
                self._take(run, self.ray.get(task))
            except self.lost_errors:
                if is_oldest:
                    self._fail(run)
                elif run:
                    self.todo.appendleft(run)
                is_oldest = False
        self._hire()

    def _fail(self, run: _Run | None) -> None:
        if run:
            self._take(run, None)
            return
        self.lost += 1
        if self.lost >= MOST_LOST * self.count:
            raise self._gone(self.lost, "while they loaded the model")

    def _gone(self, number: int, when: str) -> CaptionerError:
        reason = self.why.strip().splitlines()
        return CaptionerError(
            f"{number} workers died one after another {when}: "
            f"{reason[-1].strip() if reason else 'no reason given'}; give each more memory, or "
            f"look for the cause in Ray's logs of the workers"
        )


def _blocks(batches: Batches, sent: Callable[[Item], Item], turns: int) -> Iterator[Block]:
    """Cut batches into blocks of about `BLOCK_BYTES`; the first are small, to busy all workers.

    Raises:
        Exception: any exception of the batches, after a block of all images before it.
    """
    block: Block = []
    size = number = 0
    try:
        for batch in batches:
            block.append([])
            for listed in batch:
                block[-1].append(listed._replace(item=sent(listed.item)))
            sources = (listed.item.source for listed in block[-1])
            size += sum(len(source) for source in sources if isinstance(source, bytes))
            if len(block) >= min(BLOCK_BATCHES, 1 + number // turns) or size >= BLOCK_BYTES:
                yield block
                block, size, number = [], 0, number + 1
    except Exception:
        if block := [batch for batch in block if batch]:
            yield block
        raise
    if block:
        yield block


def _asked(method: str) -> Steps:
    """Ask until a worker answers; return None if too many of them die."""
    for _ in range(ASKED):
        answer = yield method, None
        if answer is not None:
            return answer
    return None


def tried(block: Block) -> Steps:
    """Caption a block; return its `Finished` batches.

    What its worker survives is captioned in whole batches, as without any death: batches may
    change the last digit of a score.
    """
    for _ in range(TRIES):
        done = yield "caption", block
        if done is not None:
            return done
    finished: list[Finished] = []
    if len(block) > 1:
        for batch in block:
            finished += yield from tried([batch])
        return finished
    [batch] = block
    apart: dict[int, Done] = {}
    died = yield from _apart(batch, apart, TRIES if len(batch) == 1 else 0)
    rest = [
        image._replace(item=replace(image.item, source=DIED)) if image.position in died else image
        for image in batch
    ]
    for _ in range(TRIES if len(batch) > 1 else 0):
        done = yield "caption", [rest]
        if done is not None:
            [(positions, images)] = done
            apart = dict(zip(positions, images, strict=True)) | {p: apart[p] for p in died}
            break
    return [([image.position for image in batch], [apart[image.position] for image in batch])]


def _apart(batch: list[Listed], apart: dict[int, Done], tries: int = 0) -> Steps:
    """Caption a batch in pieces, into `apart`; return the positions of images that killed.

    A batch of one image may have had some `tries` before.
    """
    died: set[int] = set()
    size = -(-len(batch) // PIECES)
    for start in range(0, len(batch), size):
        piece, done = batch[start : start + size], None
        for _ in range(TRIES - tries if len(piece) == 1 else 1):
            done = done or (yield "caption", [piece])
        if done is None and len(piece) > 1:
            died |= yield from _apart(piece, apart)
            continue
        if done is None:
            [(position, item, _)] = piece
            digest = (yield "digest", item) or b""
            record = Record(item.name, given_id=item.image_id).complete(DIED)
            done = [([position], [Done(item.name, digest, record, item.image_id)])]
            died.add(position)
        [(positions, images)] = done
        apart |= dict(zip(positions, images, strict=True))
    return died
