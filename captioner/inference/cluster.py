"""Image files -> caption records, as a Ray Data job: the same captions, from many machines.

The driver lists the images and writes the output; workers hold a model each, read and caption.
What a worker gets is cut as the plain run cuts it, so that every image meets the same others in
its batch, and comes back in order.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import CaptionerError, ConfigError
from captioner.escapes import to_json
from captioner.files import MOVED, whole_file
from captioner.foreign import excerpt
from captioner.inference.failures import ERRORS, failure_list
from captioner.inference.local import CaptioningOptions, Record, caption_files
from captioner.inference.shares import items_of, last_line, to_row, to_table
from captioner.inference.sources import Item
from captioner.inference.writers import as_dict
from captioner.memory import Memory, usual_limit
from captioner.models.captioner import Captioner, model_folder
from captioner.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

SHARE = 8  # batches that a worker is handed together: it reads one while it searches another
SHARE_BYTES = 2**28  # of members of archives, from which on a share has no further batch
# What the cluster is given at a time. Names, and the bytes of members of archives, lie in Ray's
# store, which spills to disk; this process holds one share. Each window starts its workers anew.
WINDOW_IMAGES, WINDOW_BYTES = 2**20, 2**32
ROW_GROUP = 2**16  # rows of a Parquet file that are written, and later read, together


@dataclass(frozen=True, slots=True)
class Totals:
    """What came of a job.

    Attributes:
        images: rows written.
        captioned: of them, with a caption.
        failed: of them, with an error instead.
        errors: file that lists the failures; None where there are none.
    """

    images: int
    captioned: int
    failed: int
    errors: Path | None = None


def caption_with_ray(
    model: str | Path | Sequence[str | Path],
    items: Iterable[Item],
    output: Path,
    overrides: DecodingOverrides | None = None,
    how: CaptioningOptions | None = None,
    *,
    format: Literal["jsonl", "parquet"] = "jsonl",
    num_gpus: float = 0,
    concurrency: int | tuple[int, int] | None = None,
    address: str | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    worker_options: Mapping[str, Any] | None = None,
) -> Totals:
    """Caption images on a Ray cluster, or on this machine where there is none.

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
        format: `jsonl`, the same lines as without Ray, or `parquet`, the same columns.
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
    # Both kinds at once are an experiment of Ray's.
    how = how or CaptioningOptions()
    if not num_gpus:
        how = replace(how, num_workers=how.num_workers or 1)
    resources = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": how.num_workers}
    models = [model] if isinstance(model, str | Path) else list(model)
    # A mistake is found here at once, not on the cluster after a while.
    captioner = Captioner.load(models, "cpu")
    options = captioner.settings(n_best=how.n_best, **(overrides or {}))
    next(caption_files(captioner, (), options, how), None)
    worker: dict[str, Any] = {
        "models": [{file.name: file.read_bytes() for file in _files(each)} for each in models],
        "name": captioner.name,
        "device": "cuda" if num_gpus else "cpu",
        "options": options,
        "how": how,
    }
    listed = count = failed = 0

    def put(share: pa.Table) -> Any:
        nonlocal listed
        listed += len(share)
        return ray.put(share)

    def lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
        nonlocal count, failed
        for row in rows:
            # Ray keeps the order; that each row came once is not left to belief.
            if row["position"] != count:
                raise CaptionerError(f"Ray returned row {row['position']} in place of {count}")
            count += 1
            if count % ROW_GROUP == 0 and not aside.exists():
                raise FileNotFoundError(errno.ENOENT, MOVED, str(output))  # not at the very end
            if row["kind"] is not None:
                failed += 1
                told = json.loads(row["line"])
                add_failure(told["file_name"], row["kind"], told["error"])
                tell(Record(told["file_name"], error=told["error"], kind=row["kind"]))
            yield row["line"]
        if count != listed:
            raise CaptionerError(f"Ray returned {count} rows for {listed} images")

    try:
        with (
            _connected(ray, address, num_gpus),
            whole_file(output, "captions") as aside,
            failure_list(output) as add_failure,
        ):
            worker["models"] = ray.put(worker["models"])
            rows = (
                row
                for window in _windows(items, how.batch_size, put)
                for row in ray.data.from_arrow_refs(window)
                .map_batches(
                    _Worker,
                    batch_size=None,  # a share: batches begin where they should
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
                    fn_constructor_kwargs=worker,
                    **resources | dict(worker_options or {}),
                )
                .iter_rows()
            )
            write = _write_parquet if format == "parquet" else _write_jsonl
            write(lines(rows), aside, how.n_best)
    except ray.exceptions.RayError as error:
        raise CaptionerError(f"the Ray job failed: {last_line(error)}") from error
    except ConnectionError as error:
        where = address or os.environ.get("RAY_ADDRESS")
        raise CaptionerError(f"no Ray cluster at {where}: {last_line(error)}") from error
    errors = output.with_name(ERRORS) if failed else None
    return Totals(count, count - failed, failed, errors)


MOST_GPUS = 1024  # of a worker


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
        """Caption a share: a table of `to_table` -> a table of position, line, kind of error."""
        import pyarrow as pa

        memory = Memory(self.max_memory)
        items = items_of(share, memory)
        records = caption_files(self.captioner, items, self.options, self.how, memory=memory)
        made = [(to_json(as_dict(record, self.how.n_best)), record.kind) for record in records]
        return pa.table(
            {
                "position": share["position"],
                "line": pa.array([line for line, _ in made], pa.large_string()),
                "kind": pa.array([kind for _, kind in made], pa.string()),
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


def _write_jsonl(lines: Iterable[str], path: Path, n_best: int) -> None:  # noqa: ARG001
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_parquet(lines: Iterable[str], path: Path, n_best: int) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    text, number = pa.string(), pa.float64()
    columns = {"file_name": text, "image_id": text, "caption": text, "score": number}
    columns |= {"status": text, "error": text}
    if n_best > 1:
        one = {"caption": text, "log_prob": number, "score": number}
        columns["n_best"] = pa.list_(pa.struct(one.items()))
    source, schema = iter(lines), pa.schema(columns.items(), {"captioner_version": __version__})
    with ParquetWriter(path, schema) as writer:
        while rows := [json.loads(line) for line in islice(source, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))


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
