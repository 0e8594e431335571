"""Transfers on threads: who may touch a buffer when, and how threads end."""

from __future__ import annotations

import gc
import threading
import time
import uuid

import pytest

from s3torch.core.errors import TransferCancelledError
from s3torch.core.requests import get_object
from s3torch.core.transports import WorkerPool, WorkerTransfer
from s3torch.core.transports._request_target import RequestTarget

PATIENCE = 20


@pytest.fixture
def name():
    """How the threads of this test are called; those of the one before may not have ended yet."""
    return f"s3torch-workers-{uuid.uuid4().hex}"


@pytest.fixture
def pool(name):
    pool = WorkerPool(4, name=name)
    yield pool
    pool.close()


@pytest.fixture
def threads(name):
    """Lists the threads of the pool that are alive."""
    return lambda: [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}_")]


def transfer_of(work, buffer=None):
    view = None if buffer is None else memoryview(buffer)
    return WorkerTransfer(work, request=get_object("bucket", "key"), buffer=view)


def ends(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_cancelling_waits_for_a_borrowed_buffer(pool):
    borrowed, interrupted, go_on = threading.Event(), threading.Event(), threading.Event()

    def work(transfer):
        view = transfer.borrow(interrupted.set)
        borrowed.set()
        go_on.wait(PATIENCE)
        view[0] = 1
        transfer.give_back()

    buffer = bytearray(8)
    transfer = pool.start(transfer_of(work, buffer))
    assert borrowed.wait(PATIENCE)
    canceller = threading.Thread(target=transfer.cancel)
    canceller.start()
    assert interrupted.wait(PATIENCE)
    assert canceller.is_alive()
    go_on.set()
    canceller.join(PATIENCE)
    assert not canceller.is_alive()
    assert buffer[0] == 1
    buffer.append(0)  # Python refuses while anything holds a view of it.
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)


def test_a_thread_may_cancel_what_it_is_doing_itself(pool):
    """As the collector does when it finds a dropped reader just then."""

    def work(transfer):
        transfer.borrow(lambda: None)
        assert transfer.cancel()
        transfer.give_back()

    buffer = bytearray(8)
    transfer = pool.start(transfer_of(work, buffer))
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    assert ends(lambda: transfer._buffer is None)
    buffer.append(0)


def test_a_buffer_is_not_lent_after_cancelling(pool):
    begun, cancelled = threading.Event(), threading.Event()
    lent = []

    def work(transfer):
        begun.set()
        cancelled.wait(PATIENCE)
        lent.append(transfer.borrow(lambda: None))

    transfer = pool.start(transfer_of(work, bytearray(8)))
    assert begun.wait(PATIENCE)
    assert transfer.cancel()
    cancelled.set()
    with pytest.raises(TransferCancelledError):
        transfer.result(PATIENCE)
    pool.close()
    assert lent == []


@pytest.mark.parametrize("patience", [PATIENCE, None], ids=["there", "here"])
def test_threads_are_started_as_they_are_needed(pool, threads, patience):
    assert threads() == []
    for _ in range(20):
        pool.start(transfer_of(lambda _: None)).result(patience)
    assert 1 <= len(threads()) <= 2
    go_on = threading.Event()
    waiting = [pool.start(transfer_of(lambda _: go_on.wait(PATIENCE))) for _ in range(20)]
    assert len(threads()) == 4
    go_on.set()
    assert all(transfer.result(PATIENCE) for transfer in waiting)


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_threads_end_with_their_pool(how, name, threads):
    pool = WorkerPool(4, name=name)
    assert pool.start(transfer_of(lambda _: 1)).result(PATIENCE) == 1
    if how == "closed":
        assert pool.close()
    del pool
    gc.collect()
    assert ends(lambda: not threads())


def test_the_interpreter_does_not_wait_for_a_server(python, stub, answer):
    stub.will(answer(200, b"x" * 1000, stall=10))
    code = """
        import sys, time
        from s3torch.core import Credentials, S3Client, S3ClientConfig

        config = S3ClientConfig(transport="http", credentials=lambda: Credentials("a", "b"))
        client = S3Client("us-east-1", endpoint=sys.argv[1], s3client_config=config)
        reader = client.get_object("bucket", "key")
        reader.prefetch()
        time.sleep(0.2)
        print("end")
    """
    began = time.monotonic()
    assert python(code, stub.endpoint).stdout == "end\n"
    assert time.monotonic() - began < 30  # The server stalls for 60.


