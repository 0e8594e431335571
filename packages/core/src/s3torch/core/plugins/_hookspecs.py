"""The hooks that plugins implement; the text of each is the contract.

A plugin is a module or an object with functions of these names, marked with ``hookimpl``. Distributions
register transports in the entry-point group ``s3torch.transports`` (the name is what users put into
``S3ClientConfig(transport=...)``) and everything else in ``s3torch.plugins``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

    import click

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.core.cli.commands import CommandContext
    from s3torch.core.cli.findings import Finding
    from s3torch.core.observers._listening import TransferObserver
    from s3torch.core.seam import Transport, TransportContext

__all__ = [
    "PROJECT",
    "hookimpl",
    "s3torch_commands",
    "s3torch_create_transport",
    "s3torch_doctor_checks",
    "s3torch_leftovers",
    "s3torch_prefix_strategies",
    "s3torch_reader_kinds",
    "s3torch_shard_formats",
    "s3torch_transfer_observers",
    "s3torch_user_agent",
]

PROJECT = "s3torch"

hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)


@_hookspec(firstresult=True)
def s3torch_create_transport(context: TransportContext) -> Transport | None:
    """Creates the transport that this plugin is registered for.

    Called at the first use of a client, once per client and process, and only on the plugin whose name the
    configuration has. Creating must not use the network.

    Args:
        context: Settings, addresses and credentials.

    Raises:
        TransportError: Something that the transport needs is missing on this machine; the text says what
            and how to get it.
    """


@_hookspec
def s3torch_reader_kinds() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Names reader constructors, for ``S3ReaderConstructor.named``.

    Returns:
        For each kind a function that takes the options of the kind and returns a reader constructor.
    """


@_hookspec
def s3torch_prefix_strategies() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Names prefix strategies of distributed checkpoints.

    Returns:
        For each name a function that takes the options of the strategy and returns a function from the rank
        to the prefix of its files.
    """


@_hookspec
def s3torch_shard_formats() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Names formats of shards, objects with many samples, for the datasets of s3torch-datasets.

    Returns:
        For each name a function that takes the options of the format, all with defaults, and returns a
        ``s3torch.datasets.formats.ShardFormat``.
    """


@_hookspec
def s3torch_user_agent() -> str | None:
    """Gives a token for the ``User-Agent`` header, as in ``"md/pytorch#2.13.0"``, or ``None``.

    Called once per process, when the first client is used.
    """


@_hookspec
def s3torch_transfer_observers() -> Iterable[TransferObserver]:  # type: ignore[empty-body]
    """Gives observers, which are told of every transfer of the process from then on.

    Called once per process, when the first client is used, in a forked child again. While no plugin gives
    any and the program has none of its own, observing costs nothing; so give none where nobody wants them.

    Returns:
        Observers; the rules for them are in ``s3torch.core.observers._listening``.
    """


@_hookspec
def s3torch_commands() -> Mapping[str, click.Command]:  # type: ignore[empty-body]
    """Adds commands and groups of commands to the command line ``s3torch``.

    Called only by the command line, and not for its own commands, which no plugin replaces. Build a command
    with ``s3torch.core.cli.commands.command``, which gives it the options that all commands have, and import
    what is heavy inside the function of the command.

    Returns:
        For each name a click command.
    """


@_hookspec
def s3torch_doctor_checks() -> Iterable[Callable[[CommandContext], Iterable[Finding]]]:  # type: ignore[empty-body]
    """Adds checks to ``s3torch doctor``.

    Returns:
        Functions that return or yield what they find. They write nothing to the store. One that raises is
        reported as a finding, and the others go on.
    """


@_hookspec
def s3torch_leftovers() -> Iterable[Callable[[S3Client, str, timedelta], Iterable[ObjectInfo]]]:  # type: ignore[empty-body]
    """Adds what ``s3torch gc`` looks for besides uploads that nobody completes.

    Returns:
        Functions that are given a client, the URI of a folder, and an age, and return the objects below the
        folder that nothing refers to and that are older. ``gc`` deletes them by their keys.
    """
