"""The model and the simulation of tools/scale: nothing is lost, and the same seed gives the same numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core.ranges import MIB
from s3torch.core.transports import RetryDecision, decide_retry
from scale import model, scenarios
from scale.scenarios import BEFORE, DEFAULT, HEX_ABOVE, HEX_BELOW, LAYOUTS, TB
from scale.simulation import Policy, Storm, simulate
from scale.store import PartitionedStore, StoreRules

SMALL = StoreRules(gets=100, puts=60, sustained=20)


def storm(ranks=8, requests=40, **options):
    return Storm(ranks, requests, lambda rank, _: f"run/{rank:04}", **options)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.integers(1, 12),
    requests=st.integers(1, 30),
    in_flight=st.integers(1, 12),
    attempts=st.integers(1, 10),
    writes=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_request_is_lost(ranks, requests, in_flight, attempts, writes, seed):
    asked = storm(ranks, requests, in_flight=in_flight, attempts=attempts, writes=writes)
    outcome = simulate(asked, PartitionedStore(SMALL), seed=seed)
    assert outcome.wanted == ranks * requests
    assert outcome.wanted == outcome.served + outcome.given_up + outcome.left
    assert sum(outcome.attempts.values()) == outcome.served + outcome.given_up
    made = sum(number * count for number, count in outcome.attempts.items())
    assert made == outcome.served + outcome.refused
    assert max(outcome.attempts, default=0) <= attempts
    assert outcome.served == sum(outcome.served_per_second.values())
    assert outcome.refused == sum(outcome.refused_per_second.values())
    assert (outcome.given_up == 0) == (outcome.first_failure is None)
    if not outcome.given_up:
        assert outcome.served == outcome.wanted


def test_the_same_seed_gives_the_same_outcome():
    def run(seed):
        return simulate(storm(), PartitionedStore(SMALL), seed=seed)

    assert run(1) == run(1)
    assert run(1) != run(2)


@given(st.lists(st.floats(0, 30), max_size=400), st.booleans())
def test_a_range_of_keys_serves_no_more_than_its_rate(times, writes):
    rules = StoreRules(gets=10, puts=7, sustained=1000)
    store = PartitionedStore(rules)
    served = [at for at in sorted(times) if store.ask("key", at, writes=writes)]
    rate = rules.puts if writes else rules.gets
    for first, last in itertools.combinations(range(0, len(served), 5), 2):
        assert last - first <= rate * (served[last] - served[first] + rules.burst) + 1


def test_reads_and_writes_have_rates_of_their_own():
    store = PartitionedStore(StoreRules(gets=10, puts=7))
    assert sum(store.ask("key", 0, writes=True) for _ in range(50)) == 7
    assert sum(store.ask("key", 0) for _ in range(50)) == 10


def test_lasting_load_splits_a_range_of_keys_in_its_middle():
    store = PartitionedStore(StoreRules(gets=10, sustained=5))
    served = Counter()
    for tick in range(1000):
        second = tick // 100
        served[second] += store.ask(f"{tick % 8}", tick / 100)
    assert served[2] == 10
    assert store.partitions == 2
    assert store.splits[0][1] in {"3", "4"}
    assert served[9] == 20
    # One key cannot be split.
    alone = PartitionedStore(StoreRules(gets=10, sustained=5))
    for tick in range(3000):
        alone.ask("key", tick / 100)
    assert alone.partitions == 1


def test_a_short_burst_splits_nothing():
    store = PartitionedStore(StoreRules(gets=10, sustained=5))
    for burst in range(5):
        for tick in range(100):
            store.ask(f"{tick % 8}", 10 * burst + tick / 100)
    assert store.partitions == 1


def test_below_the_rate_nothing_is_refused():
    # 4 ranks with 2 in flight, each a fifth of a second at the very least half of that.
    outcome = simulate(storm(ranks=4, in_flight=2), PartitionedStore(SMALL))
    assert (outcome.refused, outcome.served) == (0, outcome.wanted)


def test_the_retry_decision_of_the_transports_is_asked():
    asked = []

    def decide(error, attempt, *, attempts, throttling):
        asked.append((attempt, attempts))
        return decide_retry(error, attempt, attempts=attempts, throttling=throttling)

    outcome = simulate(storm(ranks=40), PartitionedStore(SMALL), policy=Policy(decide))
    assert len(asked) == outcome.refused > 0
    assert {attempts for _, attempts in asked} == {10}

    def refuse(*_, **__):
        return RetryDecision("fail")

    outcome = simulate(storm(ranks=40), PartitionedStore(SMALL), policy=Policy(refuse))
    assert outcome.given_up == outcome.refused > 0


def test_what_failed_before_succeeds_now():
    """With 256 nodes at one range of keys some requests failed for good, which changed the retries."""
    load = scenarios.load(256, 10 * TB)
    before = scenarios.alone(load, shrink=128, policy=BEFORE)
    now = scenarios.alone(load, shrink=128)
    assert before.given_up > 10
    assert (now.given_up, now.served) == (0, now.wanted)
    assert now.refused < before.refused + now.wanted


def test_a_save_of_a_thousand_nodes_into_a_new_range_of_keys_loses_far_less():
    """Each rank began anew with short pauses after each request, and gave up before S3 had split it."""

    def forgetful(error, attempt, *, attempts, **_):
        decision = decide_retry(error, attempt, attempts=attempts)
        # Pauses grew to a minute.
        return replace(decision, seconds=decision.seconds * 60 / 90) if attempt > 5 else decision

    save = scenarios.save(scenarios.DEFAULT, 1000, 10 * TB, 1)
    before = scenarios.alone(save, shrink=50, policy=Policy(forgetful))
    now = scenarios.alone(save, shrink=50)
    assert before.given_up > 0
    assert now.given_up == 0
    assert now.refused < 0.7 * before.refused
    assert now.seconds < 1.1 * before.seconds


def test_prefixes_help_where_they_stand_before_what_changes():
    def seconds(layout):
        make = scenarios.saves(layout, nodes=1000, size=10 * TB)
        return scenarios.one_after_another(make, (1, 2), shrink=500)[-1].seconds

    default, below, above = map(seconds, (DEFAULT, HEX_BELOW, HEX_ABOVE))
    assert above < 0.8 * default
    assert below > 0.9 * default


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
def test_files_of_ranks_have_names_of_their_own(layout):
    assert len({layout.name(step, rank, 64) for step in (1, 2) for rank in range(64)}) == 128


@given(
    nodes=st.integers(1, 5000),
    size=st.integers(1, 100 * TB),
    copies=st.integers(1, 1000),
    partitions=st.integers(1, 1000),
)
def test_the_model_is_monotonic(nodes, size, copies, partitions):
    job = model.Job(nodes=nodes, partitions=partitions)
    more = model.Job(nodes=nodes, partitions=partitions + 1)
    one, each = model.load(job, size), model.load(job, size, copies=copies)
    once = model.load_once(job, size, copies=copies)
    assert each.requests >= once.requests == one.requests
    assert each.nbytes == copies * size
    assert each.seconds >= one.seconds
    assert model.load(more, size).seconds <= one.seconds
    assert one.requests * job.part_size >= size
    assert one.bounds[one.bound] == one.seconds
    saved = model.save(job, size)
    assert saved.nbytes == size
    assert saved.requests <= 3 * job.ranks + size // job.part_size + 2


@given(st.integers(0, 5 * 2**40), st.sampled_from([5 * MIB, 8 * MIB, 64 * MIB]))
def test_parts_of_the_model_hold_the_object(size, base):
    parts = model.upload_parts(size, base)
    assert parts <= 10_000
    assert parts >= size / (5 * 2**30)
    assert parts <= max(1, -(-size // base))


def test_tensors_of_half_a_part_are_asked_for_one_by_one():
    # As 16 ranks that loaded 256 MiB in 4 tensors each were seen to do.
    job = model.Job(nodes=1, node=model.Node(gpus=16))
    assert model.load(job, 256 * MIB, tensors=4).requests == 80
    assert model.load_parts(64 * MIB, 64, 8 * MIB) < 10
    assert model.load_parts(64 * MIB, 1, 8 * MIB) == 8


def test_processes_of_a_node_share_connections_and_memory():
    few, many = model.Job(workers=0), model.Job(workers=16)
    assert model.memory_limit(few) >= model.memory_limit(many, in_worker=True)
    assert model.memory_per_node(few) <= few.node.memory // 8
    # 16 workers and 8 ranks: each keeps what large objects want.
    assert model.connections_per_process(many, in_worker=True) == model.connections_per_process(few) == 25
    assert model.listing(10**8).requests == 10**5
    assert model.manifest_memory(10**8) == 82 * 10**8
    assert model.nodes_that_fill_a_prefix(few) < 4
