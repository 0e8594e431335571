"""Finds plugins and calls their hooks.

Nothing is loaded before it is asked for. A transport is loaded by its name alone, so a broken transport
hurts only who asks for it. A broken plugin of the group ``s3torch.plugins`` is logged as a warning and left
out, because it may have nothing to do with what the program does; ``failures`` tells which and why.
"""

from __future__ import annotations

import importlib
import logging
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from s3torch.core._process import PerProcess
from s3torch.core._resources import exhausted_files
from s3torch.core.errors import ConfigurationError, S3Error, TransportError
from s3torch.core.plugins import _hookspecs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from importlib.metadata import EntryPoint

    import click

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.core.cli.commands import CommandContext
    from s3torch.core.cli.findings import Finding
    from s3torch.core.observers._listening import TransferObserver
    from s3torch.core.seam import Transport, TransportContext

__all__ = [
    "PLUGIN_GROUP",
    "TRANSPORT_GROUP",
    "commands",
    "create_transport",
    "doctor_checks",
    "failures",
    "installed_plugins",
    "leftover_finders",
    "prefix_strategy",
    "reader_kind",
    "shard_formats",
    "transfer_observers",
    "transport_names",
    "user_agent_tokens",
]

TRANSPORT_GROUP = "s3torch.transports"
PLUGIN_GROUP = "s3torch.plugins"

T = TypeVar("T")

_log = logging.getLogger(__name__)


def transport_names() -> list[str]:
    """Lists the names of all transports that are installed."""
    return sorted({entry.name for entry in _entries(TRANSPORT_GROUP)})


def default_transport(*, encrypted: bool) -> str:
    """Names the transport that serves where none is asked for, for requests over TLS or not.

    It is ``"http"``; over TLS ``"crt"`` where the OpenSSL of this Python cannot be called for many records.
    """
    from s3torch.core.transports.http._records import takes_many_records

    return "http" if not encrypted or takes_many_records() else "crt"


def create_transport(name: str, context: TransportContext) -> Transport:
    """Creates the transport that is registered under this name; no other is imported.

    Raises:
        TransportError: There is none of this name, it cannot be imported, or something that it needs is
            missing. The text says which.
    """
    entry = _find_transport(name)
    where = f"transport {name!r} ({entry.value})"
    try:
        plugin = entry.load()
    except Exception as exc:
        raise TransportError(f"{where} cannot be imported: {exc!r}") from exc
    manager = _new_manager()
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
        transport: Transport | None = manager.hook.s3torch_create_transport(context=context)
    except S3Error:
        raise
    except Exception as exc:
        raise TransportError(f"{where} cannot be created: {exc!r}") from exc
    if transport is None:
        raise TransportError(f"{where} does not implement s3torch_create_transport")
    return transport


def reader_kind(kind: str) -> Callable[..., Any]:
    """Returns what makes constructors of a kind of reader that a plugin has registered.

    Raises:
        ConfigurationError: No installed plugin has this kind.
    """
    return _named("kind of reader", kind, _plugins.get().ask("s3torch_reader_kinds"))


def prefix_strategy(name: str) -> Callable[..., Any]:
    """Returns what makes prefix strategies of this name.

    Raises:
        ConfigurationError: No installed plugin has this strategy.
    """
    return _named("prefix strategy", name, _plugins.get().ask("s3torch_prefix_strategies"))


def shard_formats() -> dict[str, Callable[..., Any]]:
    """Returns what makes formats of shards, by their names."""
    return _merged(_plugins.get().ask("s3torch_shard_formats"))


def user_agent_tokens() -> list[str]:
    """Lists the tokens that plugins add to the ``User-Agent`` header."""
    return sorted({token for token in _plugins.get().ask("s3torch_user_agent") if token})


def transfer_observers() -> list[TransferObserver]:
    """Lists the observers that plugins give, in the order in which the plugins were found."""
    return _listed("s3torch_transfer_observers")


def commands() -> dict[str, click.Command]:
    """Returns the commands that plugins add to the command line, by their names."""
    return _merged(_plugins.get().ask("s3torch_commands", read=dict))


