"""Many records of TLS in one call, without the interpreter's lock.

The ``ssl`` module takes the lock again for each record of 16 KiB. Beside a thread that computes that is up to
a switch interval of 5 ms each time, and 64 times for a MiB. OpenSSL itself has a loop over records, that of a
buffering BIO, and needs no lock at all. So ``ssl`` does what it is trusted for, the handshake and whom to
believe, and bulk goes through OpenSSL's functions, those of the very library that ``ssl`` has loaded. Kernel
TLS would do the same, but few kernels have it.

What ``ssl`` does not tell is where its ``SSL`` is. In CPython 3.11 to 3.14 it lies in front of the context in
the object. With any other Python, where the context is not found in that place, where ``ssl`` is built into
the interpreter, and where the functions that are found are not those of its very OpenSSL, records come one by
one, and the log says so once.
"""

from __future__ import annotations

import ctypes
import logging
import ssl
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from s3torch.core import _process
from s3torch.core.ranges import GIB, KIB

if TYPE_CHECKING:
    from s3torch.core.transports.http._sockets import StallTimer

_log = logging.getLogger(__name__)

# From openssl/bio.h and openssl/ssl.h.
_SHOULD_RETRY = 8
_SET_SSL = 109
_CLEAR_MODE = 78
_PARTIAL_WRITE = 1
_RECEIVED_SHUTDOWN = 2
_WANT_READ = 2
_RECORD = 16 * KIB
_KEEP_OPEN = 0
# By their names: what they return and take. The first two give up the interpreter's lock.
_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SLOW: dict[str, tuple[Any, ...]] = {
    "BIO_read": (_INT, _POINTER, _POINTER, _INT),
    "SSL_write": (_INT, _POINTER, _POINTER, _INT),
}
_QUICK: dict[str, tuple[Any, ...]] = {
    "BIO_ctrl": (ctypes.c_long, _POINTER, _INT, ctypes.c_long, _POINTER),
    "BIO_f_buffer": (_POINTER,),
    "BIO_f_ssl": (_POINTER,),
    "BIO_free_all": (None, _POINTER),
    "BIO_new": (_POINTER, _POINTER),
    "BIO_new_socket": (_POINTER, _INT, _INT),
    "BIO_number_read": (ctypes.c_uint64, _POINTER),
    "BIO_number_written": (ctypes.c_uint64, _POINTER),
    "BIO_push": (_POINTER, _POINTER, _POINTER),
    "BIO_test_flags": (_INT, _POINTER, _INT),
    "BIO_up_ref": (_INT, _POINTER),
    "ERR_clear_error": (None,),
    "ERR_error_string_n": (None, ctypes.c_ulong, _POINTER, _SIZE),
    "ERR_peek_last_error": (ctypes.c_ulong,),
    "OpenSSL_version_num": (ctypes.c_ulong,),
    "SSL_read": (_INT, _POINTER, _POINTER, _INT),
    "SSL_ctrl": (ctypes.c_long, _POINTER, _INT, ctypes.c_long, _POINTER),
    "SSL_get_error": (_INT, _POINTER, _INT),
    "SSL_get_rbio": (_POINTER, _POINTER),
    "SSL_get_shutdown": (_INT, _POINTER),
    "SSL_get_wbio": (_POINTER, _POINTER),
    "SSL_has_pending": (_INT, _POINTER),
    "SSL_set0_rbio": (None, _POINTER, _POINTER),
    "SSL_set0_wbio": (None, _POINTER, _POINTER),
    "SSL_set_default_read_buffer_len": (None, _POINTER, _SIZE),
    "SSL_set_quiet_shutdown": (None, _POINTER, _INT),
    "SSL_set_read_ahead": (None, _POINTER, _INT),
}
_FIRST_UNKNOWN_PYTHON = (3, 15)
# What OpenSSL receives at a time.
_RECEIVE = 128 * KIB
# In words of an ``_ssl._SSLSocket``: where the ``SSL`` is, and behind it the context.
_SSL, _CONTEXT = 3, 4


