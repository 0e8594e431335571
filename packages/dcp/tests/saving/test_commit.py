"""Saves to a path where a checkpoint is: afterwards there is the old one or the new one, whole."""

from __future__ import annotations

import os
import pickle
import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from s3torch.core import ConflictError
from s3torch.dcp import S3StorageWriter
from s3torch.dcp.manage import latest_checkpoint
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized",
    "ignore:Detected an existing checkpoint",
    "ignore:the new checkpoint in",
)


def state_of(number):
    return {f"t{n}": torch.full((40, n + 1), float(number)) for n in range(6)} | {"step": float(number)}


def save(place, number, **options):
    dcp.save(state_of(number), storage_writer=place.writer(**options))


def loaded_number(place):
    """Which of the checkpoints is there, whole; anything else is a failure."""
    state = state_of(-1)
    dcp.load(state, storage_reader=place.reader())
    numbers = {state["step"]} | {float(n) for name in state if name != "step" for n in state[name].unique()}
    assert len(numbers) == 1, f"a mixture of checkpoints: {numbers}"
    return numbers.pop()


def named_files(place):
    metadata = pickle.loads(place.get("checkpoint/.metadata"))
    return sorted({f"checkpoint/{info.relative_path}" for info in metadata.storage_data.values()})


def assert_nothing_is_left(place):
    assert place.listed() == ["checkpoint/.metadata", *named_files(place)]


@pytest.fixture
def proxy(fault_proxy, seaweedfs):
    return fault_proxy(seaweedfs)


@pytest.fixture
def proxied(seaweed_place, proxy):
    """A bucket behind the proxy; nothing is tried twice."""
    config = replace(seaweed_place.config, endpoint=proxy.endpoint, max_attempts=1)
    return replace(seaweed_place, config=config)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 1), (1, 4)])
def test_the_files_of_the_old_checkpoint_go(place, before, after):
    save(place, 1, thread_count=before)
    save(place, 2, thread_count=after)
    assert loaded_number(place) == 2
    assert_nothing_is_left(place)
    assert len(place.listed()) == 1 + after


def test_no_file_of_a_checkpoint_is_written_over(place):
    seen = set()
    for number in range(4):
        save(place, number, thread_count=2)
        names = set(named_files(place))
        assert not names & seen
        seen |= names


@pytest.mark.promise(9)
def test_other_objects_stay(place):
    for key in ("checkpoint/notes.txt", "checkpoint/__1_0.distcp", "checkpoint-2/__0_0.distcp"):
        place.put(key, b"mine")
    save(place, 1)
    save(place, 2)
    assert len(place.listed()) == 5
    assert loaded_number(place) == 2


def test_files_of_a_save_that_was_not_completed_are_not_written_over(place):
    place.put("checkpoint/__0_0.distcp", b"of another job, that may still be going on")
    save(place, 1)
    assert loaded_number(place) == 1
    assert place.get("checkpoint/__0_0.distcp") == b"of another job, that may still be going on"


@pytest.mark.parametrize("damaged", [b"no pickle", pickle.dumps(os.getcwd)])
def test_a_damaged_checkpoint_can_be_replaced(place, damaged):
    place.put("checkpoint/.metadata", damaged)
    with pytest.warns(UserWarning, match="files of the old one are left"):
        save(place, 1)
    assert loaded_number(place) == 1


class Note:
    """Something that a planner of somebody's own writes into the metadata."""


class NotingPlanner(DefaultSavePlanner):
    def create_global_plan(self, all_plans):
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data["note"] = Note()
        return plans, metadata


def test_metadata_with_classes_of_others_can_be_replaced(place):
    for number in (1, 2):
        dcp.save(state_of(number), storage_writer=place.writer(), planner=NotingPlanner())
    with torch.serialization.safe_globals([Note]):
        assert loaded_number(place) == 2
        save(place, 3)
    assert loaded_number(place) == 3


def test_a_save_without_permission_to_delete_succeeds(proxied, proxy):
    save(proxied, 1)
    proxy.add(Fault.error(403, "AccessDenied"), method="POST")
    with pytest.warns(UserWarning, match="the new checkpoint in .* is complete, but files of the old one"):
        save(proxied, 2)
    assert loaded_number(proxied) == 2


def race(place, options, *, planners=None):
    """Two jobs that look at the path before either of them writes; returns their errors."""
    barrier = threading.Barrier(2)
    errors = {}

    class Writer(S3StorageWriter):
        def write_data(self, plan, planner):
            barrier.wait(30)
            return super().write_data(plan, planner)

        def finish(self, metadata, results):
            barrier.wait(30)
            super().finish(metadata, results)

    def run(number):
        writer = Writer("us-east-1", place.uri("checkpoint"), place.config, **options)
        try:
            dcp.save(state_of(number), storage_writer=writer)
        except CheckpointException as exc:
            errors[number] = exc.failures[0][0]

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("fresh", [True, False])
def test_of_two_jobs_that_save_to_one_path_one_remains_whole(server_place, fresh):
    if not fresh:
        save(server_place, 0, thread_count=3)
    assert race(server_place, {"thread_count": 2}) == {}
    assert loaded_number(server_place) in {1, 2}
    assert_nothing_is_left(server_place)


