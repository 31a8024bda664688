"""Models on the Hugging Face Hub: fetch `hub:OWNER/NAME[@REVISION]`, publish a model directory.

The names of its data sets, `hf:OWNER/NAME[@REVISION][:CONFIG]`, are read here too; `data` loads
them.

The library `huggingface-hub` keeps its own cache and tokens. It is imported only when a model is
named so. Of a repository, only the files of a model directory are fetched.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from captioner.errors import CaptionerError, ConfigError, DataError, ModelError
from captioner.system.disk import advice
from captioner.system.files import MAX_JSON
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import CARD, MAX_CARD, MODEL_FILES
from captioner.system.version import __version__

PREFIX = "hub:"
DATA_PREFIX = "hf:"
MAIN = "main"
MAX_WEIGHTS = 2**33  # bytes; the largest CNNs of torchvision take a third
TIMEOUT = 10.0  # seconds until the server begins to answer
_REPOSITORY = r"(?!.*(?:--|\.\.|\.git$))(\w[\w.-]{0,95}/\w[\w.-]{0,95})"
_NAME = re.compile(_REPOSITORY, re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{0,199}", re.ASCII)
_CONFIG = re.compile(r"(?!\.)[^<>:/\\|?*\s]{1,200}")
_CONNECTION = ("httpx", "httpcore", "requests", "urllib3")  # packages, as they begin


class HubName(NamedTuple):
    """A repository on the Hub, and a branch, tag or commit of it."""

    repository: str  # OWNER/NAME
    revision: str = MAIN
    is_data: bool = False
    config: str = ""  # of a data set; "" for the usual one

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.revision}"
        config = f":{self.config}" if self.config else ""
        return f"{DATA_PREFIX if self.is_data else PREFIX}{self.repository}{at}{config}"


def is_hub(model: str | Path) -> bool:
    """Whether a `--model` names a repository on the Hub."""
    return str(model).startswith(PREFIX)


def parse(model: str | Path) -> HubName:
    """Read `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`.

    Raises:
        ModelError: if it is neither.
    """
    text = model.as_posix() if isinstance(model, Path) else model
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(repository):
        raise ModelError(
            f"{plain(text)}: not the name of a model on the Hub; write hub:OWNER/NAME or "
            f"hub:OWNER/NAME@REVISION"
        )
    if at and not _REVISION.fullmatch(revision):
        raise ModelError(
            f"{plain(text)}: {excerpt(revision, 60)} is not a branch, tag or commit; write "
            f"hub:{repository}@REVISION"
        )
    return HubName(repository, revision or MAIN)


def is_hub_data(root: str | Path) -> bool:
    """Whether a `data.root` names a data set on the Hub."""
    return str(root).startswith(DATA_PREFIX)


def parse_data(root: str | Path) -> HubName:
    """Read `hf:OWNER/NAME[@REVISION][:CONFIG]`.

    Raises:
        DataError: if it is something else.
    """
    text = root.as_posix() if isinstance(root, Path) else root
    name, colon, config = text.removeprefix(DATA_PREFIX).partition(":")
    repository, at, revision = name.partition("@")
    if (
        not _NAME.fullmatch(repository)
        or (at and not _REVISION.fullmatch(revision))
        or (colon and not _CONFIG.fullmatch(config))
    ):
        raise DataError(
            f"{plain(text)}: not the name of a data set on the Hub; write hf:OWNER/NAME, "
            f"hf:OWNER/NAME@REVISION or hf:OWNER/NAME@REVISION:CONFIG"
        )
    return HubName(repository, revision or MAIN, True, config)


def fetch(model: str | Path) -> Path:
    """Return the folder of a model on the Hub, in the library's cache; print its commit.

    A revision in the cache needs no network, even if a branch has moved since.

    Raises:
        ModelError: if there is no such model, it holds other or too large files, or it is not in
            the cache and cannot be downloaded.
    """
    name = parse(model)
    library = hub_library(ModelError)
    folder = _cached(library, name)
    if folder is None:
        with quiet(), reported(name, ModelError):
            folder = _download(library, name)
    else:
        say_once(f"{name}: commit {folder.name}, from the cache")
    return folder


def check_reach(repository: str) -> None:
    """Check that a repository that is not in the cache can be reached, for a library that retries.

    Raises:
        ModelError: if it cannot.
    """
    library, name = hub_library(ModelError), HubName(repository)
    cache = Path(import_module("huggingface_hub.constants").HF_HUB_CACHE)
    if not (cache / f"models--{repository.replace('/', '--')}" / "snapshots").is_dir():
        with reported(name, ModelError):
            hub_api(library).model_info(repository, timeout=TIMEOUT)


def _cached(library: Any, name: HubName) -> Path | None:
    """Return the folder of a revision in the cache; None unless all its files are there."""
    found = [
        library.try_to_load_from_cache(name.repository, file, revision=name.revision)
        for file in MODEL_FILES
    ]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(MODEL_FILES) else None


def _download(library: Any, name: HubName) -> Path:
    api = hub_api(library)
    info = api.model_info(
        name.repository, revision=name.revision, files_metadata=True, timeout=TIMEOUT
    )
    sizes = _sizes(name, info)
    say_once(f"{name}: commit {info.sha}, downloads {_amount(sizes)}")
    # The cache learns the commit of a branch with config.json, and is complete with the weights.
    order = sorted(sizes, key=lambda file: (file == "model.safetensors", file == "config.json"))
    for file in order:
        revision = name.revision if file == "config.json" else info.sha
        how = {"library_name": "captioner", "library_version": __version__}
        path = library.hf_hub_download(name.repository, file, revision=revision, **how)
        if Path(path).parent.name != info.sha:
            raise ModelError(f"{name}: changed while it was downloaded; try again")
    return Path(path).parent


def _sizes(name: HubName, info: Any) -> dict[str, int]:
    """Return the bytes of the files to fetch.

    Raises:
        ModelError: if a file is missing or too large.
    """
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for file in MODEL_FILES:
        if file not in sizes:
            raise ModelError(
                f"{name}: not a model of captioner: commit {info.sha} holds no {file}; such models "
                f"hold {', '.join(MODEL_FILES)}"
            )
    wanted = {file: sizes[file] for file in (*MODEL_FILES, CARD) if file in sizes}
    for file, size in wanted.items():
        most = {"model.safetensors": MAX_WEIGHTS, CARD: MAX_CARD}.get(file, MAX_JSON)
        if type(size) is not int or not 0 <= size <= most:
            given = f"{size:,} bytes" if type(size) is int else "of unknown size"
            raise ModelError(f"{name}: {file} is {given}; at most {most:,} bytes are fetched")
    return wanted


def cached_name(folder: Path) -> str | None:
    """Return OWNER--NAME of a model directory in the library's cache; None if it lies elsewhere."""
    place = folder.parent
    known = place.name == "snapshots" and place.parent.name.startswith("models--")
    return place.parent.name.removeprefix("models--") if known else None


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> HubName:
    """Upload the files of a model directory in one commit; return its name.

    Creates the repository and the branch if they are missing.

    Raises:
        ConfigError: if there is no token, the repository may not be written, it is public although
            `private`, or it holds another model.
    """
    check_target(repository, revision)
    library = hub_library(ConfigError)
    name = HubName(repository, revision or MAIN)
    if not library.get_token():
        raise ConfigError(f"{name}: no token: log in with `hf auth login`, or set HF_TOKEN")
    with quiet(), reported(name, ConfigError, writes=True):
        api = hub_api(library)
        _prepare(library, api, name, private)
        say(f"uploading {amount_of(folder)} to {name}")
        commit = api.create_commit(
            repository,
            [
                library.CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(folder / file))
                for file in sizes_of(folder)
            ],
            commit_message=f"Upload a model of captioner {__version__}",
            revision=name.revision,
        )
    return HubName(repository, commit.oid)


