"""Pictures that wait are captioned together.

Threads read and decode each picture as soon as it is there. One thread takes the pictures that are
decoded, encodes them together, and searches together for those that want the same.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Self, TypeVar

import torch
from torch import Tensor

from captioner.captioner import Captioner
from captioner.errors import CaptionerError, ImageError, within_memory
from captioner.explanation.trace import Trace
from captioner.images.decode import read_image
from captioner.pipeline import IMAGES_PER_SEARCH
from captioner.serving.answer import Captioned
from captioner.serving.limits import Limits, Uploads
from captioner.serving.refusal import busy
from captioner.serving.wish import Wish
from captioner.system.cores import cores
from captioner.system.memory import Memory
from captioner.system.workers import WithinMemory, workers
from captioner.text.words import Caption

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: for the CNN, uint8 (3, S, S).
        size: width and height of the whole.
        blank: see `Captioned`.
        seen: see `Captioned`.
    """

    pixels: Tensor
    size: tuple[int, int]
    blank: bool
    seen: tuple[float, float, float, float]


@dataclass(eq=False, slots=True)
class _Job:
    """A picture that waits for its caption."""

    wish: Wish
    picture: Picture
    done: asyncio.Future[Captioned]
    since: float = field(default=0.0)  # of the loop's clock, in seconds


Outcome = Captioned | Exception
Found = tuple[list[Caption], Trace | None]  # the captions of a picture, and how they were written


