"""`captioner serve`."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.cli.options import device_option, read_bytes, say
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.serving.access import Access
    from captioner.serving.limits import Limits

_LIMITS: dict[str, tuple[Any, Any, str]] = {
    "--max-batch": (click.IntRange(1, 2**16), 32, "Pictures that are captioned together."),
    "--max-wait-ms": (
        click.FloatRange(0, 60_000),
        5,
        "Milliseconds that a picture waits for others that are on their way.",
    ),
    "--max-queue": (
        click.IntRange(1, 2**20),
        256,
        "Pictures that wait or are captioned; further ones are refused at once.",
    ),
    "--max-uploads": (
        click.IntRange(1, 2**16),
        64,
        "Requests that are read at the same time.",
    ),
    "--max-bytes": (str, "32MiB", "Largest body of a request."),
    "--max-pixels": (click.IntRange(1, 2**40), 89_478_485, "Largest picture."),
    "--max-images": (click.IntRange(1, 2**20), 1000, "Pictures in a request to /v1/captions."),
    "--max-seconds": (
        click.FloatRange(0.1, 86_400),
        60,
        "Longest upload, and longest wait for a caption.",
    ),
}


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the limits; the command receives them as `limits: Limits`."""

    @wraps(command)
    def run(**options: Any) -> None:
        with _extra():
            from captioner.serving.limits import Limits
        names = Limits.__dataclass_fields__.keys()
        limits = Limits(**{name: options.pop(name) for name in names})
        command(limits=limits, **options)

    for flag, (kind, default, text) in reversed(_LIMITS.items()):
        metavar, read = ("SIZE", read_bytes) if kind is str else (None, None)
        run = click.option(
            flag,
            type=kind,
            default=default,
            show_default=True,
            metavar=metavar,
            callback=read,
            help=text,
        )(run)
    return run


_ACCESS = (
    click.option(
        "--token",
        envvar="CAPTIONER_TOKEN",
        show_envvar=True,
        help="Token that a request must send, as `Authorization: Bearer TOKEN`.",
    ),
    click.option("--no-token", is_flag=True, help="Serve other machines without a token."),
    click.option(
        "--allow-host",
        "hosts",
        metavar="NAME",
        multiple=True,
        help="Name by which the server may be called, besides --host, localhost and IP addresses. "
        "Repeatable.",
    ),
    click.option(
        "--allow-origin",
        "origins",
        metavar="ORIGIN",
        multiple=True,
        help="Other page that may call the server, such as https://example.org; *: all. "
        "Repeatable.",
    ),
)


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add who may use the server; the command receives it as `access: Access`."""

    @wraps(command)
    def run(*, host: str, token: str | None, hosts: Any, origins: Any, **options: Any) -> None:
        with _extra():
            from captioner.serving.access import Access, is_name
        names = (*hosts, *([host] if is_name(host) else []))
        access = Access(token=token, hosts=names, origins=origins)
        command(host=host, access=access, **options)

    for option in reversed(_ACCESS):
        run = option(run)
    return run


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError("serve: needs pip install 'captioner[web]'") from error


@click.command("serve")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Model to serve, as for `captioner caption`. Repeat to serve several; the first is the "
    "default.  [default: $CAPTIONER_MODEL, else the newest run under runs/, else photos]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@access_options
@limit_options
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@device_option
def command(
    models: tuple[Path, ...],
    host: str,
    port: int,
    access: Access,
    no_token: bool,
    limits: Limits,
    opens: bool,
    device: str,
) -> None:
    """Serve a page to try models on, and an HTTP API.

    SIGTERM and Ctrl-C finish the requests that are running and refuse further ones.
    """
    with _extra():
        from captioner.serving.access import check_reach
        from captioner.serving.app import build_app
        from captioner.serving.door import lossy
        from captioner.serving.server import address_of, listen, serve
    from captioner.run_dir import find_models
    from captioner.serving.shelf import load

    folders, log = find_models(models, say), lossy(say)
    with listen(host, port) as listener:
        check_reach(listener, access, no_token=no_token)
        served, page = load(folders, device), address_of(listener)
        log(f"{', '.join(served)}: {page}")
        if opens:  # browsers keep what is behind the # to themselves
            webbrowser.open(f"{page}#token={access.token}" if access.token else page)
        serve(build_app(served, limits, access, log), listener)
    log("stopped")
