"""A running S3 server: what its users need to know of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from boto3.session import Session

    from s3torch.testing._process import SupervisedProcess


HOST = "127.0.0.1"
_thread = threading.local()


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