def doctor_checks() -> list[Callable[[CommandContext], Iterable[Finding]]]:
    """Lists the checks that plugins add to ``s3torch doctor``."""
    return _listed("s3torch_doctor_checks")


def leftover_finders() -> list[Callable[[S3Client, str, timedelta], Iterable[ObjectInfo]]]:
    """Lists what plugins add to ``s3torch gc``."""
    return _listed("s3torch_leftovers")


def installed_plugins(group: str) -> list[EntryPoint]:
    """Lists what is registered in a group of entry points, by name, without loading any of it."""
    return sorted(_entries(group), key=lambda entry: entry.name)


def failures() -> Mapping[str, Exception]:
    """Tells which plugins could not be loaded, and why."""
    return dict(_plugins.get().failures)


def _find_transport(name: str) -> EntryPoint:
    known = _transports()
    if name not in known:
        # It may have been installed since then.
        importlib.invalidate_caches()
        _installed.cache_clear()
        known = _transports()
    if name in known:
        return known[name]
    installed = ", ".join(transport_names()) or "none"
    raise TransportError(f"unknown transport {name!r}; installed are: {installed}")


def _transports() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in reversed(_entries(TRANSPORT_GROUP))}


def _entries(group: str) -> tuple[EntryPoint, ...]:
    """Lists what is installed; folders that cannot be opened would be taken for empty ones."""
    exhausted = exhausted_files()
    if exhausted:
        raise TransportError(f"cannot look for transports and plugins: {exhausted}")
    return tuple(_installed(tuple(sys.path)).select(group=group))


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> Any:  # noqa: ARG001 - The key of the cache.
    """The entry points of all distributions; to look through them takes 10 ms or more."""
    return entry_points()


def _named(what: str, name: str, found: list[Mapping[str, Callable[..., Any]]]) -> Callable[..., Any]:
    merged = _merged(found)
    if name not in merged:
        installed = ", ".join(sorted(merged)) or "none"
        raise ConfigurationError(f"unknown {what} {name!r}; installed are: {installed}")
    return merged[name]


def _listed(hook: str) -> list[Any]:
    """Returns what plugins give as lists, in the order in which they were found."""
    given = _plugins.get().ask(hook, read=list)
    return [one for answer in reversed(given) for one in answer]


def _merged(found: list[Mapping[str, T]]) -> dict[str, T]:
    return {key: value for mapping in reversed(found) for key, value in mapping.items()}


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(_hookspecs.PROJECT)
    manager.add_hookspecs(_hookspecs)
    return manager


class _Plugins:
    """The plugins of the group ``s3torch.plugins``, those that could be loaded and those that could not."""

    def __init__(self) -> None:
        self.manager = _new_manager()
        self.failures: dict[str, Exception] = {}
        for entry in _entries(PLUGIN_GROUP):
            self._load(entry)

    def ask(self, hook: str, *, read: Callable[[Any], Any] | None = None) -> list[Any]:
        """Calls a hook of every plugin, the last one first; a plugin that fails is left out from then on.

        Args:
            hook: Its name.
            read: Makes of each answer what is wanted; an answer with which it fails is a failure, too.
        """
        answers: list[Any] = []
        plugins = self.manager.list_name_plugin()
        for name, plugin in reversed(plugins):
            others = [other for _, other in plugins if other is not plugin]
            try:
                given = self.manager.subset_hook_caller(hook, others)()
                answers += given if read is None else [read(answer) for answer in given]
            except Exception as exc:  # noqa: BLE001 - Whatever a third party does, others go on.
                self._leave_out(name, hook, exc)
        return answers

    def _load(self, entry: EntryPoint) -> None:
        if self.manager.has_plugin(entry.name):
            return
        try:
            self.manager.register(entry.load(), name=entry.name)
            self.manager.check_pending()
        except Exception as exc:  # noqa: BLE001 - Whatever a third party does, others go on.
            self._leave_out(entry.name, entry.value, exc)

    def _leave_out(self, name: str, where: str, exc: Exception) -> None:
        if self.manager.has_plugin(name):
            self.manager.unregister(name=name)
        self.failures[name] = exc
        _log.warning("plugin %r (%s) is skipped: %r", name, where, exc)


_plugins = PerProcess(_Plugins)
