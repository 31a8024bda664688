"""Image files -> caption records on many machines, as a Ray Data job.

The driver lists the images and writes the output. Each worker holds a model and captions blocks of
whole batches. Batches are the same as without Ray, so captions are too; they return in order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from captioner.captioner import Captioner
from captioner.captioning.ray_blocks import items_of, last_line, to_row, to_table, to_text
from captioner.captioning.records import CaptioningOptions, Record, Totals, caption_files
from captioner.captioning.sources import Item
from captioner.captioning.writers import write_output
from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import CaptionerError, ConfigError
from captioner.model_dir import model_folder
from captioner.system.foreign import excerpt
from captioner.system.memory import Memory, usual_limit

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BATCHES = 8  # batches per block: a worker reads one batch while it captions another
BLOCK_BYTES = 2**28  # of archive members; a block that reaches it gets no further batch
# Limits of a window, the blocks that are in Ray's store at a time. The store spills to disk; the
# driver holds one block. Each window starts new workers.
WINDOW_IMAGES, WINDOW_BYTES = 2**20, 2**32
MOST_GPUS = 1024  # per worker


def caption_with_ray(
    model: str | Path | Sequence[str | Path],
    items: Iterable[Item],
    output: Path,
    overrides: DecodingOverrides | None = None,
    how: CaptioningOptions | None = None,
    *,
    format: str = "jsonl",
    num_gpus: float = 0,
    concurrency: int | tuple[int, int] | None = None,
    address: str | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    worker_options: Mapping[str, Any] | None = None,
) -> Totals:
    """Caption images on a Ray cluster, or on this machine if there is no cluster.

    More than 60 lines, half of them for the arguments.

    Ray may restart workers; each record is still written once, in the order of the items. The model
    is sent to the workers. They open files at the given paths, and read names with a scheme
    (`s3://`, `gs://`, `hdfs://`, `file://`) through pyarrow. Failures are listed in `errors.jsonl`
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
        num_gpus: GPUs per worker; 0.5: two workers share a GPU; 0: workers compute on the CPU.
        concurrency: number of workers, or (minimum, maximum); None: from one to as many as fit.
        address: cluster address, as for `ray.init`. None: $RAY_ADDRESS, else a cluster that runs on
            this machine, else a new one for this call. An existing connection is kept.
        tell: called with each record that failed.
        worker_options: further Ray options for the workers, such as `accelerator_type`.

    Returns:
        The counts of the job.

    Raises:
        ConfigError: if Ray is not installed or a setting is unknown or impossible.
        ModelError: if the model cannot be used.
        CaptionerError: if the cluster cannot be reached or the job fails.
    """
    ray = _ray()
    fewest, most = _bounds(concurrency)
    if not 0 <= num_gpus <= MOST_GPUS:  # also refuses NaN
        raise ConfigError(f"num_gpus: must be 0 to {MOST_GPUS:,}, given {excerpt(num_gpus, 60)}")
    how = how or CaptioningOptions()
    if not num_gpus:
        how = replace(how, num_workers=how.num_workers or 1)
    # Ray supports both resources at once only as an experiment.
    resources = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": how.num_workers}
    models = [model] if isinstance(model, str | Path) else list(model)
    worker = _worker_of(models, overrides or {}, how, "cuda" if num_gpus else "cpu")

    def caption(window: list[Any]) -> Iterator[dict[str, Any]]:
        workers = ray.data.from_arrow_refs(window).map_batches(
            _Worker,
            batch_size=None,  # one block per call, so that batches keep their boundaries
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
            fn_constructor_kwargs=worker,
            **resources | dict(worker_options or {}),
        )
        yield from workers.iter_rows()

    try:
        with _connected(ray, address, num_gpus):
            worker["models"] = ray.put(worker["models"])
            records = _records(items, how.batch_size, ray.put, caption, tell)
            return write_output(records, output, format, n_best=how.n_best)
    except ray.exceptions.RayError as error:
        raise CaptionerError(f"the Ray job failed: {last_line(error)}") from error
    except ConnectionError as error:
        cluster = address or os.environ.get("RAY_ADDRESS")
        raise CaptionerError(f"no Ray cluster at {cluster}: {last_line(error)}") from error


def _worker_of(
    models: Sequence[str | Path], overrides: DecodingOverrides, how: CaptioningOptions, device: str
) -> dict[str, Any]:
    """Return the arguments of `_Worker`; check the settings here, not on the cluster.

    Raises:
        ConfigError: if a setting is unknown or impossible.
    """
    captioner = Captioner.load(models, "cpu")
    options = captioner.settings(n_best=how.n_best, **overrides)
    next(caption_files(captioner, (), options, how), None)
    return {
        "models": [{file.name: file.read_bytes() for file in _files(model)} for model in models],
        "name": captioner.name,
        "device": device,
        "options": options,
        "how": how,
    }


def _records(
    items: Iterable[Item],
    batch_size: int,
    put: Callable[[pa.Table], Any],
    caption: Callable[[list[Any]], Iterator[dict[str, Any]]],
    tell: Callable[[Record], None],
) -> Iterator[Record]:
    """Caption items, window by window.

    Args:
        items: consumed lazily.
        batch_size: images per batch.
        put: puts a block into Ray's store.
        caption: returns a row of `_Worker` for each image of a window.
        tell: called with each record that failed.

    Raises:
        CaptionerError: if Ray lost or reordered a row.
    """
    listed = count = 0

    def put_counted(block: pa.Table) -> Any:
        nonlocal listed
        listed += len(block)
        return put(block)

    for window in _windows(items, batch_size, put_counted):
        for row in caption(window):
            if row["position"] != count:
                raise CaptionerError(f"Ray returned row {row['position']}, expected row {count}")
            count += 1
            record = Record.from_json(to_text(row["file_name"]), row["record"])
            if record.error:
                tell(record)
            yield record
    if count != listed:
        raise CaptionerError(f"Ray returned {count} rows for {listed} images")


class _Worker:
    """Holds a model and captions blocks of images."""

    def __init__(
        self,
        models: Any,
        name: str,
        device: str,
        options: DecodingConfig,
        how: CaptioningOptions,
    ):
        import ray

        with TemporaryDirectory() as top:
            folders = []
            for index, files in enumerate(ray.get(models)):
                folders.append(Path(top, str(index)))
                folders[-1].mkdir()
                for file, content in files.items():
                    (folders[-1] / file).write_bytes(content)
            self.captioner = Captioner.load(folders, device)
        self.captioner.name = name
        self.options = options
        self.how = how
        self.max_memory = how.max_memory or usual_limit(how.num_workers)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Caption a block: a table of `to_table` -> a table of position, name and record."""
        import pyarrow as pa

        memory = Memory(self.max_memory)
        items = items_of(block, memory)
        records = caption_files(self.captioner, items, self.options, self.how, memory=memory)
        return pa.table(
            {
                "position": block["position"],
                "file_name": block["file_name"],
                "record": pa.array([record.to_json() for record in records], pa.large_string()),
            }
        )