def test_of_two_jobs_that_do_not_overwrite_one_is_refused(server_place):
    (error,) = race(server_place, {"overwrite": False}).values()
    assert str(error) == "Checkpoint already exists and self.overwrite=False."
    assert loaded_number(server_place) in {1, 2}


def test_a_store_without_conditions_can_be_saved_to(proxied, proxy):
    def is_conditional(request):
        return request.method == "PUT" and bool({"if-match", "if-none-match"} & request.headers.keys())

    proxy.add(Fault.error(501, "NotImplemented"), match=is_conditional)
    for number in (1, 2):
        with pytest.warns(UserWarning, match="refuses conditional PUTs"):
            save(proxied, number)
        assert loaded_number(proxied) == number
        assert_nothing_is_left(proxied)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        save(proxied, 3, overwrite=False)
    proxied.client().delete_object(proxied.bucket, "checkpoint/.metadata")
    with pytest.warns(UserWarning, match="refuses conditional PUTs"):
        save(proxied, 4, overwrite=False)
    assert loaded_number(proxied) == 4


def test_a_store_that_does_not_understand_conditions_can_be_saved_to(proxied, proxy):
    save(proxied, 1)
    proxy.add(Fault.error(412, "PreconditionFailed"), match=lambda r: "if-match" in r.headers)
    with pytest.warns(UserWarning, match="does not understand conditional PUTs"):
        save(proxied, 2)
    assert loaded_number(proxied) == 2


def test_cached_plans_do_not_write_over_files(place):
    for number in range(3):
        dcp.save(
            state_of(number),
            storage_writer=place.writer(),
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )
        assert loaded_number(place) == number
        assert_nothing_is_left(place)


@pytest.fixture
def ignoring(seaweed_place, proxied, proxy):
    """A bucket whose store takes create-only PUTs for plain ones."""

    def make_room(request):
        if request.method in {"PUT", "POST"} and "if-none-match" in request.headers:
            seaweed_place.client().delete_object(seaweed_place.bucket, request.key)
        return False

    proxy.add(Fault(), match=make_room)
    return proxied


@pytest.mark.promise(1)
def test_two_jobs_on_a_store_that_ignores_conditions(ignoring):
    assert race(ignoring, {"thread_count": 2}) == {}
    assert loaded_number(ignoring) in {1, 2}


def test_a_store_that_ignores_conditions_is_told_of_once(ignoring, recwarn):
    with pytest.warns(UserWarning, match="ignores conditional PUTs"):
        save(ignoring, 1, overwrite=False)
    recwarn.clear()
    writer = ignoring.writer("other", overwrite=False)
    dcp.save(state_of(2), storage_writer=writer)
    assert not [one for one in recwarn if "conditional" in str(one.message)]
    assert loaded_number(ignoring) == 1


HOSTILE = [
    "../other/__0_0.distcp",
    "/checkpoint/__0_0.distcp",
    ".metadata",
    "nested/.metadata",
    "nested/__0_0.distcp",
    "notes.txt",
    "adapter_model.safetensors",
    "a//__0_0.distcp",
]


@pytest.mark.promise(9)
@pytest.mark.parametrize("prefix", ["__0_0.distcp", "hex/__0_0.distcp"])
def test_of_replaced_metadata_only_names_of_ours_count(place, prefix):
    """Whatever it says, no other checkpoint, no commit and no file of others goes."""
    dcp.save(state_of(7), storage_writer=place.writer("checkpoint/nested"))
    nested = [key.removeprefix("checkpoint/") for key in place.listed("checkpoint/nested/")]
    names = [prefix, *HOSTILE, *nested]
    entries = {MetadataIndex(str(n)): _StorageInfo(name, 0, 1) for n, name in enumerate(names)}
    place.put("checkpoint/.metadata", pickle.dumps(Metadata({}, storage_data=entries)))
    for key in ("other/__0_0.distcp", f"checkpoint/{prefix}", "checkpoint/a//__0_0.distcp"):
        place.put(key, b"x")
    for name in ("notes.txt", "adapter_model.safetensors"):
        place.put(f"checkpoint/{name}", b"mine")
    before = set(place.listed())
    save(place, 1)
    assert before - set(place.listed()) == {f"checkpoint/{prefix}"}
    assert loaded_number(place) == 1
    place.client().delete_object(place.bucket, "checkpoint/.metadata")
    assert latest_checkpoint(place.uri(), client=place.client()).name == "checkpoint/nested"
    state = state_of(-1)
    dcp.load(state, storage_reader=place.reader("checkpoint/nested"))
    assert state["step"] == 7


def test_a_commit_that_is_repeated_keeps_its_files(place):
    class Twice(S3StorageWriter):
        def finish(self, metadata, results):
            super().finish(metadata, results)
            super().finish(metadata, results)

    dcp.save(state_of(1), storage_writer=Twice("us-east-1", place.uri("checkpoint"), place.config))
    assert loaded_number(place) == 1


def test_a_conflict_that_stays_is_no_existing_checkpoint(proxied, proxy):
    proxy.add(Fault.error(409, "ConditionalRequestConflict"), method="PUT", key=".metadata")
    with pytest.raises(CheckpointException) as caught:
        save(proxied, 1, overwrite=False)
    assert isinstance(caught.value.failures[0][0], ConflictError)
