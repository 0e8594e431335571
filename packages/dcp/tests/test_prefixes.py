"""Prefix strategies: the names that users find in their buckets."""

from __future__ import annotations

import pickle

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from s3torch.core.plugins import prefix_strategy
from s3torch.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)


@pytest.fixture
def join_world():
    """Becomes rank 0 of a world without other processes."""

    def join(size):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)

    yield join
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("strategy", "outputs"),
    [
        (DefaultPrefixStrategy(), {0: "__0_", 17: "__17_"}),
        (
            BinaryPrefixStrategy(prefix_count=5, min_prefix_length=1),
            {
                0: "000/__0_",
                1: "100/__1_",
                2: "010/__2_",
                3: "110/__3_",
                4: "001/__4_",
                5: "000/__5_",
                6: "100/__6_",
            },
        ),
        (
            HexPrefixStrategy(prefix_count=17, min_prefix_length=1),
            {0: "00/__0_", 1: "10/__1_", 15: "f0/__15_", 16: "01/__16_", 17: "00/__17_"},
        ),
        (
            HexPrefixStrategy(prefix_count=300),
            {
                10: "a000000000/__10_",
                16: "0100000000/__16_",
                100: "4600000000/__100_",
                255: "ff00000000/__255_",
                256: "0010000000/__256_",
                299: "b210000000/__299_",
                300: "0000000000/__300_",
            },
        ),
        (
            HexPrefixStrategy(epoch_num=5, min_prefix_length=4, prefix_count=16),
            {10: "a000/epoch_5/__10_"},
        ),
        (HexPrefixStrategy(0, 1, 1), {0: "0/epoch_0/__0_"}),
        (HexPrefixStrategy(), {7: "0000000000/__7_"}),
        (RoundRobinPrefixStrategy(["shard1", "shard2"], epoch_num=5), {3: "shard2/epoch_5/__3_"}),
        (RoundRobinPrefixStrategy(["shard1", "shard2"], 0), {2: "shard1/epoch_0/__2_"}),
        (RoundRobinPrefixStrategy(["a/", "/b/c/"]), {0: "a/__0_", 1: "b/c/__1_"}),
    ],
)
def test_outputs(strategy, outputs):
    assert {rank: strategy(rank) for rank in outputs} == outputs
    assert {rank: strategy.generate_prefix(rank) for rank in outputs} == outputs
    copy = pickle.loads(pickle.dumps(strategy))
    assert {rank: copy(rank) for rank in outputs} == outputs


def test_the_count_is_the_size_of_the_world(join_world):
    join_world(4)
    strategy = BinaryPrefixStrategy()
    assert [strategy(rank) for rank in range(4)] == [
        "0000000000/__0_",
        "1000000000/__1_",
        "0100000000/__2_",
        "1100000000/__3_",
    ]
    assert strategy.prefix_count == 4


def test_a_world_that_is_known_late_counts(join_world):
    strategy = HexPrefixStrategy(min_prefix_length=2)
    assert strategy(3) == "00/__3_"
    assert strategy.prefix_count == 1
    join_world(8)
    assert strategy(3) == "30/__3_"
    assert strategy.prefix_map == [f"{n}0" for n in range(8)]


def test_the_world_of_the_construction_stays(join_world):
    join_world(4)
    strategy = HexPrefixStrategy(min_prefix_length=1)
    dist.destroy_process_group()
    assert strategy(3) == "3/__3_"


def test_attributes():
    strategy = HexPrefixStrategy(epoch_num=2, min_prefix_length=1, prefix_count=3)
    assert (strategy.base, strategy.epoch_num, strategy.min_prefix_len) == (16, 2, 1)
    assert (strategy.prefix_count, strategy.prefix_map) == (3, ["0", "1", "2"])


@pytest.mark.parametrize("make", [BinaryPrefixStrategy, HexPrefixStrategy])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"min_prefix_length": 0}, "Minimum prefix length must be positive, got 0"),
        ({"min_prefix_length": True}, "Minimum prefix length must be positive, got True"),
        ({"min_prefix_len": -3}, "Minimum prefix length must be positive, got -3"),
        ({"epoch_num": "1"}, "Epoch number must be None or an integer, got 1"),
        ({"epoch_num": True}, "Epoch number must be None or an integer, got True"),
        ({"prefix_count": 0}, "Prefix count must be a positive integer, got 0"),
        ({"prefix_count": 1.5}, "Prefix count must be a positive integer, got 1.5"),
        ({"prefix_count": True}, "Prefix count must be a positive integer, got True"),
    ],
)
def test_bad_arguments(make, arguments, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        make(**arguments)


def test_the_length_has_two_names_but_one_value():
    assert HexPrefixStrategy(min_prefix_len=3)(0) == "000/__0_"
    with pytest.raises(TypeError, match="not both"):
        HexPrefixStrategy(min_prefix_length=10, min_prefix_len=3)


@pytest.mark.parametrize(
    ("prefixes", "text"),
    [
        ([], "user_prefixes must not be empty"),
        (["a", "/"], "no user prefix may be empty"),
        ("shards", "must be a list of strings"),
        ([1], "must be a list of strings"),
    ],
)
def test_bad_user_prefixes(prefixes, text):
    with pytest.raises(ValueError, match=text):
        RoundRobinPrefixStrategy(prefixes)


@pytest.mark.parametrize("epoch", ["1", True, 1.0])
def test_a_bad_epoch_of_user_prefixes(epoch):
    with pytest.raises(ValueError, match=f"^Epoch number must be None or an integer, got {epoch}$"):
        RoundRobinPrefixStrategy(["a"], epoch_num=epoch)


def test_base_classes_are_abstract():
    for base, arguments in ((S3PrefixStrategyBase, ()), (NumericPrefixStrategy, (8,))):
        with pytest.raises(TypeError, match="abstract"):
            base(*arguments)


def test_users_can_count_in_their_own_way():
    class Octal(NumericPrefixStrategy):
        def __init__(self, **options):
            super().__init__(8, **options)

        def _format_number(self, number, length):
            return format(number, f"0{length}o")

    assert Octal(prefix_count=64, min_prefix_length=1)(10) == "21/__10_"


def test_strategies_are_registered_by_name():
    assert prefix_strategy("default")()(3) == "__3_"
    assert prefix_strategy("hex")(prefix_count=4, min_prefix_length=1)(3) == "3/__3_"
    assert prefix_strategy("binary")(prefix_count=4, min_prefix_length=1)(3) == "11/__3_"
    assert prefix_strategy("round_robin")(["x"])(3) == "x/__3_"


@given(
    make=st.sampled_from([BinaryPrefixStrategy, HexPrefixStrategy]),
    epoch=st.none() | st.integers(0, 99),
    length=st.integers(1, 12),
    count=st.integers(1, 300),
    ranks=st.sets(st.integers(0, 5000), min_size=2, max_size=20),
)
def test_numeric_prefixes(make, epoch, length, count, ranks):
    strategy = make(epoch, length, count)
    outputs = {rank: strategy(rank) for rank in ranks}
    assert len(set(outputs.values())) == len(ranks)
    for rank, output in outputs.items():
        number, _, rest = output.partition("/")
        assert int(number[::-1], strategy.base) == rank % count
        assert rest == f"__{rank}_" if epoch is None else f"epoch_{epoch}/__{rank}_"
        needed = next(n for n in range(1, 12) if strategy.base**n >= count)
        assert len(number) == max(length, needed)
