"""`captioner publish`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import say, show


@click.command("publish")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Only its owner sees a new repository.")
@click.option("--revision", help="Branch to upload to; created if missing.  [default: main]")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded, and upload nothing.")
def command(
    model: Path, repository: str, private: bool, revision: str | None, dry_run: bool
) -> None:
    """Upload a model to the Hugging Face Hub.

    MODEL is a model or run directory. Its model card and its other files are uploaded in one
    commit, and nothing else. Needs captioner[hub], and a token: `hf auth login` or $HF_TOKEN.
    """
    from captioner.hub import amount_of, check_target, sizes_of, upload

    check_target(repository, revision)

    from captioner.captioner import Captioner
    from captioner.model_card import complete
    from captioner.run_dir import find_model

    folder = find_model(model)
    card = complete(folder, Captioner.load(folder, "cpu"), write=not dry_run)
    if card:
        say(f"{'would write' if dry_run else 'wrote'} the missing model card: {card}")
    for file, size in sizes_of(folder).items():
        say(f"  {file}  {size:,} bytes")
    if dry_run:
        show(f"would upload {amount_of(folder)} of {folder} to {repository}")
        return
    name = upload(folder, repository, private=private, revision=revision, say=say)
    say(f"next: captioner caption IMAGE --model {name}")
    show(str(name))
