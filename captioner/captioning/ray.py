"""Image files -> caption records on many machines, with Ray.

The driver lists the images and writes the output. Each worker holds a model and captions blocks of
whole batches, so batches, and with them captions, are the same as without Ray.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from captioner.captioner import Captioner
from captioner.captioning.records import CaptioningOptions, Record, Totals, caption_files
from captioner.captioning.sources import Item, Packed
from captioner.captioning.uri import URI, UriFile, last_line
from captioner.captioning.writers import write_output
from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import CaptionerError, ConfigError, ImageError, checked_names
from captioner.images.content import Slice
from captioner.model_config import model_folder
from captioner.system.foreign import excerpt
from captioner.system.memory import Memory, usual_limit

BLOCK_BATCHES = 8  # batches per block: a worker reads one batch while it captions another
BLOCK_BYTES = 2**28  # of archive members; a block that reaches it gets no further batch
BLOCKS_AHEAD = 2  # blocks that a worker has: one to caption, one to continue with
MOST_GPUS = 1024  # per worker


@checked_names
def caption_with_ray(
    model: str | Path | Sequence[str | Path],
    items: Iterable[Item],
    output: Path,
    overrides: DecodingOverrides | None = None,
    how: CaptioningOptions | None = None,
    *,
    format: str = "jsonl",
    wording: Callable[[str], str] | None = None,
    min_confidence: float | None = None,
    num_gpus: float = 0,
    concurrency: int | None = None,
    address: str | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    worker_options: Mapping[str, Any] | None = None,
) -> Totals:
    """Caption images on a Ray cluster, or on this machine if there is no cluster.

    Ray may restart workers; each record is still written once, in the order of the items. The model
    is sent to the workers. The workers open files at the given paths, and read URIs (`s3://`,
    `gs://`, `hdfs://`, `file://`) through pyarrow. Failures are listed in `errors.jsonl`
    next to the output.

    Args:
        model: a model directory, a run directory that holds one, or several for an ensemble.
        items: images; consumed lazily.
        output: file to write, atomically.
        overrides: search settings to change, such as {"beam_size": 5}.
        how: captioning settings of each worker; None: the defaults. A worker without a GPU asks for
            `num_workers` cores, by default 1; a worker with a GPU has one thread per core of its
            machine.
        format: a format of `writers.FORMATS` that writes one file, such as `jsonl` or `parquet`.
        wording: writes out the text of a caption, such as `sentence`; None: the model's own text.
        min_confidence: write for each caption whether its `Caption.confidence` is at least this;
            None: do not.
        num_gpus: GPUs per worker; 0.5: two workers share a GPU; 0: workers compute on the CPU.
        concurrency: number of workers; workers that do not fit wait until the cluster grows. None:
            as many as fit.
        address: cluster address, as for `ray.init`. None: $RAY_ADDRESS, else a cluster that runs on
            this machine, else a new one for this call. An existing connection is kept.
        tell: called with each record of a failed or blank image.
        worker_options: further Ray options for the workers, such as `accelerator_type`.

    Returns:
        The counts of the job.

    Raises:
        ConfigError: if Ray is not installed or a setting is unknown or impossible.
        ModelError: if the model cannot be used.
        CaptionerError: if the cluster cannot be reached or the job fails.
    """
    ray, address = _ray(), address or os.environ.get("RAY_ADDRESS")
    if concurrency is not None and not (isinstance(concurrency, int) and concurrency >= 1):
        raise ConfigError(f"concurrency: must be a number of workers, given {excerpt(concurrency)}")
    if not 0 <= num_gpus <= MOST_GPUS:  # also refuses NaN
        raise ConfigError(f"num_gpus: must be 0 to {MOST_GPUS:,}, given {excerpt(num_gpus, 60)}")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ConfigError(
            f"min_confidence: must be 0 to 1 or None, given {excerpt(min_confidence, 60)}"
        )
    how = how or CaptioningOptions()
    if how.maps:
        raise ConfigError("maps: not with Ray; use `caption_files`")
    if not num_gpus:
        how = replace(how, num_workers=how.num_workers or 1)
    models = [model] if isinstance(model, str | Path) else list(model)
    captioner = Captioner.load(models, "cpu")
    output_of = partial(
        write_output,
        n_best=how.n_best,
        wording=wording,
        words=how.words,
        min_confidence=min_confidence,
    )
    how = replace(how, words=how.words or min_confidence is not None)
    options = captioner.settings(n_best=how.n_best, **(overrides or {}))
    next(caption_files(captioner, (), options, how), None)  # checks the settings

    try:
        with _connected(ray, address):
            needed = num_gpus or how.num_workers or 1
            fitting = _fitting(ray, "GPU" if num_gpus else "CPU", needed, address)
            wish: dict[str, object] = {"max_restarts": -1, "max_task_retries": -1}
            wish |= {"num_gpus": num_gpus} if num_gpus else {"num_cpus": needed}
            start = ray.remote(_Worker).options(**wish | dict(worker_options or {})).remote
            files = [ray.put(_files(model)) for model in models]
            device = "cuda" if num_gpus else "cpu"
            workers = [
                start(captioner.name, device, options, how) for _ in range(concurrency or fitting)
            ]
            blocks = _blocks(map(_sent, items), how.batch_size)
            records = _captioned(ray, workers, files, blocks, tell)
            return output_of(records, output, format)
    except ray.exceptions.RayError as error:
        raise CaptionerError(f"the Ray job failed: {last_line(error)}") from error
    except ConnectionError as error:
        raise CaptionerError(f"no Ray cluster at {address}: {last_line(error)}") from error


class _Worker:
    """Captions blocks of images; loads the model for the first."""

    def __init__(self, name: str, device: str, options: DecodingConfig, how: CaptioningOptions):
        self.name, self.device = name, device
        self.options, self.how = options, how
        self.max_memory = how.max_memory or usual_limit(how.num_workers)
        self.captioner: Captioner | None = None

    def caption(self, models: list[Any], block: list[Item]) -> list[Record]:
        """Caption a block of whole batches with models from Ray's store."""
        self.captioner = self.captioner or self._load(models)
        memory = Memory(self.max_memory)
        return list(caption_files(self.captioner, block, self.options, self.how, memory=memory))

    def _load(self, models: list[Any]) -> Captioner:
        import ray

        with TemporaryDirectory() as top:
            folders = [Path(top, str(index)) for index in range(len(models))]
            for folder, files in zip(folders, ray.get(models), strict=True):
                folder.mkdir()
                for file, content in files.items():
                    (folder / file).write_bytes(content)
            captioner = Captioner.load(folders, self.device)
        captioner.name = self.name
        return captioner


