"""``plugins``: what is installed and whether it can be loaded. ``completion``: a script for the shell."""

from __future__ import annotations

from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from s3torch.core.cli._output import write_json
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.plugins import failures
from s3torch.core.plugins._manager import (
    PLUGIN_GROUP,
    TRANSPORT_GROUP,
    commands,
    installed_plugins,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_VARIABLE = "_S3TORCH_COMPLETE"


@command
def plugins(context: CommandContext) -> int:
    """List the plugins, and which cannot be loaded.

    Installed distributions register them under the entry points s3torch.transports and
    s3torch.plugins.
    """
    found = described_plugins()
    rows = [(one["kind"], one["name"], one["distribution"], one["status"]) for one in found]
    context.write_table(("kind", "name", "from", "status"), rows)
    for one in found if context.as_json else ():
        write_json(one)
    return ExitCode.FAILED if any(one["status"] != "ok" for one in found) else ExitCode.DONE


def described_plugins(*, transports: bool = True) -> list[dict[str, Any]]:
    """Loads what is registered, and tells of each how that went.

    Args:
        transports: Whether to load all transports, too, each of which may take seconds.
    """
    # Asks all plugins, so that one whose commands fail is known as well.
    commands()
    failed = failures()
    entries = installed_plugins(TRANSPORT_GROUP)
    found = [_described("transport", entry, _load(entry) if transports else None) for entry in entries]
    found += [
        _described("plugin", entry, failed.get(entry.name)) for entry in installed_plugins(PLUGIN_GROUP)
    ]
    return found


def _load(entry: EntryPoint) -> Exception | None:
    try:
        entry.load()
    except Exception as exc:  # noqa: BLE001 - Whatever a third party does, others are listed.
        return exc
    return None


def _described(kind: str, entry: EntryPoint, failure: Exception | None) -> dict[str, Any]:
    owner = entry.dist
    return {
        "kind": kind,
        "name": entry.name,
        "module": entry.value,
        "distribution": "?" if owner is None else f"{owner.name} {owner.version}",
        "status": "ok" if failure is None else f"{type(failure).__name__}: {failure}",
    }


def own_versions() -> dict[str, str]:
    """Returns the versions of the distributions of s3torch and of what they are made with."""
    others = {"awscrt", "boto3", "botocore", "torch", "lightning", "fsspec"}
    found = {one.name: one.version for one in distributions() if one.name}
    return {
        name: version
        for name, version in sorted(found.items())
        if name == "s3torch" or name.startswith("s3torch-") or name in others
    }


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    bash:  eval "$(s3torch completion bash)"  in ~/.bashrc

    zsh:   eval "$(s3torch completion zsh)"   in ~/.zshrc

    fish:  s3torch completion fish > ~/.config/fish/completions/s3torch.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "s3torch", _VARIABLE).source())