class Records:
    """The records of one TLS connection; use ``of``. One thread at a time may call it.

    Args:
        library: OpenSSL.
        tls: The connection as ``ssl`` has it, before its handshake, over memory of both directions.
        pointer: Its ``SSL``.
        descriptor: The socket.
    """

    def __init__(self, library: Any, tls: ssl.SSLObject, pointer: int, descriptor: int) -> None:
        self._library = library
        self._tls = tls  # It owns the SSL.
        self._ssl = pointer
        self._pid = _process.here
        library.SSL_set_read_ahead(pointer, 1)
        library.SSL_set_default_read_buffer_len(pointer, _RECEIVE)
        # Else a call writes one record only.
        library.SSL_ctrl(pointer, _CLEAR_MODE, _PARTIAL_WRITE, None)
        # Nothing is sent when it is freed.
        library.SSL_set_quiet_shutdown(pointer, 1)
        self._piece = memoryview(bytearray(_RECORD))
        self._piece_address = ctypes.addressof((ctypes.c_char * _RECORD).from_buffer(self._piece))
        self._socket = library.BIO_new_socket(descriptor, _KEEP_OPEN)
        inner = library.BIO_new(library.BIO_f_ssl())
        library.BIO_ctrl(inner, _SET_SSL, _KEEP_OPEN, pointer)
        # The loop over records is that of this one. It keeps no bytes itself where more than its own size,
        # 4 KiB, are asked for.
        self._loop = library.BIO_push(library.BIO_new(library.BIO_f_buffer()), inner)

    @classmethod
    def of(cls, tls: ssl.SSLObject, descriptor: int) -> Records | None:
        """Returns the records of a connection before its handshake; ``None`` where that cannot be had."""
        library = _openssl()
        pointer = None if library is None else _pointer_of(tls)
        return None if pointer is None else cls(library, tls, pointer, descriptor)

    def __del__(self) -> None:
        # A fork may have caught another thread in the midst of a call.
        if getattr(self, "_loop", None) and self._pid == _process.here:
            self._library.BIO_free_all(self._loop)
            self._library.BIO_free_all(self._socket)
            self._library.ERR_clear_error()

    @property
    def is_empty(self) -> bool:
        """Whether OpenSSL has received nothing that it has not given yet."""
        return not self._library.SSL_has_pending(self._ssl)

    def take(self, limit: int) -> bytes:
        """Returns bytes of one record that is here, none only at the end; within the interpreter's lock.

        Raises:
            ssl.SSLWantReadError: There is none.
            OSError: The connection is broken.
        """
        library = self._library
        library.ERR_clear_error()
        count: int = library.SSL_read(self._ssl, self._piece_address, min(limit, _RECORD))
        if count > 0:
            return bytes(self._piece[:count])
        if library.SSL_get_error(self._ssl, count) == _WANT_READ:
            raise ssl.SSLWantReadError
        if library.SSL_get_shutdown(self._ssl) & _RECEIVED_SHUTDOWN:
            return b""
        raise self._broken()

    def read(self, view: memoryview, stall: StallTimer | None) -> int:
        """Fills memory of more than a record, unless the end or a stall comes first; returns how many bytes.

        Args:
            view: The memory.
            stall: Waits for the network, so long; ``None`` takes only what the memory of ``ssl`` has, within
                the interpreter's lock.

        Returns:
            0 at the end.

        Raises:
            ssl.SSLWantReadError: Nothing has come for a tick, or is in memory.
            OSError: The connection is broken, or stalls (``TimeoutError``).
        """
        library = self._library
        memory, before, began, read = None, 0, time.monotonic(), library.BIO_read_at_once
        if stall is not None:
            read = library.BIO_read
            memory, before = library.SSL_get_rbio(self._ssl), library.BIO_number_read(self._socket)
            for bio in (memory, self._socket):
                library.BIO_up_ref(bio)
            library.SSL_set0_rbio(self._ssl, self._socket)
        # What others have left would be taken for an error of this call.
        library.ERR_clear_error()
        try:
            with _Address(view) as address:
                count: int = read(self._loop, address, min(len(view), GIB))
        finally:
            if memory is not None:
                library.SSL_set0_rbio(self._ssl, memory)
        waits = count <= 0 and library.BIO_test_flags(self._loop, _SHOULD_RETRY)
        if count <= 0 and not waits:
            if library.SSL_get_shutdown(self._ssl) & _RECEIVED_SHUTDOWN:
                return 0
            raise self._broken()
        if stall is not None:
            _tell(stall, max(count, library.BIO_number_read(self._socket) - before), began)
        if waits:
            raise ssl.SSLWantReadError
        return count

    def write(self, data: bytes | memoryview, stall: StallTimer) -> int:
        """Sends all of some bytes and returns how many; 0 if it has to be called again with the same.

        Raises:
            OSError: The connection is broken, or stalls (``TimeoutError``).
        """
        library, began = self._library, time.monotonic()
        memory, before = library.SSL_get_wbio(self._ssl), library.BIO_number_written(self._socket)
        for bio in (memory, self._socket):
            library.BIO_up_ref(bio)
        library.SSL_set0_wbio(self._ssl, self._socket)
        library.ERR_clear_error()
        try:
            with _Address(data) as address:
                count: int = library.SSL_write(self._ssl, address, len(data))
        finally:
            library.SSL_set0_wbio(self._ssl, memory)
        if count <= 0 and not library.BIO_test_flags(self._socket, _SHOULD_RETRY):
            raise self._broken()
        _tell(stall, max(count, library.BIO_number_written(self._socket) - before), began)
        return max(count, 0)

    def _broken(self) -> OSError:
        code = self._library.ERR_peek_last_error()
        text = ctypes.create_string_buffer(256)
        self._library.ERR_error_string_n(code, text, len(text))
        self._library.ERR_clear_error()
        why = f" ({text.value.decode(errors='replace')})" if code else ""
        return ConnectionResetError(f"the server closed the connection without saying so in TLS{why}")