def check_target(repository: str, revision: str | None) -> None:
    """Refuse a name that no repository or branch can have.

    Raises:
        ConfigError: if one is wrong.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(
            f"{plain(repository)}: not the name of a repository; write OWNER/NAME, of letters, "
            f"digits and . _ -"
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ConfigError(f"--revision {plain(revision)}: not the name of a branch")


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of a model directory that are uploaded."""
    files = [*MODEL_FILES, *([CARD] if (folder / CARD).is_file() else [])]
    return {file: (folder / file).stat().st_size for file in files}


def _prepare(library: Any, api: Any, name: HubName, private: bool) -> None:
    """Create the repository and the branch, or check that the existing one may be written."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.model_info(name.repository, files_metadata=True, timeout=TIMEOUT)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(name.repository, private=private or None)
    else:
        if private and not info.private:
            raise ConfigError(
                f"{name}: exists and is public; make it private in its settings on the Hub, or "
                f"publish without --private"
            )
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        if "config.json" in sizes and not _is_ours(library, name, info.sha, sizes["config.json"]):
            raise ConfigError(
                f"{name}: holds a model that captioner did not write; choose another name"
            )
    if name.revision != MAIN:
        api.create_branch(name.repository, branch=name.revision, exist_ok=True)


def _is_ours(library: Any, name: HubName, commit: str, size: int | None) -> bool:
    """Whether the `config.json` of a repository is one of captioner."""
    if type(size) is not int or size > MAX_JSON:
        return False
    path = library.hf_hub_download(name.repository, "config.json", revision=commit)
    try:
        return "captioner_version" in json.loads(Path(path).read_bytes())
    except (ValueError, TypeError, RecursionError):
        return False


def amount_of(folder: Path) -> str:
    """Return the number and the size of the files that are uploaded."""
    return _amount(sizes_of(folder))


def _amount(sizes: dict[str, int]) -> str:
    return f"{len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"


def hub_library(error: type[CaptionerError]) -> Any:
    """Return huggingface-hub; an error of this type if it is missing."""
    try:
        import huggingface_hub
    except ImportError as missing:
        raise error("hub: needs huggingface-hub: pip install 'captioner[hub]'") from missing
    return huggingface_hub


def hub_api(library: Any) -> Any:
    """Return what asks the Hub."""
    return library.HfApi(library_name="captioner", library_version=__version__)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress bars in a log."""
    utils: Any = import_module("huggingface_hub.utils")
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def reported(name: HubName, kind: type[CaptionerError], *, writes: bool = False) -> Iterator[None]:
    """Turn the errors of the library, the server and the network into one line."""
    try:
        yield
    except CaptionerError:
        raise
    # The library, its HTTP client and a strange answer raise many types.
    except Exception as error:
        raise kind(f"{name}: {_reason(name, error, writes)}") from error


