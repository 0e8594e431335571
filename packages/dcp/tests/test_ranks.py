"""Jobs of two processes, with torch's own collectives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch.dcp.manage import delete_checkpoint, verify_checkpoint

PROGRAM = Path(__file__).with_name("rank_program.py")
RANKS = 2

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.fixture(scope="module")
def ranks(seaweedfs, tmp_path_factory):
    """The processes of a job, which wait for tasks."""
    folder = tmp_path_factory.mktemp("job")
    job = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), str(RANKS), str(folder)],
            env=dict(os.environ) | seaweedfs.environment() | job,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    yield processes
    for process in processes:
        process.stdin.close()
    for process in processes:
        process.stdout.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def run(ranks, seaweed_place):
    """Runs a task on all ranks."""

    def run(task):
        for process in ranks:
            process.stdin.write(f"{task} {seaweed_place.bucket}\n")
            process.stdin.flush()
        for process in ranks:
            line = process.stdout.readline()
            assert line, "a rank has ended"
            assert (error := json.loads(line)["error"]) is None, error

    return run


def whole_state(factor):
    return {
        "model": {
            "sharded": torch.arange(33).double().reshape(11, 3) * factor,
            "same": torch.ones(7) * factor,
        },
        "objects": {"step": 17 * factor},
    }


def test_save_with_two_ranks_and_load_with_two_and_with_one(run, seaweed_place, are_same):
    run("save")
    folders = {key.rpartition("_")[0] for key in seaweed_place.listed()}
    assert folders == {"", "hex/0000000000/__0", "hex/1000000000/__1", "plain/__0", "plain/__1"}
    run("load")
    for path in ("plain", "hex"):
        loaded = whole_state(0)
        dcp.load(loaded, storage_reader=seaweed_place.reader(path))
        assert are_same(loaded, whole_state(1))


def test_save_with_one_rank_and_load_with_two(run, seaweed_place):
    for path, threads in (("plain", 1), ("hex", 3)):
        writer = seaweed_place.writer(path, thread_count=threads)
        dcp.save(whole_state(1), storage_writer=writer)
    run("load")


def test_plans_that_torch_keeps(run, seaweed_place):
    run("cached")
    folders = {key.rpartition("/")[0] for key in seaweed_place.listed() if key.endswith(".distcp")}
    assert folders == {f"cached-{n}/{rank}/epoch_{2 * n + 1}" for n in range(2) for rank in range(2)}


def test_each_rank_for_itself(run, seaweed_place):
    run("alone")
    assert seaweed_place.plain() == [
        "alone/__0.metadata",
        "alone/__0_0.distcp",
        "alone/__1.metadata",
        "alone/__1_0.distcp",
    ]


def test_one_rank_reads_the_metadata_for_all(run):
    run("together")


def test_what_fails_where_one_rank_reads_fails_on_all(run):
    run("broken")


def test_ranks_that_consolidate_together(run, seaweed_place):
    run("consolidate")
    files = [key for key in seaweed_place.listed("whole/") if key.endswith(".safetensors")]
    # The id of each rank is in the names.
    assert len(files) == 5
    assert len({key.removesuffix(".safetensors")[-16:] for key in files}) == 2


@pytest.mark.promise(7)
def test_a_failure_of_one_rank_fails_all(run, seaweed_place):
    run("failing")
    assert "failing/.metadata" not in seaweed_place.listed()


def test_what_several_ranks_reuse(run, seaweed_place):
    run("reusing")
    for step in (1, 2, 3):
        delete_checkpoint(seaweed_place.uri(f"reuse/{step}"), client=seaweed_place.client())
    assert verify_checkpoint(
        seaweed_place.uri("reuse/4"), depth="bytes", client=seaweed_place.client()
    ).is_whole


def test_saves_from_another_process(run):
    run("asynchronous")


def test_a_failure_in_another_process_reaches_all(run, seaweed_place):
    run("asynchronous_failing")
    assert "failing/.metadata" not in seaweed_place.listed()


@pytest.mark.timeout(120)
def test_saves_that_go_on_while_training_does(run):
    run("background")


@pytest.mark.promise(7)
def test_ranks_skip_and_fail_together(run):
    run("skipping")