@pytest.fixture
def busy_pool(name):
    """A pool whose only thread is busy."""
    pool = WorkerPool(1, name=name)
    go_on = threading.Event()
    pool.start(transfer_of(lambda _: go_on.wait(PATIENCE)))
    yield pool
    go_on.set()
    pool.close()


def test_whoever_waits_for_work_that_nobody_has_begun_does_it(busy_pool):
    transfer = busy_pool.start(transfer_of(lambda _: threading.get_ident()))
    assert transfer.result() == threading.get_ident()
    assert transfer.result(0) == threading.get_ident()


def test_errors_of_work_that_is_done_by_whoever_waits(busy_pool):
    with pytest.raises(ZeroDivisionError):
        busy_pool.start(transfer_of(lambda _: 1 // 0)).result()


def test_work_that_is_done_by_whoever_waits_can_be_cancelled(busy_pool):
    begun = threading.Event()

    def work(transfer):
        begun.set()
        transfer.pause(PATIENCE)

    transfer = busy_pool.start(transfer_of(work))

    def cancel():
        begun.wait(PATIENCE)
        transfer.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(TransferCancelledError):
        transfer.result()
    canceller.join()


def test_callbacks_run_on_a_thread_of_the_pool(busy_pool, name):
    called = []
    ended = threading.Event()

    def note(_):
        called.append(threading.current_thread().name)
        ended.set()

    def work(transfer):
        transfer.add_done_callback(note)

    busy_pool.start(transfer_of(work)).result()
    assert ended.wait(PATIENCE)
    assert called[0].startswith(name)


def test_work_that_is_waited_for_is_done_on_the_calling_thread(pool, threads):
    assert pool.do(transfer_of(lambda _: threading.get_ident())) == threading.get_ident()
    assert threads() == []
    with pytest.raises(LookupError, match="nothing"):
        pool.do(transfer_of(lambda _: {}["nothing"]))


def test_closing_the_pool_ends_work_on_a_calling_thread(pool):
    begun = threading.Event()
    errors = []

    def work(transfer):
        begun.set()
        transfer.pause(PATIENCE)

    def call():
        try:
            pool.do(transfer_of(work))
        except TransferCancelledError as exc:
            errors.append(exc)

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(PATIENCE)
    assert pool.close()
    caller.join(PATIENCE)
    assert len(errors) == 1
    with pytest.raises(ValueError, match="closed"):
        pool.do(transfer_of(work))


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 2, 12), (0.05, 16, 16)])
def test_more_threads_are_started_only_where_transfers_wait(name, threads, seconds, least, most):
    pool = WorkerPool(16, name=name, at_once=2, target=RequestTarget(16, fewest=2))

    def work(_):
        threading.Event().wait(seconds)

    for _ in range(6):
        for transfer in [pool.start(transfer_of(work)) for _ in range(16)]:
            transfer.add_done_callback(lambda _: None)  # So that it is not done on this thread.
            transfer.result(PATIENCE)
    assert least <= len(threads()) <= most
    pool.close()
    assert ends(lambda: not threads())


def test_threads_that_small_transfers_do_not_need_are_let_go(name, threads):
    pool = WorkerPool(16, name=name, at_once=12, target=RequestTarget(16, fewest=4))
    go_on = threading.Event()

    def run_at_once(count, buffer=None):
        go_on.clear()
        transfers = [pool.start(transfer_of(lambda _: go_on.wait(PATIENCE), buffer)) for _ in range(count)]
        for transfer in transfers:
            transfer.add_done_callback(lambda _: None)  # So that it is not done on this thread.
        running = len(threads())
        go_on.set()
        assert all(transfer.result(PATIENCE) for transfer in transfers)
        return running

    def run_quickly(count):
        transfers = [pool.start(transfer_of(lambda _: True)) for _ in range(count)]
        for transfer in transfers:
            transfer.add_done_callback(lambda _: None)
            assert transfer.result(PATIENCE)

    assert run_at_once(12, bytearray(1024 * 1024)) == 12
    run_quickly(1000)
    assert ends(lambda: len(threads()) <= 6)
    assert run_at_once(12) <= 6
    assert run_at_once(12, bytearray(1024 * 1024)) == 12
    pool.close()
    assert ends(lambda: not threads())
