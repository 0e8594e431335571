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

    from s3torch.core.observers._listening import TransferObserver
    from s3torch.core.seam import Transport, TransportContext

__all__ = [
    "PROJECT",
    "hookimpl",
    "s3torch_create_transport",
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
