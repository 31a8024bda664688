"""Image files -> caption records, as a Ray Data job: the same captions, from many machines.

The driver lists the images and writes the output; workers hold a model each, read and caption.
What a worker gets is cut as the plain run cuts it, so that every image meets the same others in
its batch, and comes back in order.
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

SHARE = 8  # batches that a worker is handed together: it reads one while it searches another
SHARE_BYTES = 2**28  # of members of archives, from which on a share has no further batch
# What the cluster is given at a time. Names, and the bytes of members of archives, lie in Ray's
# store, which spills to disk; this process holds one share. Each window starts its workers anew.
WINDOW_IMAGES, WINDOW_BYTES = 2**20, 2**32
MOST_GPUS = 1024  # of a worker


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
    """Caption images on a Ray cluster, or on this machine where there is none.

    Longer than a screen: half of it says what the arguments mean.

    Workers retry and come and go as Ray decides; each row is written once, in the order of the
    items. The model travels to the workers; files must be where they look for them, and names
    with a scheme (`s3://`, `gs://`, `hdfs://`, `file://`) are read through pyarrow. Failures are
    listed in `errors.jsonl` beside the output.

    Args:
        model: a model directory, or a run directory that holds one; or several, which caption
            together.
        items: images; listed as they are needed.
        output: file to write, whole or not at all.
        overrides: settings of the search to change, such as {"beam_size": 5}.
        how: how each worker captions; None: the defaults. A worker without a GPU asks for as many
            cores as `num_workers`, by default one; one with a GPU has one thread per core of its
            machine.
        format: one of `writers.FORMATS` that is one file, such as `jsonl` or `parquet`.
        num_gpus: of each worker, 0.5 for two on one; 0: workers on processors.
        concurrency: workers, or the fewest and the most; None: from one to as many as fit.
        address: of the cluster, as `ray.init` takes it; None: $RAY_ADDRESS, a cluster that runs
            on this machine, else one started for this call. A program that is connected already
            stays so.
        tell: told every failure.
        worker_options: further options of Ray's for its workers, such as `accelerator_type`.

    Returns:
        How many images there were, and what came of them.

    Raises:
        ConfigError: if Ray is not installed or a setting is unknown or impossible.
        ModelError: if the model cannot be used.
        CaptionerError: if the cluster cannot be reached or gives up.
    """
    ray = _ray()
    fewest, most = _bounds(concurrency)
    if not 0 <= num_gpus <= MOST_GPUS:  # what is no number neither
        raise ConfigError(f"num_gpus: must be 0 to {MOST_GPUS:,}, given {excerpt(num_gpus, 60)}")
    how = how or CaptioningOptions()
    if not num_gpus:
        how = replace(how, num_workers=how.num_workers or 1)
    # Both kinds at once are an experiment of Ray's.
    resources = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": how.num_workers}
    models = [model] if isinstance(model, str | Path) else list(model)
    worker = _worker_of(models, overrides or {}, how, "cuda" if num_gpus else "cpu")

    def caption(window: list[Any]) -> Iterator[dict[str, Any]]:
        workers = ray.data.from_arrow_refs(window).map_batches(
            _Worker,
            batch_size=None,  # a share: batches begin where they should
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
        where = address or os.environ.get("RAY_ADDRESS")
        raise CaptionerError(f"no Ray cluster at {where}: {last_line(error)}") from error


def _worker_of(
    models: Sequence[str | Path], overrides: DecodingOverrides, how: CaptioningOptions, device: str
) -> dict[str, Any]:
    """Return what a worker is made of.

    Raises:
        ConfigError: if a setting is unknown or impossible: here at once, not on the cluster.
    """
    captioner = Captioner.load(models, "cpu")
    options = captioner.settings(n_best=how.n_best, **overrides)
    next(caption_files(captioner, (), options, how), None)
    return {
        "models": [{file.name: file.read_bytes() for file in _files(each)} for each in models],
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
        items: listed as they are needed.
        batch_size: images per pass.
        put: puts a share into Ray's store.
        caption: returns a row of `_Worker` for each image of a window.
        tell: called with every failure.

    Raises:
        CaptionerError: if Ray lost or moved a row: it keeps the order, but that is checked.
    """
    listed = count = 0

    def put_counted(share: pa.Table) -> Any:
        nonlocal listed
        listed += len(share)
        return put(share)

    for window in _windows(items, batch_size, put_counted):
        for row in caption(window):
            if row["position"] != count:
                raise CaptionerError(f"Ray returned row {row['position']} in place of {count}")
            count += 1
            record = Record.from_json(to_text(row["file_name"]), row["record"])
            if record.error:
                tell(record)
            yield record
    if count != listed:
        raise CaptionerError(f"Ray returned {count} rows for {listed} images")


class _Worker:
    """Holds a model and captions what it is handed."""

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

    def __call__(self, share: pa.Table) -> pa.Table:
        """Caption a share: a table of `to_table` -> a table of position, name and record."""
        import pyarrow as pa

        memory = Memory(self.max_memory)
        items = items_of(share, memory)
        records = caption_files(self.captioner, items, self.options, self.how, memory=memory)
        return pa.table(
            {
                "position": share["position"],
                "file_name": share["file_name"],
                "record": pa.array([record.to_json() for record in records], pa.large_string()),
            }
        )


def _windows(
    items: Iterable[Item], batch_size: int, put: Callable[[pa.Table], Any]
) -> Iterator[Any]:
    """Cut the items into shares, put each into the store, and list those of one window."""
    source, first = map(to_row, items), 0
    window: list[Any] = []
    images = size = 0
    while part := _share(source, batch_size):
        table = to_table(part, first)
        window.append(put(table))
        first, images, size = first + len(part), images + len(part), size + table.nbytes
        if images >= WINDOW_IMAGES or size >= WINDOW_BYTES:
            yield window
            window, images, size = [], 0, 0
    if window:
        yield window


def _share(rows: Iterator[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Take whole batches, as many as belong together or are enough bytes."""
    share: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        share.append(row)
        size += len(row.get("bytes", b""))
        whole, batches = len(share) % batch_size == 0, len(share) // batch_size
        if whole and (batches == SHARE or size >= SHARE_BYTES):
            break
    return share


def _ray() -> Any:
    """Import Ray, told to be quiet and to report to nobody."""
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
    """Be connected to a cluster, and leave things as they were."""
    ours = not ray.is_initialized()
    if ours:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    try:
        found = ray.cluster_resources().get("GPU", 0)
        # Ray would wait for ever for machines that nobody starts.
        if num_gpus > found and address is None and len(ray.nodes()) == 1:
            raise ConfigError(
                f"workers with {num_gpus} GPU(s): Ray finds {found:g} on this machine; ask for "
                "none, or give the address of a cluster that has some or starts some"
            )
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
        if ours:
            ray.shutdown()


def _files(model: str | Path) -> list[Path]:
    return [path for path in model_folder(model).iterdir() if path.is_file()]


def _bounds(concurrency: int | tuple[int, int] | None) -> tuple[int, int | None]:
    """Return the fewest workers and the most."""
    fewest, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    if (fewest is not None and fewest < 1) or (most is not None and most < (fewest or 1)):
        raise ConfigError(f"concurrency: workers, or the fewest and the most; given {concurrency}")
    return fewest or 1, most
