"""How the ``http`` transport sends: signed, on kept connections, ``config.attempts`` times in all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from s3torch.core.errors import S3ConnectionError, S3Error, S3TimeoutError
from s3torch.core.transports._http import common_headers
from s3torch.core.transports._http_connection import StaleConnectionError
from s3torch.core.transports._http_connections import Connections
from s3torch.core.transports._http_exchange import refusal
from s3torch.core.transports._http_head import request_head
from s3torch.core.transports._http_signing import Signer
from s3torch.core.transports._retries import backoff, has_expired, may_succeed_now, tell_retry

if TYPE_CHECKING:
    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.protocols import TransportContext
    from s3torch.core.transports._http_connection import Connection
    from s3torch.core.transports._http_exchange import Exchange
    from s3torch.core.transports._pool import PooledTransfer

T = TypeVar("T")

_FIRST_ERROR_STATUS = 300
_MAX_ERROR_BODY = 64 * 1024


class Sender:
    """Sends requests for transfers, each on the thread of its transfer.

    Args:
        context: Settings, addresses and credentials.
        connections: How many idle connections are kept.
    """

    def __init__(self, context: TransportContext, *, connections: int) -> None:
        self._context = context
        self._connections = Connections(context.config, connections)
        self._signer = Signer()

    def send(self, transfer: PooledTransfer[T], exchange: Exchange[T]) -> T:
        """Sends a request until it succeeds.

        Args:
            transfer: Whose thread this is; its buffer is the body, or takes the body of the answer.
            exchange: What is asked.

        Raises:
            S3Error: It failed for good.
            Stop: The transfer was cancelled.
        """
        session = self._context.session
        attempt = sent = 0
        renewed = False
        while True:
            transfer.check()
            attempt += 1
            endpoint = session.endpoint(exchange.bucket)
            credentials = session.credentials(exchange.bucket)
            try:
                return self._attempt(transfer, exchange, endpoint, credentials)
            except S3Error as exc:
                error = _about(exc, exchange)
                sent += exc.attempts or 1
                error.attempts = sent
            transfer.check()
            if attempt >= self._context.config.attempts:
                return exchange.recover(error)
            if has_expired(error) and not renewed and session.renew_credentials(credentials, exchange.bucket):
                renewed, seconds = True, 0.0
            elif may_succeed_now(error) or exchange.restarts(error):
                seconds = backoff(attempt, error)
            else:
                return exchange.recover(error)
            tell_retry(self._context.on_retry, transfer, attempt=attempt, error=error, seconds=seconds)
            transfer.pause(seconds)

    def close(self) -> None:
        """Closes the idle connections."""
        self._connections.close()

    def _attempt(
        self,
        transfer: PooledTransfer[T],
        exchange: Exchange[T],
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        fresh = False
        try:
            while True:
                connection = self._connections.take(endpoint, fresh=fresh)
                try:
                    return self._exchange(transfer, exchange, connection, endpoint, credentials)
                except StaleConnectionError:
                    # Nothing came back, so this is no attempt; the other kept ones may be as old.
                    fresh = True
                except S3Error as exc:
                    # But it may have arrived.
                    exc.attempts = 1 + fresh
                    raise
                finally:
                    self._connections.give_back(connection)
        except TimeoutError as exc:
            if isinstance(exc, S3Error):
                raise
            raise S3TimeoutError(f"{endpoint.host}: {exc}") from exc
        except OSError as exc:
            if isinstance(exc, S3Error):
                raise
            raise S3ConnectionError(f"{endpoint.host}: {exc}") from exc

    def _exchange(
        self,
        transfer: PooledTransfer[T],
        exchange: Exchange[T],
        connection: Connection,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        buffer = transfer.borrow(connection.interrupt)
        try:
            uploads = exchange.method in {"PUT", "POST"}
            size = (0 if buffer is None else len(buffer)) if uploads else None
            head = self._head(exchange, connection, size, endpoint, credentials)
            answer = connection.ask(head, buffer if uploads else None)
            if answer.status >= _FIRST_ERROR_STATUS:
                raise refusal(exchange, answer, connection.body(answer, _MAX_ERROR_BODY))
            return exchange.receive(answer, connection, buffer)
        finally:
            transfer.give_back()

    def _head(
        self,
        exchange: Exchange[Any],
        connection: Connection,
        size: int | None,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> bytes:
        target = endpoint.base_path + quote(exchange.key, safe="/~")
        if exchange.query:
            target = f"{target}?{exchange.query}"
        headers = [("Host", endpoint.host), ("User-Agent", self._context.user_agent), *exchange.headers()]
        headers += common_headers(self._context.config, exchange.operation)
        if size is not None:
            headers.append(("Content-Length", str(size)))
        if credentials is not None:
            headers += self._signer.sign(
                exchange.method, target, headers, endpoint=endpoint, credentials=credentials
            )
        headers += connection.headers
        return request_head(exchange.method, connection.target_prefix + target, headers)


def _about(error: S3Error, exchange: Exchange[Any]) -> S3Error:
    if error.bucket is None:
        error.operation, error.bucket, error.key = exchange.operation, exchange.bucket, exchange.key
    return error
