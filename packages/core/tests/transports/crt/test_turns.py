"""How many small requests are in flight, on a simulated server with a clock of its own."""

from __future__ import annotations

import heapq
import threading

import pytest

from s3torch.core.transports.crt._transport import Turns

LIMIT = 128


def simulate(turns, clock, *, requests, latency, service, servers=2):
    """Sends requests, all of which wait for a turn; returns the most that were in flight, and the seconds."""
    answers: list[tuple[float, int, float]] = []
    free = [clock[0]] * servers
    started, most = 0, 0

    def start():
        nonlocal started, most
        started += 1
        begun = max(clock[0], heapq.heappop(free))
        heapq.heappush(free, begun + service)
        heapq.heappush(answers, (begun + service + latency, started, clock[0]))
        most = max(most, len(answers))

    before = clock[0]
    for _ in range(requests):
        turns.enter(start)
    while answers:
        clock[0], _, began = heapq.heappop(answers)
        turns.leave(began)
    assert started == requests
    return most, clock[0] - before


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def turns(clock):
    return Turns(LIMIT, clock=lambda: clock[0])


@pytest.mark.parametrize("service", [0.001, 0.01])
def test_few_are_in_flight_where_answers_wait_for_each_other(turns, clock, service):
    most, _ = simulate(turns, clock, requests=3000, latency=0, service=service)
    assert most <= 28


def test_latency_is_hidden(turns, clock):
    most, seconds = simulate(turns, clock, requests=3000, latency=0.05, service=0.001)
    assert most > 64
    assert seconds < 3000 * 0.05 / 8 / 4


def test_what_did_not_pay_is_tried_again(turns, clock):
    simulate(turns, clock, requests=3000, latency=0, service=0.001)
    simulate(turns, clock, requests=6000, latency=0.05, service=0.001)
    assert turns.count > 64


def test_limit(clock):
    turns = Turns(4, clock=lambda: clock[0])
    most, _ = simulate(turns, clock, requests=500, latency=0.05, service=0.0)
    assert most == 4


def test_stuck_requests_do_not_hold_up_others():
    turns = Turns(LIMIT)
    started = []
    last = threading.Event()
    for number in range(60):
        turns.enter(lambda number=number: started.append(number) or (number == 59 and last.set()))
    assert len(started) == 10
    # Nothing is answered, and all get their turn by and by.
    assert last.wait(30)
    assert started == list(range(60))


def test_many_that_fail_at_once_do_not_nest(turns):
    started = []

    def fail_at_once():
        started.append(1)
        turns.leave(0.0)

    for _ in range(10):
        turns.enter(lambda: None)
    for _ in range(5000):
        turns.enter(fail_at_once)
    turns.leave(0.0)
    assert len(started) == 5000