def _reason(name: HubName, error: BaseException, writes: bool) -> str:
    from huggingface_hub import constants, errors, get_token

    causes = [*_causes(error)]
    error = next((each for each in causes if getattr(each, "response", None)), error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    site = f"{constants.ENDPOINT}/{'datasets/' * name.is_data}{name.repository}"
    what = "data set" if name.is_data else "model"
    if isinstance(error, errors.GatedRepoError):
        reason = f"its owner grants access on request, on {site}; then log in with `hf auth login`"
    elif status == 403 or (status == 401 and writes):
        reason = "the token may not write there; take one of the name's owner, with write access"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"has no revision {name.revision}; {site} lists them"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        access = "your token gives no access" if get_token() else "log in with `hf auth login`"
        reason = f"no such {what} on the Hub, or a private one; if it is private, {access}"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = "not in the cache, and HF_HUB_OFFLINE forbids the network"
    elif status is not None:
        reason = f"the Hub answers {status}: {plain(error)}"
    elif any(map(_is_of_connection, causes)):
        cached = "" if writes else "not in the cache, and "
        reason = f"{cached}no connection to {constants.ENDPOINT}: {plain(error, 120)}"
    else:
        reason = f"failed: {plain(causes[-1])}{advice(causes[-1])}"
    return reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_connection(error: BaseException) -> bool:
    """Whether the network raised an error."""
    return isinstance(error, ConnectionError | TimeoutError) or (
        type(error).__module__.startswith(_CONNECTION)
    )


@functools.cache
def say_once(line: str) -> None:
    """Print a line to stderr, but not again."""
    print(line, file=sys.stderr)