def _tell(stall: StallTimer, moved: int, began: float) -> None:
    """Tells what a call has moved; one that a signal has ended early says nothing of the network."""
    if moved or time.monotonic() - began >= stall.tick / 2:
        stall.moved(moved)


class _Address:
    """Where the bytes of a buffer are, also of one that cannot be written; it stays as it is meanwhile."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._view = _View()

    def __enter__(self) -> int | None:
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(self._data), ctypes.byref(self._view), 0)
        return self._view.address

    def __exit__(self, *_: object) -> None:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(self._view))


class _View(ctypes.Structure):
    """``Py_buffer`` of CPython."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("object", ctypes.c_void_p),
        ("length", ctypes.c_ssize_t),
        ("item_size", ctypes.c_ssize_t),
        ("read_only", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )
    address: int | None


@cache
def warn_of_single_records() -> None:
    """Says once in a process why large bodies come slowly over TLS."""
    _log.warning(
        "the OpenSSL of this Python cannot be called for many records of TLS at once, so transport 'http' "
        "takes the interpreter's lock for every 16 KiB: beside a thread that computes, a read may move 50 "
        "MB/s and less; use transport='crt' for large objects"
    )


def takes_many_records() -> bool:
    """Whether a call can take many records of TLS without the interpreter's lock, with this Python."""
    return _openssl() is not None


@cache
def _openssl() -> Any:
    """Returns the OpenSSL that ``ssl`` has loaded; ``None`` where it cannot be called."""
    is_known = sys.implementation.name == "cpython" and sys.version_info < _FIRST_UNKNOWN_PYTHON
    if not is_known or not ssl.OPENSSL_VERSION.startswith("OpenSSL "):
        return None
    try:
        import _ssl

        # Where it has no file, the functions that are found may be those of another library's OpenSSL.
        path = _ssl.__file__
        if path is None:
            return None
        slow, quick = ctypes.CDLL(path), ctypes.PyDLL(path)
        for library, functions in ((slow, _SLOW), (quick, _QUICK)):
            for name, (result, *taken) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, taken
                setattr(quick, name, function)
        if quick.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER:
            return None
        at_once = ctypes.PyDLL(path).BIO_read
        at_once.restype, at_once.argtypes = slow.BIO_read.restype, slow.BIO_read.argtypes
        setattr(quick, "BIO_read_at_once", at_once)  # noqa: B010 - For the type checker.
    except (ImportError, OSError, AttributeError):
        return None
    return quick


def _pointer_of(tls: ssl.SSLObject) -> int | None:
    """Returns where the ``SSL`` of a connection is; ``None`` if it is not known."""
    inner = getattr(tls, "_sslobj", None)
    word = ctypes.sizeof(ctypes.c_void_p)
    if inner is None or type(inner).__basicsize__ < (_CONTEXT + 1) * word:
        return None
    words = (ctypes.c_void_p * (_CONTEXT + 1)).from_address(id(inner))
    return words[_SSL] if words[_CONTEXT] == id(tls.context) else None
