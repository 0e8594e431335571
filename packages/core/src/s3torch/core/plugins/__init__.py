"""The plugin system: the hooks that plugins implement, and how plugins are found and asked.

Transports and packages that extend the core import it; it imports values of the core only.
"""

from s3torch.core.plugins._hookspecs import (
    hookimpl,
    s3torch_commands,
    s3torch_create_transport,
    s3torch_doctor_checks,
    s3torch_leftovers,
    s3torch_prefix_strategies,
    s3torch_reader_kinds,
    s3torch_shard_formats,
    s3torch_transfer_observers,
    s3torch_user_agent,
)
from s3torch.core.plugins._manager import (
    create_transport,
    default_transport,
    failures,
    prefix_strategy,
    reader_kind,
    shard_formats,
    transport_names,
)

__all__ = [
    "create_transport",
    "default_transport",
    "failures",
    "hookimpl",
    "prefix_strategy",
    "reader_kind",
    "s3torch_commands",
    "s3torch_create_transport",
    "s3torch_doctor_checks",
    "s3torch_leftovers",
    "s3torch_prefix_strategies",
    "s3torch_reader_kinds",
    "s3torch_shard_formats",
    "s3torch_transfer_observers",
    "s3torch_user_agent",
    "shard_formats",
    "transport_names",
]