def _windows(
    items: Iterable[Item], batch_size: int, put: Callable[[pa.Table], Any]
) -> Iterator[Any]:
    """Cut the items into blocks, put each into Ray's store, and yield the blocks of each window."""
    source, first = map(to_row, items), 0
    window: list[Any] = []
    images = size = 0
    while rows := _block(source, batch_size):
        table = to_table(rows, first)
        window.append(put(table))
        first, images, size = first + len(rows), images + len(rows), size + table.nbytes
        if images >= WINDOW_IMAGES or size >= WINDOW_BYTES:
            yield window
            window, images, size = [], 0, 0
    if window:
        yield window


def _block(rows: Iterator[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Take whole batches until `BLOCK_BATCHES` or `BLOCK_BYTES` is reached."""
    block: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.get("bytes", b""))
        whole, batches = len(block) % batch_size == 0, len(block) // batch_size
        if whole and (batches == BLOCK_BATCHES or size >= BLOCK_BYTES):
            break
    return block


def _ray() -> Any:
    """Import Ray with usage reports turned off."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("--engine ray needs pip install 'captioner[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, num_gpus: float) -> Iterator[None]:
    """Connect to a cluster; restore settings and connection afterwards."""
    connected_here = not ray.is_initialized()
    if connected_here:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    try:
        available = ray.cluster_resources().get("GPU", 0)
        # Ray would wait for ever for GPUs that do not exist.
        if num_gpus > available and address is None and len(ray.nodes()) == 1:
            raise ConfigError(
                f"workers need {num_gpus} GPU(s): Ray finds {available:g} on this machine; set "
                "num_gpus to 0, or give the address of a cluster with GPUs"
            )
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
        if connected_here:
            ray.shutdown()


def _files(model: str | Path) -> list[Path]:
    return [path for path in model_folder(model).iterdir() if path.is_file()]


def _bounds(concurrency: int | tuple[int, int] | None) -> tuple[int, int | None]:
    """Return the minimum and maximum number of workers."""
    fewest, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    if (fewest is not None and fewest < 1) or (most is not None and most < (fewest or 1)):
        raise ConfigError(
            f"concurrency: must be a number of workers or (minimum, maximum), given {concurrency}"
        )
    return fewest or 1, most
