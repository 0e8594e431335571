"""A job of many ranks against S3's rates, request by request.

Each rank keeps requests in flight, as many as the window and the budget of a real one let in. What follows a
503 is decided by ``s3torch.core.transports.decide_retry``, the function that all transports ask, with its own
pauses and jitter; keys are those that the prefix strategies of ``s3torch.dcp`` make. Time is simulated, and
nothing is sent.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import simpy

from s3torch.core import S3ClientConfig
from s3torch.core._memory import MemoryBudget, default_memory_limit
from s3torch.core.errors import ThrottledError
from s3torch.core.transfer._window import FETCH_IN_FLIGHT, Window
from s3torch.core.transports import RetryDecision, decide_retry
from s3torch.core.transports._retries import Throttling

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from s3torch.core.transfer._window import Admission
    from scale.store import PartitionedStore, StoreRules

_CONFIG = S3ClientConfig()


@dataclass(frozen=True, slots=True)
class Storm:
    """Many ranks that begin at about the same time.

    Attributes:
        ranks: How many.
        requests: How many each has to make.
        key: The key of a request, by rank and number.
        part_size: The bytes that each asks for.
        in_flight: How many of them at a time at most.
        writes: Whether they are uploads.
        latency: Seconds until S3 answers.
        transfer: Seconds that the bytes of one request take after that.
        start_within: The ranks begin within so many seconds.
        attempts: How often a request is tried in all.
    """

    ranks: int
    requests: int
    key: Callable[[int, int], str]
    part_size: int = _CONFIG.part_size
    in_flight: int = FETCH_IN_FLIGHT // _CONFIG.part_size
    writes: bool = False
    latency: float = 0.03
    transfer: float = 0.17
    start_within: float = 5.0
    attempts: int = _CONFIG.max_attempts

    def shrunk(self, factor: int) -> Storm:
        """Returns the same storm of fewer ranks, for a store that was shrunk as well."""
        key = self.key
        return replace(self, ranks=max(1, self.ranks // factor), key=lambda rank, n: key(rank * factor, n))


@dataclass(slots=True)
class Outcome:
    """What has happened.

    Attributes:
        wanted: Requests that the ranks had to make.
        served: Requests that were answered.
        given_up: Requests that failed for good; a rank whose request does so stops.
        left: Requests that ranks did not make, because they had stopped.
        refused: Attempts that got a 503.
        attempts: How many requests took how many attempts.
        seconds: How long it took.
        first_failure: When the first request failed for good.
        served_per_second: By whole seconds.
        refused_per_second: By whole seconds.
        partitions: How many there were in the end.
    """

    wanted: int
    served: int = 0
    given_up: int = 0
    left: int = 0
    refused: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    first_failure: float | None = None
    served_per_second: Counter[int] = field(default_factory=Counter)
    refused_per_second: Counter[int] = field(default_factory=Counter)
    partitions: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client does after a 503; the defaults are what it does, others are for comparison.

    Attributes:
        decide: Says what follows a failed attempt.
        slows_down: Whether it also has fewer requests in flight for a while.
    """

    decide: Callable[..., RetryDecision] = decide_retry
    slows_down: bool = True


def simulate(
    storm: Storm,
    store: PartitionedStore,
    *,
    seed: int = 0,
    policy: Policy | None = None,
) -> Outcome:
    """Runs a storm until every rank has finished or given up.

    Args:
        storm: What the ranks do.
        store: What serves them; its partitions change.
        seed: The same seed gives the same outcome.
        policy: What clients do after a 503.
    """
    with _seeded(seed):
        env = simpy.Environment()
        outcome = Outcome(wanted=storm.ranks * storm.requests)
        for rank in range(storm.ranks):
            begin = random.uniform(0, storm.start_within)  # noqa: S311 - A simulation.
            env.process(_Rank(env, storm, store, outcome, rank, policy or Policy()).run(begin))
        env.run()
    outcome.seconds = env.now
    outcome.partitions = store.partitions
    return outcome


class _Rank:
    """One rank, with as many requests in flight as the window and the budget of a real one let in."""

    def __init__(
        self,
        env: simpy.Environment,
        storm: Storm,
        store: PartitionedStore,
        outcome: Outcome,
        rank: int,
        policy: Policy,
    ) -> None:
        self._env = env
        self._storm = storm
        self._store = store
        self._outcome = outcome
        self._rank = rank
        self._policy = policy
        self._window = Window(storm.in_flight * storm.part_size)
        self._budget = MemoryBudget(default_memory_limit(), clock=lambda: env.now)
        self._throttling = Throttling(clock=lambda: env.now)
        self._stopped = False
        self._ended = env.event()

    def run(self, delay: float) -> Generator[simpy.Event, None, None]:
        """Makes all requests of the rank."""
        env, storm = self._env, self._storm
        yield env.timeout(delay)
        for number in range(storm.requests):
            while not self._stopped:
                admission = self._window.admit(storm.part_size, self._budget)
                if admission is not None:
                    env.process(self._request(storm.key(self._rank, number), admission))
                    break
                self._ended = env.event()
                yield self._ended
            if self._stopped:
                self._outcome.left += storm.requests - number
                return

    def _request(self, key: str, admission: Admission) -> Generator[simpy.Event, None, None]:
        yield from self._attempts(key)
        admission.release()
        if not self._ended.triggered:
            self._ended.succeed()

    def _attempts(self, key: str) -> Generator[simpy.Event, None, None]:
        env, storm, outcome = self._env, self._storm, self._outcome
        attempt = 0
        while True:
            attempt += 1
            yield env.timeout(_spread(storm.latency))
            if self._store.ask(key, env.now, writes=storm.writes):
                outcome.served += 1
                outcome.served_per_second[int(env.now)] += 1
                outcome.attempts[attempt] += 1
                yield env.timeout(_spread(storm.transfer))
                return
            outcome.refused += 1
            outcome.refused_per_second[int(env.now)] += 1
            decision = self._policy.decide(
                ThrottledError(), attempt, attempts=storm.attempts, throttling=self._throttling
            )
            if self._policy.slows_down:
                self._budget.slow_down()
            if decision.action == "fail":
                outcome.given_up += 1
                outcome.attempts[attempt] += 1
                if outcome.first_failure is None:
                    outcome.first_failure = env.now
                self._stopped = True
                return
            yield env.timeout(decision.seconds)


def _spread(seconds: float) -> float:
    """Answers do not come in step: from half of a time to one and a half of it."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - A simulation.


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Makes the jitter of ``decide_retry`` repeatable; it takes it from the module ``random``."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def shrunk_rules(rules: StoreRules, factor: int) -> StoreRules:
    """Returns the rules of a store that serves a storm that was shrunk by the same factor."""
    return replace(rules, gets=rules.gets / factor, puts=rules.puts / factor)
