"""How values and files live through a fork."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
import time

import pytest

from s3torch.core import _process
from s3torch.core._process import PerProcess, abandon, forked
from s3torch.core.errors import ForkedProcessError


class Native:
    """Stands for something that must not be touched in a child."""

    ended = []

    def __init__(self):
        self.pid = os.getpid()

    def __del__(self):
        self.ended.append(os.getpid())


def make():
    return [os.getpid()]


def test_a_value_is_made_once_at_the_first_use():
    made = []
    holder = PerProcess(lambda: made.append(1) or object())
    assert (holder.value, made) == (None, [])
    assert holder.get() is holder.get() is holder.value
    assert made == [1]


def test_many_threads_make_one_value():
    made = []

    def slow():
        made.append(1)
        time.sleep(0.05)
        return object()

    holder = PerProcess(slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(holder.get())) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(found), len(set(map(id, found)))) == (1, 32, 1)


def test_a_value_that_was_taken_is_made_again():
    holder = PerProcess(make)
    first = holder.get()
    assert holder.take() is first
    assert (holder.take(), holder.value) == (None, None)
    assert holder.get() is not first


def test_a_factory_that_fails_is_asked_again():
    answers = [ValueError("not yet"), 7]

    def factory():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    holder = PerProcess(factory)
    with pytest.raises(ValueError, match="not yet"):
        holder.get()
    assert holder.get() == 7


@pytest.mark.promise(4)
def test_a_child_makes_its_own(in_child):
    holder = PerProcess(make)
    assert holder.get() == [os.getpid()]
    pid, before, after = in_child(lambda: (os.getpid(), holder.value, holder.get()))
    assert before is None
    assert after == [pid]
    assert holder.get() == [os.getpid()]


def test_a_child_of_a_child_makes_its_own(in_child):
    holder = PerProcess(make)
    holder.get()

    def generations():
        child = holder.get()[0]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, str(holder.get()[0]).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return child, int(os.read(read, 100)), pid

    child, grandchild, pid = in_child(generations)
    assert grandchild == pid
    assert len({os.getpid(), child, grandchild}) == 3


def test_a_fork_waits_for_what_a_thread_imports(in_child, tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\nready.set()\ntime.sleep(0.2)\nvalue = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    begun = threading.Event()
    monkeypatch.setattr("builtins.ready", begun, raising=False)
    holder = PerProcess(lambda: importlib.import_module("slow_to_import").value)
    thread = threading.Thread(target=holder.get)
    thread.start()
    assert begun.wait(20)
    assert in_child(lambda: (holder.value, holder.get())) == (None, 7)
    thread.join()
    sys.modules.pop("slow_to_import")


@pytest.mark.promise(4)
def test_a_lock_of_the_parent_does_not_stop_a_child(in_child, monkeypatch):
    monkeypatch.setattr(_process, "_LONGEST_MAKING", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def slow():
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait()
        return os.getpid()

    holder = PerProcess(slow)
    thread = threading.Thread(target=holder.get)
    thread.start()
    entered.wait()
    try:
        pid, found = in_child(lambda: (os.getpid(), holder.get()))
        assert found == pid
    finally:
        leave.set()
        thread.join()


@pytest.mark.promise(4)
def test_a_child_never_ends_what_the_parent_made(in_child):
    holder = PerProcess(Native)
    holder.get()

    def child():
        holder.get()
        holder.take()
        import gc

        gc.collect()
        return os.getpid(), Native.ended

    pid, ended = in_child(child)
    # Its own one did end, the parent's did not.
    assert ended == [pid]
    assert Native.ended == []


def test_what_is_abandoned_stays():
    Native.ended.clear()
    value = Native()
    abandon(value)
    del value
    assert Native.ended == []


def test_a_value_is_left_out_of_pickles():
    holder = PerProcess(make)
    holder.get()
    again = pickle.loads(pickle.dumps(holder))
    assert again.value is None
    assert again.get() == [os.getpid()]


def test_a_child_is_known_as_one(in_child):
    assert _process.here == os.getpid()
    opened = os.getpid()
    assert in_child(lambda: _process.here == os.getpid() != opened) is True
    text = in_child(lambda: str(forked("the thing", opened)))
    assert text.startswith(f"the thing was opened in process {opened}")
    assert issubclass(ForkedProcessError, RuntimeError)
