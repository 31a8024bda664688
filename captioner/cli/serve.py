"""`captioner serve`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import device_option, say
from captioner.errors import ConfigError


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
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@device_option
def command(models: tuple[Path, ...], host: str, port: int, device: str) -> None:
    """Serve a page to try models on, and an HTTP API."""
    from captioner.run_dir import find_models

    try:
        from captioner.serving.app import build_app
        from captioner.serving.limits import Limits
        from captioner.serving.server import listen, serve
        from captioner.serving.shelf import load
    except ModuleNotFoundError as error:
        raise ConfigError("serve: needs pip install 'captioner[web]'") from error
    listener = listen(host, port)
    served = load(find_models(models, say), device)
    app = build_app(served, Limits(), say)
    say(f"{', '.join(served)}: http://{host}:{listener.getsockname()[1]}/")
    serve(app, listener)
    say("stopped")
