"""What a process takes of its node."""

from __future__ import annotations

import os
import sys
import types

import pytest

from s3torch.core._resources import available_memory, processes_on_node, throughput_share

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "5:cpu:/x\n4:memory:/job/step\n0::/\n"
V2 = "0::/user.slice/job.scope\n"


@pytest.fixture
def node(tmp_path):
    def make(groups, **limits):
        proc = tmp_path / "proc/self/cgroup"
        proc.parent.mkdir(parents=True)
        proc.write_text(groups)
        for name, text in limits.items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (V2, {}, MACHINE),
        (V2, {"user.slice/job.scope/memory.max": 5000}, 5000),
        (V2, {"user.slice/job.scope/memory.max": "max", "user.slice/memory.max": 7000}, 7000),
        (V2, {"user.slice/job.scope/memory.max": 9000, "user.slice/memory.max": 7000}, 7000),
        (V2, {"user.slice/job.scope/memory.high": 400, "user.slice/memory.max": 7000}, 400),
        # A container shows the path of the host, but has mounted only its own group.
        (V2, {"memory.max": 3000}, 3000),
        (V2, {"unified/user.slice/memory.max": 2000}, 2000),
        (V1, {"memory/job/step/memory.limit_in_bytes": 8000, "memory/job/memory.limit_in_bytes": 6000}, 6000),
        (V1, {"memory/memory.limit_in_bytes": 6000}, 6000),
        # What v1 shows where there is no limit.
        (V1, {"memory/job/step/memory.limit_in_bytes": 9223372036854771712}, MACHINE),
        (V1, {"memory.max": 3000}, 3000),
        ("", {"memory.max": 3000}, MACHINE),
    ],
)
def test_the_lowest_limit_of_the_control_groups(node, groups, limits, expected):
    assert available_memory(node(groups, **limits)) == expected


def test_without_control_groups_there_is_the_machine(tmp_path):
    assert available_memory(tmp_path) == MACHINE
    assert 0 < available_memory() <= MACHINE


@pytest.fixture
def worker(monkeypatch):
    """Makes this process look like a DataLoader worker to who asks torch."""

    def make(workers):
        data = types.ModuleType("torch.utils.data")
        info = None if workers is None else types.SimpleNamespace(num_workers=workers)
        data.get_worker_info = lambda: info
        monkeypatch.setitem(sys.modules, "torch.utils.data", data)

    return make


@pytest.mark.parametrize(
    ("ranks", "workers", "expected"),
    [
        (None, None, 1),
        ("", None, 1),
        ("many", None, 1),
        ("0", None, 1),
        ("8", None, 8),
        ("8", 3, 32),
        (None, 1, 2),
    ],
)
def test_ranks_and_workers_share(monkeypatch, worker, ranks, workers, expected):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    worker(workers)
    assert processes_on_node() == expected
    monkeypatch.setitem(
        sys.modules, "awscrt.s3", types.SimpleNamespace(get_recommended_throughput_target_gbps=lambda: None)
    )
    assert throughput_share(0) == max(1, 10 / expected)
    monkeypatch.setitem(
        sys.modules, "awscrt.s3", types.SimpleNamespace(get_recommended_throughput_target_gbps=lambda: 100.0)
    )
    assert throughput_share(0) == 100 / expected
    assert throughput_share(25.0) == 25.0


@pytest.mark.promise(3)
def test_a_real_worker_takes_its_share(python):
    pytest.importorskip("torch")
    python(
        """
        import torch.utils.data as data
        from s3torch.core._resources import processes_on_node

        class Tell(data.Dataset):
            def __len__(self): return 4
            def __getitem__(self, index): return processes_on_node()

        if __name__ == "__main__":
            assert processes_on_node() == 2
            assert {int(n) for n in data.DataLoader(Tell(), num_workers=2, batch_size=None)} == {6}
        """,
        environment={"LOCAL_WORLD_SIZE": "2"},
    )
