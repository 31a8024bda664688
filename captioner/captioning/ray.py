"""Captioning on many machines, with Ray: an engine for the jobs of `job` and `parts`.

The driver lists the images and keeps what is finished. Each worker holds a model and captions
blocks of whole batches, so batches, and with them captions, are the same as without Ray.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from captioner.captioner import Captioner
from captioner.captioning.crew import Block, Crew
from captioner.captioning.engine import Finished, Local, arithmetic_of
from captioner.captioning.failures import listed_failures
from captioner.captioning.job import JobOptions, caption_to_file
from captioner.captioning.part_folders import folder_at
from captioner.captioning.parts import caption_to_parts
from captioner.captioning.records import (
    CaptioningOptions,
    Record,
    Totals,
    caption_files,
    digest_of_item,
)
from captioner.captioning.sources import Item, Packed
from captioner.captioning.sources.features import FeatureRow
from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import CaptionerError, ConfigError, ImageError, ModelError, checked_names
from captioner.images.content import Slice
from captioner.model_config import fingerprint, model_folder, read_config
from captioner.system.addresses import is_address
from captioner.system.foreign import excerpt, last_line
from captioner.system.memory import Memory, usual_limit
from captioner.system.plugins import KINDS, Kind, normal, plugin

MOST_GPUS = 1024  # per worker
PlugIns: TypeAlias = "Mapping[tuple[Kind, str], tuple[str, str]]"  # package and version


@checked_names
def caption_with_ray(
    model: str | Path | Sequence[str | Path],
    items: Iterable[Item],
    output: Path | str,
    overrides: DecodingOverrides | None = None,
    how: CaptioningOptions | None = None,
    *,
    format: str = "jsonl",
    wording: Callable[[str], str] | None = None,
    min_confidence: float | None = None,
    overwrite: bool = False,
    in_parts: bool = False,
    num_gpus: float = 0,
    concurrency: int | None = None,
    address: str | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    count: Callable[[], int | None] = lambda: None,
    worker_options: Mapping[str, Any] | None = None,
) -> Totals:
    """Caption images on a Ray cluster, or on this machine if there is no cluster.

    A job as of `captioner caption --output`: each record is written once, in the order of the
    items, and an interrupted job goes on from its journal. The model is sent to the workers. The
    workers open files at the given paths and addresses. Workers that are lost are replaced. An
    image whose worker dies twice is a failure. Failures are listed in `errors.jsonl` next to the
    output.

    Args:
        model: a model directory, a run directory that holds one, or several for an ensemble.
        items: images; consumed lazily.
        output: file to write, atomically, when all images are done; with `in_parts`, also the
            address of a folder in object storage.
        overrides: search settings to change, such as {"beam_size": 5}.
        how: captioning settings of each worker; None: the defaults. A worker without a GPU asks for
            `num_workers` cores, by default 1; a worker with a GPU has one thread per core of its
            machine.
        format: a format of `writers.FORMATS` that writes one file, such as `jsonl` or `parquet`.
        wording: writes out the text of a caption, such as `sentence`; None: the model's own text.
        min_confidence: write for each caption whether its `Caption.confidence` is at least this;
            None: do not.
        overwrite: discard the journal and the output of an earlier job.
        in_parts: the output is a folder, of parts that are written when they are done; see
            `captioner merge`.
        num_gpus: GPUs per worker; 0.5: two workers share a GPU; 0: workers compute on the CPU.
        concurrency: number of workers; workers that do not fit wait until the cluster grows. None:
            as many as fit.
        address: cluster address, as for `ray.init`. None: $RAY_ADDRESS, else a cluster that runs on
            this machine, else a new one for this call. An existing connection is kept.
        tell: called with each record of this run.
        say: called with messages about images of earlier runs.
        count: counts the images for the progress bar; None from it: that takes long.
        worker_options: further Ray options for the workers, such as `accelerator_type`.

    Returns:
        The counts of the job.

    Raises:
        ConfigError: if Ray is not installed, a setting is unknown or impossible, or the output
            belongs to another job.
        DataError: if a file cannot be written, or the journal or the list of failures is damaged.
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
    job = replace(_job(how), format=format, wording=wording, min_confidence=min_confidence)
    job = replace(job, overwrite=job.overwrite or overwrite)
    if job.maps:
        raise ConfigError("maps: not with Ray; use `caption_files`")
    how = _plain(job, bool(num_gpus))
    models = [model] if isinstance(model, str | Path) else list(model)
    captioner = Captioner.load(models, "cpu")
    options = captioner.settings(n_best=how.n_best, **(overrides or {}))
    next(caption_files(captioner, (), options, how), None)  # checks the settings
    if in_parts:
        folder_at(output)  # an impossible address fails before the cluster is asked
    elif is_address(str(output)):
        raise ConfigError(f"output: {excerpt(output)}: an address needs in_parts=True")
    else:
        listed_failures(Path(output))  # an unreadable list, too

    try:
        with _connected(ray, address):
            needed = num_gpus or how.num_workers or 1
            fitting = _fitting(ray, "GPU" if num_gpus else "CPU", needed, address)
            # A lost worker is replaced by the crew.
            wish: dict[str, object] = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": needed}
            remote = ray.remote(Worker).options(**wish | dict(worker_options or {})).remote
            device = "cuda" if num_gpus else "cpu"
            files = [ray.put(_files(model)) for model in models]
            crew = Crew(
                ray,
                partial(remote, captioner.name, device, options, how, _plugins(models)),
                concurrency or fitting,
                files,
                _sent,
            )
            name = "+".join(fingerprint(model_folder(each)) for each in models)
            work = (
                partial(caption_to_parts, crew, items, output)
                if in_parts
                else partial(caption_to_file, lambda: captioner, items, Path(output), engine=crew)
            )
            with closing(crew):
                return work(options, job, model=name, tell=tell, say=say, count=count)
    except ray.exceptions.RayError as error:
        if isinstance(cause := getattr(error, "cause", None), CaptionerError):
            raise type(cause)(str(cause)) from error  # of a worker
        raise CaptionerError(f"the Ray job failed: {last_line(error)}") from error
    except ConnectionError as error:
        raise CaptionerError(f"no Ray cluster at {address}: {last_line(error)}") from error


