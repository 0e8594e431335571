"""The settings of a client, and what its requests say they come from."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from s3torch.core._put_options import PutOptions
from s3torch.core._resources import connections_share
from s3torch.core._uri import check_endpoint
from s3torch.core._version import __version__
from s3torch.core.errors import ConfigurationError
from s3torch.core.models import SecretBytes
from s3torch.core.ranges import GIB, MAX_PART_SIZE, MIB, MIN_PART_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.models import Credentials

__all__ = [
    "CHECKSUM_ALGORITHMS",
    "TRANSPORT_VARIABLE",
    "S3ClientConfig",
    "UserAgent",
    "checksum_type",
]

TRANSPORT_VARIABLE = "S3TORCH_TRANSPORT"
CHECKSUM_ALGORITHMS = ("CRC64NVME", "CRC32C", "CRC32", "SHA256")
_OFF = "off"
_CHOICES = {
    "checksum_algorithm": (*CHECKSUM_ALGORITHMS, _OFF),
    "verify": ("on", _OFF),
    "addressing_style": ("auto", "path", "virtual"),
}
_MAX_GBPS = 10_000
_MAX_ATTEMPTS = 100
_MAX_CONNECTIONS = 1024
_CUSTOMER_KEY_BYTES = 32
_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_ACCOUNT = re.compile(r"[0-9]{12}")


def checksum_type(algorithm: str) -> str:
    """Returns what S3 makes of the checksums of parts: one of all bytes, or one of the checksums."""
    return "COMPOSITE" if algorithm == "SHA256" else "FULL_OBJECT"


@dataclass(frozen=True)
class S3ClientConfig:
    """How a client reaches S3 and how much it may use; immutable, hashable, and safe to pickle.

    It holds no secrets: keys come from the usual AWS places or from ``credentials``.

    Attributes:
        throughput_target_gbps: What the client tries to reach, in gigabits per second; it sets the number
            of connections, see ``max_connections``. 0 takes what suits the type of instance, divided between
            the local ranks and DataLoader workers.
        part_size: Bytes of a part of a download or upload, from 5 MiB to 5 GiB.
        unsigned: Sends anonymous requests.
        force_path_style: Puts the bucket into the path, as ``addressing_style="path"`` does.
        max_attempts: How often one request is tried in all. ``AWS_MAX_ATTEMPTS`` comes before it.
        profile: A named profile of the AWS configuration files.
        requester_pays: Agrees to pay for requests to buckets that ask for it.
        endpoint: The URL of a store that speaks S3; ``None`` takes ``AWS_ENDPOINT_URL_S3``,
            ``AWS_ENDPOINT_URL``, the profile, and at last AWS itself.
        transport: The name of the transport plugin; ``None`` takes ``S3TORCH_TRANSPORT``, then ``"http"``, or
            ``"crt"`` for requests over TLS where the OpenSSL of this Python cannot be called.
        memory_limit: Bytes that may be in flight in this process; ``None`` takes an eighth of the memory of
            its control group or machine, divided between the local ranks and DataLoader workers, from
            64 MiB to 2 GiB.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for an answer, or for the next bytes of it, per attempt. The CRT tells
            nothing of an answer before it is whole, so with ``"crt"`` what counts, on Linux, is that bytes
            move on any connection to the store; besides, the whole answer has to come in this time, plus a
            second for each MiB that this client has under way, but at most ten times as long again. The CRT
            itself ends a connection that was silent for about 30 seconds. Either way the request is tried
            again, and ``S3TimeoutError`` or ``S3ConnectionError`` comes after the last time.
        low_speed_limit: Bytes a second that an answer or an upload has to move, on average over
            ``low_speed_time`` seconds, else the attempt fails with ``S3TimeoutError``; as curl's
            ``--speed-limit`` and ``--speed-time``. The default is 0, no limit: a server that sends a byte now
            and then is then waited for, but for the head of its answer, all of which has to come within
            ``read_timeout``. With ``"crt"`` what counts, on Linux, is what all connections to the store move
            together.
        low_speed_time: Seconds over which ``low_speed_limit`` is measured.
        ca_bundle: A file of certificates that are trusted with TLS, in place of those of the machine.
            ``None`` takes ``AWS_CA_BUNDLE``, ``ca_bundle`` of the profile, and ``REQUESTS_CA_BUNDLE``.
        checksum_algorithm: What uploads carry: ``"CRC64NVME"``, ``"CRC32C"``, ``"CRC32"``, ``"SHA256"``, or
            ``"off"`` for stores that do not know checksums, which are then not asked for any either.
            ``None`` takes ``"off"`` where ``AWS_REQUEST_CHECKSUM_CALCULATION`` or the profile says
            ``when_required``, else ``"CRC64NVME"``. Objects of more than one part get a checksum of all their
            bytes, but with ``"SHA256"``, for which S3 has only one of the parts' checksums.
        credentials: A function that returns the keys to sign with. Asked again when ``expires_at`` of the
            last ones is near. It has to be picklable where the client is.
        put_options: How all uploads of the client are stored, as far as a call does not say otherwise. Copies
            take storage class, encryption and ACL from it.
        expected_bucket_owner: The account id that buckets have to belong to; requests to buckets of others
            fail.
        sse_customer_key: A function that returns the 32 bytes of a key of yours (SSE-C), which S3 encrypts
            and decrypts with and does not keep. It is asked for each request, also for what is read and for
            both sides of a copy, and has to be picklable where the client is. S3 takes it over HTTPS only;
            plain HTTP is refused but to this machine.
        max_connections: How many connections, and so requests at a time, a client may have in one process,
            from 1 to 1024; they are made as they are needed. ``None`` takes what ``throughput_target_gbps``
            asks for at 0.4 Gbit/s each, up to 128, or where that is more, 128 divided between the local ranks
            and DataLoader workers, because small objects wait more than they move.
        verify: Whether what is read is compared with the checksums that the store keeps: ``"on"`` or
            ``"off"``. ``None`` takes ``"off"`` where ``AWS_RESPONSE_CHECKSUM_VALIDATION`` or the profile says
            ``when_required`` or ``checksum_algorithm`` is ``"off"``, else ``"on"``.
        addressing_style: Where the bucket stands in a URL: ``"path"`` (``host/bucket/key``), ``"virtual"``
            (``bucket.host/key``, as far as a host can have that name), or ``"auto"``: in the path for stores
            outside AWS and names with dots. ``None`` takes ``s3 = addressing_style`` of the profile, else
            ``"auto"``.
        growing_parts: Whether the parts of an upload of unknown size grow, so that it may reach 5 TiB. Some
            stores want equal parts; without growing, an upload has at most 10,000 parts of ``part_size``.
    """

    throughput_target_gbps: float = 10.0
    part_size: int = 8 * MIB
    unsigned: bool = False
    force_path_style: bool = False
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    endpoint: str | None = None
    transport: str | None = None
    memory_limit: int | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    checksum_algorithm: str | None = None
    # Not shown, because a function may hold the keys that it returns.
    credentials: Callable[[], Credentials] | None = field(default=None, repr=False)
    put_options: PutOptions | None = None
    expected_bucket_owner: str | None = None
    sse_customer_key: Callable[[], bytes] | None = field(default=None, repr=False)
    max_connections: int | None = None
    verify: Literal["on", "off"] | None = None
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    growing_parts: bool = True
    low_speed_limit: int = 0
    low_speed_time: float = 30.0
    ca_bundle: str | None = None

    def __post_init__(self) -> None:
        self._check_number("throughput_target_gbps", 0, _MAX_GBPS)
        self.check_part_size()
        self._check_integer("max_attempts", 1, _MAX_ATTEMPTS)
        self._check_limits()
        self._check_number("connect_timeout", 0.001, 3600)
        self._check_number("read_timeout", 0.001, 3600)
        self._check_integer("low_speed_limit", 0, GIB)
        self._check_number("low_speed_time", 0.001, 3600)
        for name in ("unsigned", "force_path_style", "requester_pays", "growing_parts"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be a bool, got {getattr(self, name)!r}")
        for name in ("profile", "endpoint", "transport", "ca_bundle"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"{name} must be None or a non-empty string, got {value!r}")
        if self.unsigned and self.requester_pays:
            raise ConfigurationError("requester_pays needs signed requests, but unsigned is True")
        if self.endpoint is not None:
            check_endpoint(self.endpoint)
        self._check_choices()
        if self.credentials is not None and not callable(self.credentials):
            raise ConfigurationError("credentials must be a function that returns Credentials")
        self._check_storage()

    def customer_key(self) -> bytes:
        """Asks for the key of ``sse_customer_key``.

        Raises:
            ConfigurationError: The function failed, or did not return 32 bytes; they are not shown.
        """
        if self.sse_customer_key is None:
            raise ConfigurationError("there is no sse_customer_key")
        try:
            key = self.sse_customer_key()
            key = SecretBytes(key) if isinstance(key, bytes) else type(key)
        except Exception as exc:
            raise ConfigurationError(f"sse_customer_key failed with {type(exc).__name__}") from exc
        if not isinstance(key, bytes):
            raise ConfigurationError(f"sse_customer_key must return bytes, not {key.__name__}")
        if len(key) != _CUSTOMER_KEY_BYTES:
            raise ConfigurationError(
                f"sse_customer_key must return {_CUSTOMER_KEY_BYTES} bytes, not {len(key)}"
            )
        return key

    def options_of(self, options: PutOptions | None) -> PutOptions:
        """Puts the options of a call over those of all uploads.

        Raises:
            ConfigurationError: They ask for an encryption besides that with the customer's key.
        """
        return self._checked((options if options is not None else PutOptions()).over(self.put_options))

    def options_of_copy(self, options: PutOptions | None) -> PutOptions:
        """Puts the options of a copy over storage class, encryption and ACL of all uploads.

        Raises:
            ConfigurationError: They ask for an encryption besides that with the customer's key.
        """
        defaults = None if self.put_options is None else self.put_options.placement
        return self._checked((options if options is not None else PutOptions()).over(defaults))

    def _checked(self, chosen: PutOptions) -> PutOptions:
        if self.sse_customer_key is not None and chosen.server_side_encryption is not None:
            raise ConfigurationError(
                "server_side_encryption cannot be combined with sse_customer_key, got "
                f"{chosen.server_side_encryption!r}"
            )
        return chosen

    @property
    def upload_checksum(self) -> str | None:
        """The algorithm of the checksums that uploads carry, ``None`` when they are off."""
        return None if self.checksum_algorithm == _OFF else self.checksum_algorithm or CHECKSUM_ALGORITHMS[0]

    @property
    def verifies(self) -> bool:
        """Whether what is read is compared with the checksums that the store keeps."""
        return (self.verify or self.checksum_algorithm) != _OFF

    @property
    def connections(self) -> int:
        """How many connections a client of this process may have."""
        return self.max_connections or connections_share(self.throughput_target_gbps)

    @property
    def attempts(self) -> int:
        """How often one request is tried in all, with ``AWS_MAX_ATTEMPTS`` taken into account."""
        value = os.environ.get("AWS_MAX_ATTEMPTS", "")
        valid = value.isdecimal() and int(value) > 0
        return min(int(value), _MAX_ATTEMPTS) if valid else self.max_attempts

    @property
    def transport_name(self) -> str | None:
        """The name of the transport that was asked for, if any; ``S3TORCH_TRANSPORT`` counts as well."""
        return self.transport or os.environ.get(TRANSPORT_VARIABLE) or None

    def check_part_size(self) -> None:
        """Checks ``part_size``; a subclass may override it to check later, at the first use of a client.

        Raises:
            ConfigurationError: It is out of range.
        """
        self._check_integer("part_size", MIN_PART_SIZE, MAX_PART_SIZE)

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigurationError(f"{name} must be None or one of {', '.join(allowed)}, got {value!r}")
        if self.force_path_style and self.addressing_style == "virtual":
            raise ConfigurationError("force_path_style cannot be combined with addressing_style='virtual'")

    def _check_limits(self) -> None:
        limits = (("memory_limit", MIN_PART_SIZE, 1024 * GIB), ("max_connections", 1, _MAX_CONNECTIONS))
        for name, low, high in limits:
            if getattr(self, name) is not None:
                self._check_integer(name, low, high)

    def _check_storage(self) -> None:
        if self.put_options is not None and not isinstance(self.put_options, PutOptions):
            raise ConfigurationError(f"put_options must be PutOptions, got {self.put_options!r}")
        owner = self.expected_bucket_owner
        if owner is not None and not (isinstance(owner, str) and _ACCOUNT.fullmatch(owner)):
            raise ConfigurationError(
                f"expected_bucket_owner must be an account id of 12 digits, got {owner!r}"
            )
        if self.sse_customer_key is not None and not callable(self.sse_customer_key):
            raise ConfigurationError("sse_customer_key must be a function that returns 32 bytes")
        self.options_of(None)

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name} must be an int, got {value!r}")
        self._check_number(name, low, high)

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigurationError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            raise ConfigurationError(f"{name} must be from {low} to {high}, got {value!r}")


class UserAgent:
    """Builds the value of the ``User-Agent`` header.

    Args:
        comments: What the code that uses the client wants to be known by; goes into parentheses at the end.
    """

    def __init__(self, comments: list[str] | None = None) -> None:
        if comments is not None and not (
            isinstance(comments, list) and all(isinstance(comment, str) for comment in comments)
        ):
            raise ConfigurationError("Argument comments must be a List[str]")
        self._comments = tuple(comments or ())

    @property
    def prefix(self) -> str:
        """The whole value, with the comments."""
        comments = "; ".join(filter(None, self._comments))
        return f"{self.get_default_prefix()} ({comments})" if comments else self.get_default_prefix()

    @staticmethod
    def get_default_prefix() -> str:
        """The value without comments: package, operating system, Python, machine, and torch if installed."""
        system = _SYSTEMS.get(sys.platform, sys.platform)
        python = ".".join(str(number) for number in sys.version_info[:3])
        fields = [
            f"s3torch/{__version__}",
            "ua/2.1",
            f"os/{system}#{platform.release()}",
            f"lang/python#{python}",
            f"md/arch#{platform.machine()}",
        ]
        # Imported late: this is where plugins are loaded.
        from s3torch.core.plugins._manager import user_agent_tokens

        return " ".join([*fields, *user_agent_tokens()])