def _captioned(
    ray: Any,
    workers: list[Any],
    models: list[Any],
    blocks: Iterator[list[Item]],
    tell: Callable[[Record], None],
) -> Iterator[Record]:
    """Give each block to a free worker, and yield the records in the order of the images."""
    # A worker is free when it has finished its empty first block: its model is loaded.
    turns = workers * BLOCKS_AHEAD
    running = {worker.caption.remote(models, []): worker for worker in turns}
    started: deque[Any] = deque()

    def finished(most: int) -> Iterator[Record]:
        while len(started) > most:
            for record in ray.get(started.popleft()):
                if record.status != "ok":
                    tell(record)
                yield record

    try:
        for block in blocks:
            [done], _ = ray.wait(list(running))
            worker = running.pop(done)
            running[task := worker.caption.remote(models, block)] = worker
            started.append(task)
            yield from finished(most=2 * BLOCKS_AHEAD * len(workers))
        yield from finished(most=0)
    finally:
        for worker in workers:
            ray.kill(worker)


def _blocks(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    """Cut the items into blocks of at most `BLOCK_BATCHES` and about `BLOCK_BYTES`."""
    block: list[Item] = []
    size = 0
    for item in items:
        block.append(item)
        size += len(item.source) if isinstance(item.source, bytes) else 0
        batches, rest = divmod(len(block), batch_size)
        if not rest and (batches == BLOCK_BATCHES or size >= BLOCK_BYTES):
            yield block
            block, size = [], 0
    if block:
        yield block


def _sent(item: Item) -> Item:
    """Return an item that a worker can read: with an absolute path, a URI or the bytes."""
    source = item.source
    if isinstance(source, Packed):
        try:
            source = source.read_bytes()
        except ImageError as error:
            source = error
    elif isinstance(source, Slice):
        source = replace(source, path=source.path.absolute())
    elif isinstance(source, Path):
        source = source.absolute()
    # The driver looks only on its own machine, so it reports a URI as a missing file.
    elif isinstance(source, ImageError) and source.kind == "missing" and URI.match(item.name):
        source = UriFile(item.name)
    return Item(item.name, source)


def _ray() -> Any:
    """Import Ray with usage reports turned off."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs pip install 'captioner[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster for the block; an existing connection is kept."""
    if ray.is_initialized():
        yield
        return
    ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def _fitting(ray: Any, kind: str, needed: float, address: str | None) -> int:
    """Return how many workers fit; refuse if none fits on this machine: Ray would wait for ever."""
    found = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
    if not address and len(found) == 1 and found[0] < needed:
        raise ConfigError(
            f"a worker needs {needed:g} {kind}(s): Ray finds {found[0]:g} on this machine; ask for "
            f"fewer, or give the address of a cluster that has them"
        )
    return max(1, sum(int(round(amount / needed, 6)) for amount in found))


def _files(model: str | Path) -> dict[str, bytes]:
    files = (path for path in model_folder(model).iterdir() if path.is_file())
    return {file.name: file.read_bytes() for file in files}