def _job(how: CaptioningOptions | None) -> JobOptions:
    return JobOptions(**{each.name: getattr(how, each.name) for each in fields(how)} if how else {})


def _plain(job: JobOptions, has_gpu: bool) -> CaptioningOptions:
    """Return what a worker needs to know of a job."""
    names = [each.name for each in fields(CaptioningOptions)]
    how = CaptioningOptions(**{name: getattr(job, name) for name in names})
    how = replace(how, words=job.needs_words)
    return how if has_gpu else replace(how, num_workers=how.num_workers or 1)


class Worker:
    """Captions blocks of images; loads the model for the first."""

    def __init__(
        self,
        name: str,
        device: str,
        options: DecodingConfig,
        how: CaptioningOptions,
        plugins: PlugIns,
    ):
        self.name, self.device, self.plugins = name, device, plugins
        self.options, self.how = options, how
        self.max_memory = how.max_memory or usual_limit(how.num_workers)
        self.captioner: Captioner | None = None

    def caption(self, models: list[Any], block: Block) -> list[Finished]:
        """Caption a block of whole batches with models from Ray's store."""
        captioner = self._loaded(models)
        engine = Local(lambda: captioner, self.options, self.how, Memory(self.max_memory))
        return list(engine.caption(map(iter, block)))

    def arithmetic(self, models: list[Any], _: None) -> str:
        """Return number format and device of the model."""
        return arithmetic_of(self._loaded(models))

    def digest(self, _: list[Any], item: Item) -> bytes:
        """Return the digest of an image's content; empty if it cannot be read."""
        return digest_of_item(item, Memory(self.max_memory))

    def _loaded(self, models: list[Any]) -> Captioner:
        if self.captioner:
            return self.captioner
        _check_plugins(self.plugins)
        import ray

        with TemporaryDirectory() as top:
            folders = [Path(top, str(index)) for index in range(len(models))]
            for folder, files in zip(folders, ray.get(models), strict=True):
                folder.mkdir()
                for file, content in files.items():
                    (folder / file).write_bytes(content)
            self.captioner = Captioner.load(folders, self.device)
        self.captioner.name = self.name
        return self.captioner


def _plugins(models: list[str | Path]) -> PlugIns:
    """Return the installed plug-ins that models need."""
    stated = [each for model in models for each in read_config(model_folder(model)).plugins]
    found = ((each.kind, each.name, plugin(each.kind, each.name)) for each in stated)
    return {(kind, name): (who.package, who.version) for kind, name, who in found if who}


def _check_plugins(wanted: PlugIns) -> None:
    """Refuse to caption on a machine that has not the plug-ins of the driver.

    Raises:
        ModelError: if one is missing, or of another package or version.
    """
    for (kind, name), (package, version) in wanted.items():
        found = plugin(kind, name)
        if found is None or (normal(found.package), found.version) != (normal(package), version):
            has = f"{found.package} {found.version}" if found else "no such plug-in"
            raise ModelError(
                f"the worker on {platform.node()} needs the {KINDS[kind]} {name} of {package} "
                f"{version} and has {has}: pip install '{package}=={version}' on every machine"
            )


def _sent(item: Item) -> Item:
    """Return an item that a worker can read: with an absolute path, an address or the bytes."""
    source = item.source
    if isinstance(source, Packed | FeatureRow):
        try:
            source = source.read_bytes() if isinstance(source, Packed) else source.held()
        except ImageError as error:
            source = error
    elif isinstance(source, Slice):
        source = replace(source, path=source.path.absolute())
    elif isinstance(source, Path):
        source = source.absolute()
    return replace(item, source=source)


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
