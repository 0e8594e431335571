"""Whether bytes move on the connections of this process, as the kernel counts them.

The sockets belong to the CRT, so they are only asked, by their numbers: a copy or an object of Python could
outlive them or change how they behave.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_OPEN_FILES = "/proc/self/fd"
_FAMILIES = {socket.AF_INET, socket.AF_INET6}
# How an address begins in both families: the family, and the port in network order.
_ADDRESS_SIZE = 128
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
# In struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received.
_INFO_SIZE = 256
_COUNTS = struct.Struct("=QQ")
_COUNTS_OFFSET = 120


def moved_bytes(ports: Collection[int]) -> int | None:
    """Sums the bytes that went over the connections to these ports, either way.

    Args:
        ports: The ports of the other side; none for all connections.

    Returns:
        ``None`` where the kernel does not tell, as outside Linux.
    """
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        files = [int(file.name) for file in Path(_OPEN_FILES).iterdir()]
    except OSError:
        return None
    return sum(_moved(file) for file in files if _is_wanted(file, ports))


def _is_wanted(file: int, ports: Collection[int]) -> bool:
    address = ctypes.create_string_buffer(_ADDRESS_SIZE)
    size = ctypes.c_uint32(_ADDRESS_SIZE)
    if _library().getpeername(file, address, ctypes.byref(size)) != 0:
        return False  # No socket, or not connected, or closed by now.
    family, port = _FAMILY.unpack_from(address)[0], _PORT.unpack_from(address, _FAMILY.size)[0]
    return family in _FAMILIES and (not ports or port in ports)


def _moved(file: int) -> int:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    asked = (file, socket.IPPROTO_TCP, socket.TCP_INFO, info, ctypes.byref(size))
    if _library().getsockopt(*asked) != 0 or size.value < _COUNTS_OFFSET + _COUNTS.size:
        return 0
    return sum(_COUNTS.unpack_from(info, _COUNTS_OFFSET))


@cache
def _library() -> Any:
    return ctypes.CDLL(None)
