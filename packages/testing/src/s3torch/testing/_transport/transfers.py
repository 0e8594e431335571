"""Conformance of transports: transfers, buffers, errors, threads, the end."""

# ruff: noqa: FBT001, S101 - In tests, assert is how they tell, and parametrize gives what it gives.

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core.errors import NotFoundError, S3Error, S3TimeoutError, TransferCancelledError
from s3torch.core.models import MultipartUpload, PutOptions
from s3torch.core.ranges import MIB, ByteRange
from s3torch.testing._transport.case import (
    NOWHERE,
    PATIENCE,
    PROMPT,
    TransportCalls,
    TransportCase,
    checksum_of,
    expect_released,
    failure,
    get,
    put,
    wait,
)
from s3torch.testing.scripted import ScriptedAnswer, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.seam import Transfer, TransportContext
    from s3torch.testing._transport.case import Script

_MANY = 24
_DATA = bytes(range(256)) * 40
_SILENT = ScriptedAnswer(stall=-1)


class TransferTests(TransportCase):
    """What every transfer owes."""

    def test_starting_never_raises(self, transport: TransportCalls, key: str) -> None:
        nowhere = NOWHERE
        upload = MultipartUpload(nowhere, key, "no-such-upload")
        body, options = memoryview(b"x"), PutOptions()
        transfers: list[Transfer[Any]] = [
            transport.get(nowhere, key),
            transport.put(nowhere, key, body, options=options),
            transport.create_multipart_upload(nowhere, key, options=options),
            transport.upload_part(upload, 1, body),
        ]
        for transfer in transfers:
            with pytest.raises(NotFoundError):
                transfer.result(PATIENCE)
            assert transfer.done()
        transport.abort_multipart_upload(upload).result(PATIENCE)

    def test_callback_before_and_after_the_end(
        self, transport: TransportCalls, bucket: str, key: str
    ) -> None:
        """A callback gets the transfer, once, also when it comes late."""
        put(transport, bucket, key)
        transfer = transport.get(bucket, key)
        called: list[Any] = []
        ended = threading.Event()
        transfer.add_done_callback(called.append)
        transfer.add_done_callback(lambda _: ended.set())
        assert ended.wait(PATIENCE)
        assert called == [transfer]
        transfer.add_done_callback(called.append)
        assert called == [transfer, transfer]
        assert transfer.result(0).data == b"data"
        assert called == [transfer, transfer]

    def test_callback_of_failure(self, transport: TransportCalls, bucket: str, key: str) -> None:
        transfer = transport.get(bucket, key)
        ended = threading.Event()
        transfer.add_done_callback(lambda _: ended.set())
        assert ended.wait(PATIENCE)
        for _ in range(2):
            with pytest.raises(NotFoundError):
                transfer.result(0)

    def test_callback_may_start_the_next(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """A chain of transfers needs no thread that waits."""
        put(transport, bucket, key)
        results: list[bytes | None] = []
        ended = threading.Event()

        def next_one(done: Transfer[Any]) -> None:
            results.append(done.result(0).data)
            if len(results) == _MANY:
                ended.set()
            else:
                transport.get(bucket, key).add_done_callback(next_one)

        transport.get(bucket, key).add_done_callback(next_one)
        assert ended.wait(PATIENCE)
        assert results == [b"data"] * _MANY

    def test_many_at_a_time(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        bodies = {f"{prefix}{n}": bytes([n]) * (1000 * n + 1) for n in range(_MANY)}
        puts = [transport.put(bucket, key, memoryview(body)) for key, body in bodies.items()]
        for stored in puts:
            stored.result(PATIENCE)
        gets = {key: transport.get(bucket, key) for key in bodies}
        assert {key: got.result(PATIENCE).data for key, got in gets.items()} == bodies

    def test_many_threads(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Every method may be called from any thread."""
        data = bytes(range(256)) * 100
        put(transport, bucket, key, data)

        def read(number: int) -> bool:
            byte_range = ByteRange(number * 100, number * 100 + 50)
            buffer = bytearray(50)
            get(transport, bucket, key, byte_range=byte_range, into=memoryview(buffer))
            return buffer == data[byte_range.start : byte_range.stop]

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, range(64)))

    def test_result_may_be_asked_too_early(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key, bytes(2 * MIB))
        transfer = transport.get(bucket, key)
        try:
            result = transfer.result(0)
        except TimeoutError:
            result = transfer.result(PATIENCE)
        assert result.length == 2 * MIB

    def test_errors_can_be_pickled(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key)
        failing: list[Transfer[Any]] = [
            transport.get(bucket, f"{key}-missing"),
            transport.get(bucket, key, if_match='"00000000000000000000000000000000"'),
            transport.get(bucket, key, byte_range=ByteRange(100, 200)),
            transport.put(NOWHERE, key, memoryview(b"x")),
        ]
        for transfer in failing:
            with pytest.raises(S3Error) as caught:
                transfer.result(PATIENCE)
            error = caught.value
            again = pickle.loads(pickle.dumps(error))  # noqa: S301 - It was pickled here.
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert vars(again) == vars(error)


class BufferTests(TransportCase):
    """When a transport lets go of its caller's buffers."""

    def test_get_releases_buffer(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key)
        for asked in (key, f"{key}-missing"):
            buffer = bytearray(4)
            transfer = transport.get(bucket, asked, into=memoryview(buffer))
            wait(transfer)
            expect_released(buffer)

    @pytest.mark.parametrize("size", [10, 3 * MIB])
    def test_put_releases_body(self, transport: TransportCalls, bucket: str, key: str, size: int) -> None:
        for where in (bucket, NOWHERE):
            body = bytearray(size)
            transfer = transport.put(where, key, memoryview(body))
            wait(transfer)
            expect_released(body)


class CancelTests(TransportCase):
    """What cancelling owes."""

    def test_cancelled_gets_end_promptly(self, transport: TransportCalls, bucket: str, key: str) -> None:
        """Each ends at once, by the error of a cancelled transfer if it was in time."""
        put(transport, bucket, key, bytes(4 * MIB))
        buffers = [bytearray(4 * MIB) for _ in range(_MANY)]
        transfers = [transport.get(bucket, key, into=memoryview(buffer)) for buffer in buffers]
        begin = time.monotonic()
        asked = [transfer.cancel() for transfer in transfers]
        cancelled = [_is_cancelled(transfer) for transfer in transfers]
        assert time.monotonic() - begin < PROMPT
        assert any(asked)
        assert any(cancelled)
        for buffer in buffers:
            expect_released(buffer)
        assert get(transport, bucket, key).length == 4 * MIB

    def test_cancelled_put_is_whole_or_not(self, transport: TransportCalls, bucket: str, prefix: str) -> None:
        """Nothing that was changed after the end of a cancelled PUT is ever stored."""
        size = 2 * MIB
        bodies = {f"{prefix}{number}": bytearray(b"a" * size) for number in range(6)}
        transfers = [
            transport.put(bucket, key, memoryview(body), checksum=checksum_of(bytes(body)))
            for key, body in bodies.items()
        ]
        for transfer in transfers:
            transfer.cancel()
        for transfer, body in zip(transfers, bodies.values(), strict=True):
            _is_cancelled(transfer)
            body[:] = b"b" * size
        for key in bodies:
            try:
                assert get(transport, bucket, key).data == b"a" * size
            except NotFoundError:
                continue

    def test_cancel_after_the_end(self, transport: TransportCalls, bucket: str, key: str) -> None:
        put(transport, bucket, key)
        transfer = transport.get(bucket, key)
        transfer.result(PATIENCE)
        assert not transfer.cancel()
        assert transfer.result(0).data == b"data"


class CloseTests(TransportCase):
    """What closing owes."""

    def test_close_may_be_called_again(self, transport_context: TransportContext) -> None:
        transport = self.create_transport(transport_context)
        transport.close()
        transport.close()

    def test_close_cancels(
        self, transport: TransportCalls, transport_context: TransportContext, bucket: str, key: str
    ) -> None:
        put(transport, bucket, key, bytes(4 * MIB))
        other = TransportCalls(self.create_transport(transport_context))
        buffers = [bytearray(4 * MIB) for _ in range(_MANY)]
        transfers = [other.get(bucket, key, into=memoryview(buffer)) for buffer in buffers]
        begin = time.monotonic()
        other.close()
        for transfer in transfers:
            _is_cancelled(transfer)
        assert time.monotonic() - begin < PROMPT
        for buffer in buffers:
            expect_released(buffer)

    def test_use_after_close(self, transport_context: TransportContext) -> None:
        transport = TransportCalls(self.create_transport(transport_context))
        transport.close()
        upload, body, options = MultipartUpload("b", "k", "u"), memoryview(b""), PutOptions()
        uses: list[Callable[[], object]] = [
            lambda: transport.get("b", "k"),
            lambda: transport.put("b", "k", body, options=options),
            lambda: transport.create_multipart_upload("b", "k", options=options),
            lambda: transport.upload_part(upload, 1, body),
            lambda: transport.complete_multipart_upload(upload, [], options=options),
            lambda: transport.abort_multipart_upload(upload),
        ]
        for use in uses:
            with pytest.raises(ValueError, match="closed"):
                use()


class SilenceTests(TransportCase):
    """What holds while a server is silent."""

    def test_send_returns_at_once(self, script: Script) -> None:
        """Many requests are under way before the first is answered."""
        script.server.will(*[_SILENT] * _MANY)
        transport = script.connect(max_connections=_MANY)
        transfers: list[Transfer[Any]] = []
        for number in range(_MANY):
            seconds = seconds_of(lambda: transfers.append(transport.get("bucket", "key")))
            assert seconds < PROMPT, f"send {number} took {seconds} seconds"
        assert not any(transfer.done() for transfer in transfers)

    def test_callback_runs_on_a_thread_of_the_transport(self, script: Script) -> None:
        """It is not called on the thread that has sent the request and waits."""
        script.server.will(ScriptedAnswer(body=_DATA, stall=-1))
        transfer = script.connect().get("bucket", "key")
        threads: list[int] = []
        transfer.add_done_callback(lambda _: threads.append(threading.get_ident()))
        script.server.wait_for_requests(1)
        assert threads == []
        script.server.release()
        assert transfer.result(PATIENCE).data == _DATA
        _until(lambda: threads)
        assert threading.get_ident() not in threads

    def test_callback_of_cancelled_transfer(self, script: Script) -> None:
        """It is not called on the thread that cancels, and sees the end."""
        script.server.will(_SILENT)
        transfer = script.connect().get("bucket", "key")
        seen: list[tuple[int, bool]] = []
        transfer.add_done_callback(lambda one: seen.append((threading.get_ident(), one.done())))
        script.server.wait_for_requests(1)
        assert transfer.cancel()
        _until(lambda: seen)
        ((thread, is_done),) = seen
        assert thread != threading.get_ident()
        assert is_done

    @pytest.mark.parametrize("how", ["cancel", "close"])
    @pytest.mark.parametrize("stall", [-1, 1000], ids=["before the answer", "in the body"])
    def test_end_is_prompt(self, script: Script, how: str, stall: int) -> None:
        """Cancelling and closing wait for no server, and free the buffer."""
        script.server.will(ScriptedAnswer(body=_DATA, stall=stall))
        transport = script.connect()
        buffer = bytearray(len(_DATA))
        transfer = transport.get("bucket", "key", into=memoryview(buffer))
        script.server.wait_for_requests(1)
        assert seconds_of(transfer.cancel if how == "cancel" else transport.close) < PROMPT
        failure(transfer, TransferCancelledError, seconds=PROMPT)
        expect_released(buffer)

    def test_end_of_upload_is_prompt(self, script: Script) -> None:
        """What was sent and is not answered ends as promptly, and lets go of the body."""
        script.server.will(_SILENT)
        body = bytearray(_DATA)
        transfer = script.connect().put("bucket", "key", memoryview(body))
        script.server.wait_for_requests(1)
        assert seconds_of(transfer.cancel) < PROMPT
        failure(transfer, TransferCancelledError, "PutObject", seconds=PROMPT)
        expect_released(body)

    @pytest.mark.parametrize("ranged", [False, True])
    def test_buffer_is_not_touched_after_cancelling(self, script: Script, ranged: bool) -> None:
        """The caller may use it for something else at once, although more bytes come."""
        headers = {"Content-Range": f"bytes 0-{len(_DATA) - 1}/{len(_DATA)}"} if ranged else {}
        script.server.will(ScriptedAnswer(206 if ranged else 200, _DATA, headers, stall=1000))
        buffer = bytearray(len(_DATA))
        byte_range = ByteRange(0, len(_DATA)) if ranged else None
        transfer = script.connect().get("bucket", "key", byte_range=byte_range, into=memoryview(buffer))
        script.server.wait_for_requests(1)
        time.sleep(0.1)
        assert transfer.cancel()
        other = bytes(len(buffer))
        buffer[:] = other
        script.server.release()
        time.sleep(0.3)
        assert buffer == other

    def test_pause_can_be_cancelled(self, script: Script) -> None:
        """A transfer that waits for its next attempt ends promptly, and makes none."""
        script.server.will(*[refusal(503, "SlowDown")] * 20)
        transfer = script.connect(max_attempts=20).get("bucket", "key")
        script.server.wait_for_requests(3)
        assert transfer.cancel()
        failure(transfer, TransferCancelledError, seconds=PROMPT)
        asked = len(script.server.requests)
        time.sleep(1)
        assert len(script.server.requests) <= asked + 1

    def test_silence_has_an_end(self, script: Script) -> None:
        """``read_timeout`` ends an attempt, and the last one the transfer."""
        script.server.will(*[_SILENT] * 5)
        transfer = script.connect(read_timeout=0.3, max_attempts=2).get("bucket", "key")
        error = failure(transfer, S3TimeoutError)
        assert (error.attempts, len(script.server.requests)) == (2, 2)

    def test_result_may_be_waited_for_too_shortly(self, script: Script) -> None:
        script.server.will(ScriptedAnswer(body=_DATA, stall=-1))
        transfer = script.connect().get("bucket", "key")
        with pytest.raises(TimeoutError):
            transfer.result(0.1)
        script.server.release()
        assert transfer.result(PATIENCE).data == _DATA


def seconds_of(call: Callable[[], object]) -> float:
    """Measures how long a call takes."""
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def _is_cancelled(transfer: Transfer[Any]) -> bool:
    """Waits for the end of a transfer that was asked to stop; any other error is a failure of the test."""
    try:
        transfer.result(PATIENCE)
    except TransferCancelledError:
        return True
    return False
