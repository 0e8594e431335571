"""Which rank reads what for others, without any server."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from s3torch.core.ranges import KIB, MIB
from s3torch.dcp.loading import _replicas
from s3torch.dcp.loading._replicas import Wants, plan_shares

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6)


def wants(rank, files, group="0"):
    packed = {
        path: array("Q", [at for span in spans for at in span]).tobytes() for path, spans in files.items()
    }
    return Wants(rank, group, packed, ())


def shares_of(*found):
    return plan_shares(found, {}, tag=1)


@given(st.lists(st.dictionaries(st.sampled_from("ab"), SPANS, max_size=2), min_size=1, max_size=5))
def test_each_byte_that_several_want_has_one_owner(files):
    unit = 300 * KIB
    found = [
        {path: [(at * unit, (at + size) * unit) for at, size in spans] for path, spans in one.items()}
        for one in files
    ]
    shares = shares_of(*(wants(rank, one) for rank, one in enumerate(found)))
    wanted = defaultdict(set)
    for rank, one in enumerate(found):
        for path, spans in one.items():
            for start, stop in spans:
                for at in range(start, stop, unit):
                    wanted[path, at].add(rank)
    owners, sent, received = defaultdict(set), Counter(), Counter()
    for rank, share in shares.items():
        assert rank in share.peers
        for one in share.slices:
            assert one.turn < share.turns
            assert rank in {one.owner, *one.others} <= set(share.peers)
            for at in range(one.start // unit * unit, one.stop, unit):
                assert wanted[one.path, at] == {one.owner, *one.others}
                owners[one.path, at].add(one.owner)
            (sent if rank == one.owner else received)[rank, one.turn] += one.size
        assert list(share.slices) == sorted(share.slices, key=lambda one: (one.turn, one.path, one.start))
    assert {place for place, ranks in wanted.items() if len(ranks) > 1} == set(owners)
    assert max(sent.values(), default=0) <= 8 * MIB
    assert max(received.values(), default=0) <= 64 * MIB
    for rank, share in shares.items():
        mine = sum(one.size for one in share.slices)
        assert mine == sum((stop - start) for start, stop in _union(found[rank], wanted, unit))


def _union(files, wanted, unit):
    """The spans of a rank that others want, too, each unit once."""
    places = {(path, at) for path, spans in files.items() for span in spans for at in range(*span, unit)}
    return [(at, at + unit) for path, at in places if len(wanted[path, at]) > 1]


def test_ranks_read_evenly():
    everything = {"a": [(0, 100 * MIB)], "b": [(n * 9000, n * 9000 + 8000) for n in range(2000)]}
    shares = shares_of(*(wants(rank, everything) for rank in range(8)))
    own = [sum(one.size for one in share.slices if one.owner == rank) for rank, share in shares.items()]
    assert sum(own) == 100 * MIB + 2000 * 8000
    assert max(own) - min(own) <= MIB
    # Neighbours have one owner, so that they take one request.
    changes = sorted((one.start, one.owner) for one in shares[0].slices if one.path == "b")
    assert sum(one[1] != other[1] for one, other in pairwise(changes)) < 40


def test_a_rank_that_reads_much_for_itself_reads_less_for_others():
    common = {"a": [(0, 32 * MIB)]}
    shares = shares_of(wants(0, common | {"mine": [(0, 32 * MIB)]}), wants(1, common))
    assert {one.owner for one in shares[0].slices} == {1}


def test_groups_and_strangers_share_nothing():
    common = {"a": [(0, MIB)]}
    shares = shares_of(
        wants(0, common, "x"),
        wants(1, common, "x"),
        wants(2, common, "y"),
        wants(3, {"a": [(MIB, 2 * MIB)]}, "x"),
    )
    assert shares.keys() == {0, 1}


def test_replicas_of_shards_have_nothing_to_do_with_each_other():
    halves = [{"a": [(0, 16 * MIB)]}, {"a": [(16 * MIB, 32 * MIB)]}]
    shares = shares_of(*(wants(rank, halves[rank % 2]) for rank in range(4)))
    assert [shares[rank].peers for rank in range(4)] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    # With something that all of them want, they are.
    for half in halves:
        half["norms"] = [(0, 1000)]
    shares = shares_of(*(wants(rank, halves[rank % 2]) for rank in range(4)))
    assert all(share.peers == (0, 1, 2, 3) for share in shares.values())


def test_many_ranks_receive_a_bounded_number_of_bytes():
    shares = shares_of(*(wants(rank, {"a": [(0, 256 * MIB)]}) for rank in range(100)))
    received = Counter()
    for one in shares[7].slices:
        if one.owner != 7:
            received[one.turn] += one.size
    assert max(received.values()) <= 64 * MIB
    # Requests are of the size of stripes, whatever travels in a round.
    assert len({one.piece for one in shares[7].slices}) <= 256 * MIB // _replicas._SMALLEST_STRIPE