class Queue:
    """Captions pictures, in a `with` block of a running event loop."""

    def __init__(
        self,
        models: Mapping[str, Captioner],
        limits: Limits,
        uploads: Uploads,
        tell: Callable[[int], None] = lambda size: None,  # noqa: ARG005
    ):
        """Serve models, all on one device; `tell` is called with the size of each batch."""
        self.models, self.limits, self.uploads, self.tell = models, limits, uploads, tell
        self.encoders = {name: WithinMemory(each.encoder.see) for name, each in models.items()}
        self.memory = Memory()
        self.size = 0  # pictures that wait or are captioned
        self._jobs: deque[_Job] = deque()
        self._changed = asyncio.Event()  # a picture has come or gone
        self._left = asyncio.Event()  # a picture has gone
        self._open = ExitStack()

    async def __aenter__(self) -> Self:
        device = next(iter(self.models.values())).device
        self.crew = self._open.enter_context(workers(None, device))
        self.computer = self._open.enter_context(ThreadPoolExecutor(1))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._open.close()

    def check(self) -> None:
        """Refuse a request at once if the queue is full.

        Raises:
            RefusedError: if it is.
        """
        if self.size >= self.limits.max_queue:
            raise busy(f"busy: {self.size:,} pictures wait already; try again")

    async def room(self) -> None:
        """Wait until the queue is not full."""
        while self.size >= self.limits.max_queue:
            self._left.clear()
            await self._left.wait()

    async def caption(self, content: bytes, wish: Wish) -> Captioned:
        """Caption a picture; cancelling drops it from the queue.

        Args:
            content: encoded bytes.
            wish: what to do.

        Raises:
            ImageError: if the picture cannot be read or captioned.
            RefusedError: if the queue is full.
        """
        self.check()
        self.size += 1
        try:
            picture = await self._read(content, wish)
            loop = asyncio.get_running_loop()
            job = _Job(wish, picture, loop.create_future(), loop.time())
            self._jobs.append(job)
            self._changed.set()
            return await job.done
        finally:
            self.size -= 1
            self._changed.set()
            self._left.set()

    def _read(self, content: bytes, wish: Wish) -> asyncio.Future[Picture]:
        """Decode a picture in a thread, within the memory limit."""
        preprocess = self.models[wish.model].encoder.preprocess
        ticket = self.memory.join()  # in the order of the threads' own queue

        def read() -> Picture:
            try:
                claim = partial(self.memory.claim, number=ticket)
                image = read_image(content, max_pixels=self.limits.max_pixels, claim=claim)
                pixels, size = preprocess.pixels(image), image.size
                blank, seen = preprocess.is_blank(pixels), preprocess.seen(*size)
                return Picture(pixels, size, blank, seen)
            finally:
                self.memory.leave(ticket)

        def leave(future: Future[Picture]) -> None:
            if future.cancelled():  # before it began
                self.memory.leave(ticket)

        future = self.crew.pool.submit(read)
        future.add_done_callback(leave)
        return asyncio.wrap_future(future)

    async def _run(self) -> None:
        """Caption batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            first = [self._jobs.popleft() for _ in range(self._ready())]
            batch = [job for job in first if not job.done.done()]
            if not batch:
                continue
            self.tell(len(batch))
            outcomes = await loop.run_in_executor(self.computer, self._compute, batch)
            for job, outcome in outcomes.items():
                if job.done.done():  # the client has hung up
                    continue
                if isinstance(outcome, Exception):
                    job.done.set_exception(outcome)
                else:
                    job.done.set_result(outcome)

    def _ready(self) -> int:
        return min(len(self._jobs), self.limits.max_batch)

    async def _gather(self) -> None:
        """Wait for a picture, and then a little for others that are on their way."""
        loop = asyncio.get_running_loop()
        while not self._jobs:
            self._changed.clear()
            await self._changed.wait()
        end = self._jobs[0].since + self.limits.max_wait_ms / 1000
        while self._ready() < self.limits.max_batch and (left := end - loop.time()) > 0:
            if not self.uploads.reading and self.size == len(self._jobs):
                return  # nobody else is on the way
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _compute(self, batch: list[_Job]) -> dict[_Job, Outcome]:
        """Encode and search in the computing thread; an error for each picture that has one."""
        outcomes: dict[_Job, Outcome] = {}
        for name, jobs in _grouped(batch, lambda job: job.wish.model).items():
            try:
                with within_memory("to caption"):
                    outcomes |= self._captioned(name, jobs)
            except Exception as error:
                outcomes |= dict.fromkeys(jobs, error)
        return outcomes

    def _captioned(self, name: str, jobs: list[_Job]) -> dict[_Job, Outcome]:
        """Caption pictures with one model; leaves out those whose clients have hung up."""
        captioner, outcomes = self.models[name], dict[_Job, Outcome]()
        pixels = torch.stack([job.picture.pixels for job in jobs])
        per_pass = captioner.encoder.images_per_pass
        features = torch.cat(self.crew.compute(self.encoders[name], pixels, per_pass))
        rows = {job: row for row, job in zip(features, jobs, strict=True) if not job.done.done()}
        for same in _grouped(rows, _search_of).values():
            features = torch.stack([rows[job] for job in same])
            for job, found in zip(same, self._search(captioner, same, features), strict=True):
                outcomes[job] = self._outcome(captioner, job, rows[job][None], found)
        return outcomes

    def _outcome(
        self, captioner: Captioner, job: _Job, features: Tensor, found: Found | CaptionerError
    ) -> Outcome:
        """Answer a request, given its picture's features, (1, F); add the maps that it wants."""
        if isinstance(found, CaptionerError):
            return found
        (captions, trace), picture = found, job.picture
        maps: list[list[list[float]]] = []
        if job.wish.maps == "gradient" and not job.done.done():
            try:
                maps = captioner.map_words(picture.pixels, features, captions[0]).tolist()
            except CaptionerError as error:
                return error
            if len(maps) != len(captions[0].words):
                maps = []  # of other pieces than the search wrote
        return Captioned(
            *(captions, picture.size, picture.blank, picture.seen, maps),
            trace=None if trace is None else trace.to_json(),
        )

    def _search(
        self, captioner: Captioner, jobs: list[_Job], features: Tensor
    ) -> list[Found | CaptionerError]:
        """Search for the captions of pictures that want the same, given their features, (B, F)."""
        wish = jobs[0].wish
        if wish.trace:  # of a single picture
            return [self._traced(captioner, wish, features)]
        search = partial(
            captioner.search_each,
            options=wish.options,
            n_best=wish.n_best,
            words=wish.words > 0 or wish.maps != "",
            alternatives=wish.words,
            maps=wish.maps == "attention",
        )
        size = min(IMAGES_PER_SEARCH, ceil(len(features) / cores()))
        pieces = self.crew.compute(WithinMemory(search), features, size)
        every = [captions for piece in pieces for captions in piece]
        return [each if isinstance(each, ImageError) else (each, None) for each in every]

    def _traced(self, captioner: Captioner, wish: Wish, features: Tensor) -> Found | CaptionerError:
        try:
            trace = captioner.trace_features(
                features,
                wish.options,
                n_best=wish.n_best,
                alternatives=wish.words,
                maps=wish.maps == "attention",
            )
        except CaptionerError as error:
            return error
        return [*trace.captions], trace


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _search_of(job: _Job) -> Hashable:
    """Return what pictures that are searched together have in common.

    A random draw depends on the other pictures of a search, so each is drawn alone. A trace is of
    one picture.
    """
    wish = job.wish
    if wish.trace or wish.options.search == "sample":
        return id(job)
    return wish.options, wish.n_best, wish.words, wish.maps
