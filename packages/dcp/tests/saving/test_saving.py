"""What a save promises: whole or not at all, the right names, and nobody else's checkpoint harmed."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from s3torch.core import ConfigurationError, NotFoundError, PutOptions, S3Error
from s3torch.dcp import (
    CheckpointError,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
    StorageMetadata,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

STATE = {f"t{n}": torch.full((50, n + 1), n) for n in range(12)}
# With this prefix the keys of the files 0 to 9 have 1,024 bytes, the longest that S3 takes.
LONG = "/".join(["x" * 200] * 6)[: 1024 - len("checkpoint/") - len("0-0123456789abcdef.distcp")]


def refuse_two_files(rank):
    """Names files so that S3 refuses those from number 10 on."""
    return LONG


def failure_of(caught):
    """The error of rank 0."""
    return caught.value.failures[0][0]


@pytest.mark.promise(7)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_file_that_cannot_be_written_fails_the_save(place, threads):
    writer = place.writer(prefix_strategy=refuse_two_files, thread_count=threads, single_file_per_rank=False)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(STATE, storage_writer=writer)
    assert isinstance(failure_of(caught), S3Error)
    assert failure_of(caught).code == "KeyTooLongError"
    assert not any(key.endswith(".metadata") for key in place.listed())
    writer.prefix_strategy = DefaultPrefixStrategy()
    dcp.save(STATE, storage_writer=writer)
    dcp.load({name: torch.zeros_like(value) for name, value in STATE.items()}, storage_reader=place.reader())


class Breaking(DefaultSavePlanner):
    """Fails when it is asked for one of the tensors."""

    def resolve_data(self, write_item):
        if write_item.index.fqn == "t5":
            raise ArithmeticError("t5 cannot be computed")
        return super().resolve_data(write_item)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_of_the_planner_fails_the_save_and_leaves_nothing_partial(place, threads):
    writer = place.writer(thread_count=threads)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(STATE, storage_writer=writer, planner=Breaking())
    assert isinstance(failure_of(caught), ArithmeticError)
    assert "checkpoint/.metadata" not in place.listed()
    assert len(place.listed()) < threads


@pytest.mark.promise(1)
def test_the_old_checkpoint_stays_when_a_save_fails(place):
    dcp.save({"a": torch.ones(3)}, storage_writer=place.writer())
    before = {key: place.get(key) for key in place.listed()}
    with pytest.raises(CheckpointException), pytest.warns(UserWarning, match="existing checkpoint"):
        dcp.save(STATE, storage_writer=place.writer(), planner=Breaking())
    assert {key: place.get(key) for key in place.listed()} == before


def test_a_missing_bucket(place):
    with pytest.raises(CheckpointException) as caught:
        dcp.save(STATE, storage_writer=place.writer(), checkpoint_id="s3://missing/checkpoint")
    assert isinstance(failure_of(caught), NotFoundError)


def test_nothing_is_committed_when_results_are_missing(place):
    class Forgetful(S3StorageWriter):
        def write_data(self, plan, planner):
            done = super().write_data(plan, planner)
            done.value().pop()
            return done

    writer = Forgetful("us-east-1", place.uri("checkpoint"), place.config)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(STATE, storage_writer=writer)
    assert isinstance(failure_of(caught), CheckpointError)
    assert "1 entries of the checkpoint were not written" in str(failure_of(caught))
    assert place.plain() == ["checkpoint/__0_0.distcp"]


def test_overwrite_warns(place):
    dcp.save({"a": torch.ones(3)}, storage_writer=place.writer())
    with pytest.warns(UserWarning, match="Detected an existing checkpoint in s3://bucket/"):
        dcp.save({"a": torch.full((3,), 2.0)}, storage_writer=place.writer())
    loaded = {"a": torch.zeros(3)}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["a"], torch.full((3,), 2.0))


def test_overwrite_can_be_forbidden(place):
    writer = place.writer(overwrite=False)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    before = {key: place.get(key) for key in place.listed()}
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.zeros(3)}, storage_writer=writer)
    assert isinstance(failure_of(caught), RuntimeError)
    assert str(failure_of(caught)) == "Checkpoint already exists and self.overwrite=False."
    assert {key: place.get(key) for key in place.listed()} == before


def test_of_two_jobs_that_race_one_is_refused(place):
    class Slow(DefaultSavePlanner):
        def resolve_data(self, write_item):
            place.put("checkpoint/.metadata", b"of the other job")
            return super().resolve_data(write_item)

    with pytest.raises(CheckpointException) as caught:
        dcp.save({"a": torch.ones(3)}, storage_writer=place.writer(overwrite=False), planner=Slow())
    assert str(failure_of(caught)) == "Checkpoint already exists and self.overwrite=False."
    assert place.get("checkpoint/.metadata") == b"of the other job"


def test_a_commit_whose_answer_was_lost_is_no_error(place):
    class Twice(S3StorageWriter):
        def finish(self, metadata, results):
            super().finish(metadata, results)
            super().finish(metadata, results)

    writer = Twice("us-east-1", place.uri("checkpoint"), place.config, overwrite=False)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)


def test_cached_plans_get_the_prefix_of_their_save(place):
    writer = place.writer()
    for epoch in range(3):
        writer.prefix_strategy = HexPrefixStrategy(epoch_num=epoch, min_prefix_length=1)
        dcp.save(
            {"a": torch.full((5,), epoch)},
            checkpoint_id=place.uri(str(epoch)),
            storage_writer=writer,
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )
        assert place.plain(f"{epoch}/") == [f"{epoch}/.metadata", f"{epoch}/0/epoch_{epoch}/__0_0.distcp"]
    for epoch in range(3):
        loaded = {"a": torch.zeros(5, dtype=torch.int64)}
        dcp.load(loaded, storage_reader=place.reader(str(epoch)))
        assert torch.equal(loaded["a"], torch.full((5,), epoch))


def test_without_collectives(place):
    writer = place.writer(prefix_strategy=HexPrefixStrategy())
    dcp.save({"a": torch.ones(5)}, storage_writer=writer, use_collectives=False)
    assert place.plain() == ["checkpoint/0000000000/__0_0.distcp", "checkpoint/__0.metadata"]
    loaded = {"a": torch.zeros(5)}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["a"], torch.ones(5))
    with pytest.warns(UserWarning, match="existing checkpoint"):
        dcp.save({"a": torch.ones(5)}, storage_writer=writer, use_collectives=False)
    writer = place.writer(overwrite=False)
    with pytest.raises(RuntimeError, match="Checkpoint already exists"):
        dcp.save({"a": torch.ones(5)}, storage_writer=writer, use_collectives=False)


def test_each_rank_is_asked_for_its_own_prefix(place):
    plans = [SavePlan([]) for _ in range(3)]
    writer = place.writer(prefix_strategy=HexPrefixStrategy(prefix_count=3, min_prefix_length=1))
    writer.set_up_storage_writer(True, rank=0, use_collectives=True)
    prefixes = [plan.storage_data for plan in writer.prepare_global_plan(plans)]
    assert prefixes == [StorageMetadata(f"{rank}/__{rank}_") for rank in range(3)]
    writer.set_up_storage_writer(True, rank=2, use_collectives=False)
    (plan,) = writer.prepare_global_plan(plans[:1])
    assert plan.storage_data == StorageMetadata("2/__2_")


def test_ranks_must_not_share_a_prefix(place):
    writer = place.writer(prefix_strategy=lambda rank: f"{rank // 2}_")
    with pytest.raises(ConfigurationError, match="several ranks the same prefix"):
        writer.prepare_global_plan([SavePlan([]), SavePlan([])])


def test_a_prefix_is_a_string(place):
    writer = place.writer(prefix_strategy=lambda rank: rank)
    with pytest.raises(ConfigurationError, match="must return a string, got 0"):
        writer.prepare_global_plan([SavePlan([])])


def test_a_custom_prefix_is_used_verbatim(place):
    writer = place.writer(prefix_strategy=lambda rank: f"custom_a/{rank}/")
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    assert place.plain() == ["checkpoint/.metadata", "checkpoint/custom_a/0/0.distcp"]


def test_a_strategy_can_be_named(place):
    dcp.save({"a": torch.ones(3)}, storage_writer=place.writer(prefix_strategy="binary"))
    assert place.plain() == ["checkpoint/.metadata", "checkpoint/0000000000/__0_0.distcp"]
    with pytest.raises(ConfigurationError, match="prefix strategy"):
        place.writer(prefix_strategy="octal")


def test_more_threads_than_tensors(place):
    writer = place.writer(thread_count=4)
    dcp.save({name: STATE[name] for name in ("t1", "t2", "t3")}, storage_writer=writer)
    names = [f"checkpoint/__0_{n}.distcp" for n in range(3)]
    assert place.plain() == ["checkpoint/.metadata", *names]


def test_options_hold_for_all_objects(place):
    writer = place.writer(put_options=PutOptions(metadata={"run": "7"}), overwrite=False)
    dcp.save({"a": torch.ones(3)}, storage_writer=writer)
    for key in place.listed():
        assert place.client().head_object(place.bucket, key).metadata == {"run": "7"}


def test_async_save(place):
    writer = place.writer(thread_count=2)
    state = {"a": torch.ones(5), "b": torch.ones(6)}
    saving = dcp.async_save(state, storage_writer=writer)
    state["a"] += 1
    saving.result()
    loaded = {"a": torch.zeros(5), "b": torch.zeros(6)}
    dcp.load(loaded, storage_reader=place.reader())
    assert torch.equal(loaded["a"], torch.ones(5))
    pickle.dumps(writer)


def test_async_save_with_a_stager(place):
    # Without a GPU nothing can be pinned, and staging is done at once.
    stager = DefaultStager(StagingOptions(False, False, False, False))
    writer = place.writer()
    for number in (1.0, 2.0):
        state = {"a": torch.full((5,), number)}
        uri = place.uri(str(number))
        saving = dcp.async_save(state, checkpoint_id=uri, storage_writer=writer, async_stager=stager)
        state["a"] += 1
        saving.result()
        loaded = {"a": torch.zeros(5)}
        dcp.load(loaded, storage_reader=place.reader(str(number)))
        assert torch.equal(loaded["a"], torch.full((5,), number))


def test_an_error_of_async_save_reaches_the_caller(place):
    saving = dcp.async_save(STATE, storage_writer=place.writer(), planner=Breaking())
    with pytest.raises(CheckpointException, match="t5 cannot be computed"):
        saving.result()


def test_signatures():
    kinds = inspect.Parameter
    for make, names in [
        (S3StorageWriter, ["region", "path", "s3client_config", "prefix_strategy", "thread_count"]),
        (S3StorageReader, ["region", "path", "s3client_config", "reader_constructor"]),
    ]:
        parameters = inspect.signature(make).parameters.values()
        positional = [p.name for p in parameters if p.kind is kinds.POSITIONAL_OR_KEYWORD]
        assert positional == names
    assert inspect.signature(S3StorageWriter).parameters["thread_count"].default == 1


@pytest.mark.parametrize("make", [S3StorageReader, S3StorageWriter])
def test_arguments_are_checked_when_the_object_is_built(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        make("us-east-1", "s3://bucket/a", no_such=1)
    for path, text in [
        ("/data/a", "Only s3:// URIs are supported"),
        ("s3:///a", "Bucket name must be non-empty"),
        (Path("/data/a"), "Only s3:// URIs are supported"),
    ]:
        with pytest.raises(ValueError, match=text):
            make("us-east-1", path)
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match="thread_count must be at least 1"):
            make("us-east-1", "s3://bucket/a", thread_count=count)
    storage = make("us-east-1", Path("s3://bucket/a"), endpoint="http://127.0.0.1:9")
    assert (storage.path, storage.checkpoint_id) == ("s3://bucket/a", "s3://bucket/a")
    with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
        storage.reset("file:///a")


def test_what_torch_takes_is_taken():
    writer = S3StorageWriter(
        "us-east-1",
        "s3://bucket/a",
        None,
        HexPrefixStrategy(),
        3,
        single_file_per_rank=False,
        sync_files=True,
        per_thread_copy_ahead=5,
        cache_staged_state_dict=True,
        overwrite=False,
        _extensions=[],
        serialization_format=SerializationFormat.TORCH_SAVE,
    )
    assert isinstance(writer, dcp.FileSystemWriter)
    assert (writer.thread_count, writer.single_file_per_rank, writer.overwrite) == (3, False, False)
    assert (writer.per_thread_copy_ahead, writer.sync_files) == (5, False)


@pytest.mark.parametrize("make", [S3StorageReader, S3StorageWriter])
def test_checkpoint_ids(make):
    for good in ("s3://bucket", "s3://bucket/a/b", Path("s3://bucket/a")):
        assert make.validate_checkpoint_id(good)
    for bad in ("/data/a", "gs://bucket/a", "s3://", "", None, 7):
        assert not make.validate_checkpoint_id(bad)
