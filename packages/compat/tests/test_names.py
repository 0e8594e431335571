"""Every name that code written against s3torchconnector imports, with its signature."""

from __future__ import annotations

import importlib
import inspect
import logging
import subprocess
import sys
from importlib.metadata import version

import pytest

import s3torchconnector
import s3torchconnectorclient
from s3torch.core import S3Error

PREFIX_STRATEGIES = (
    "S3PrefixStrategyBase DefaultPrefixStrategy NumericPrefixStrategy BinaryPrefixStrategy "
    "HexPrefixStrategy RoundRobinPrefixStrategy"
)
NAMES = {
    "s3torchconnector": (
        "S3IterableDataset S3MapDataset S3Checkpoint S3Reader S3ReaderConstructor S3Writer S3Exception "
        "S3ClientConfig __version__"
    ),
    "s3torchconnector.dcp": f"S3FileSystem S3StorageReader S3StorageWriter {PREFIX_STRATEGIES}",
    "s3torchconnector.dcp.s3_prefix_strategy": PREFIX_STRATEGIES,
    "s3torchconnector.dcp.s3_file_system": "S3FileSystem S3StorageWriter S3StorageReader StorageMetadata",
    "s3torchconnector.lightning": "S3LightningCheckpoint",
    "s3torchconnector.lightning.s3_lightning_checkpoint": "S3LightningCheckpoint",
    "s3torchconnector._s3client": "S3Client S3ClientConfig MockS3Client",
    "s3torchconnector._s3client.s3client_config": "S3ClientConfig",
    "s3torchconnector.s3reader": (
        "S3Reader S3ReaderConstructor SequentialS3Reader RangedS3Reader DCPOptimizedS3Reader "
        "DCPOptimizedConstructor ItemRange RangeGroup GetStreamCallable S3ReaderConstructorProtocol "
        "DCPS3ReaderConstructorProtocol"
    ),
    "s3torchconnector.s3reader.s3reader": "S3Reader",
    "s3torchconnector.s3reader.sequential": "SequentialS3Reader",
    "s3torchconnector.s3reader.ranged": "RangedS3Reader",
    "s3torchconnector.s3reader.dcp_optimized": "DCPOptimizedS3Reader ItemRange RangeGroup",
    "s3torchconnector.s3reader.constructor": "S3ReaderConstructor DCPOptimizedConstructor",
    "s3torchconnector.s3reader.protocol": (
        "GetStreamCallable S3ReaderConstructorProtocol DCPS3ReaderConstructorProtocol"
    ),
    "s3torchconnectorclient": "S3Exception LOG_TRACE __version__",
    "s3torchconnectorclient._mountpoint_s3_client": "S3Exception __version__",
    "s3torchconnector.s3checkpoint": "S3Checkpoint",
    "s3torchconnector.s3map_dataset": "S3MapDataset",
    "s3torchconnector.s3iterable_dataset": "S3IterableDataset",
    "s3torchconnector.s3writer": "S3Writer",
    "s3torchconnector._s3dataset_common": (
        "parse_s3_uri identity get_objects_from_uris get_objects_from_prefix"
    ),
    "s3torchconnector._s3bucket_key_data": "S3BucketKeyData",
    "s3torchconnector._user_agent": "UserAgent",
}

# Parameters up to a "*" may be given by position; what follows a "!" has to be given.
SIGNATURES = {
    "s3torchconnector:S3Checkpoint": "!region endpoint s3client_config",
    "s3torchconnector:S3Checkpoint.reader": "!s3_uri",
    "s3torchconnector:S3Checkpoint.writer": "!s3_uri",
    "s3torchconnector:S3ClientConfig": (
        "throughput_target_gbps part_size unsigned force_path_style max_attempts profile requester_pays"
    ),
    "s3torchconnector:S3MapDataset": (
        "!region !get_dataset_objects endpoint transform s3client_config reader_constructor"
    ),
    "s3torchconnector:S3MapDataset.from_prefix": (
        "!s3_uri * !region endpoint transform s3client_config reader_constructor"
    ),
    "s3torchconnector:S3MapDataset.from_objects": (
        "!object_uris * !region endpoint transform s3client_config reader_constructor"
    ),
    "s3torchconnector:S3IterableDataset": (
        "!region !get_dataset_objects endpoint transform s3client_config enable_sharding reader_constructor"
    ),
    "s3torchconnector:S3IterableDataset.from_prefix": (
        "!s3_uri * !region endpoint transform s3client_config enable_sharding reader_constructor"
    ),
    "s3torchconnector:S3IterableDataset.from_objects": (
        "!object_uris * !region endpoint transform s3client_config enable_sharding reader_constructor"
    ),
    "s3torchconnector:S3Writer": "!stream",
    "s3torchconnector:S3ReaderConstructor.sequential": "",
    "s3torchconnector:S3ReaderConstructor.default": "",
    "s3torchconnector:S3ReaderConstructor.range_based": "buffer_size",
    "s3torchconnector:S3ReaderConstructor.dcp_optimized": "max_gap_size",
    "s3torchconnector:S3ReaderConstructor.get_reader_type_string": "!constructor",
    "s3torchconnector.dcp:S3FileSystem": "!region s3_client s3client_config reader_constructor",
    "s3torchconnector.dcp:S3FileSystem.create_stream": "!path !mode",
    "s3torchconnector.dcp:S3FileSystem.concat_path": "!path !suffix",
    "s3torchconnector.dcp:S3FileSystem.rename": "!old_path !new_path",
    "s3torchconnector.dcp:S3StorageWriter": (
        "!region !path s3client_config prefix_strategy thread_count **kwargs"
    ),
    "s3torchconnector.dcp:S3StorageReader": "!region !path s3client_config reader_constructor",
    "s3torchconnector.dcp.s3_file_system:StorageMetadata": "!prefix",
    "s3torchconnector.dcp:NumericPrefixStrategy": "!base epoch_num min_prefix_length prefix_count",
    "s3torchconnector.dcp:BinaryPrefixStrategy": "epoch_num min_prefix_length prefix_count",
    "s3torchconnector.dcp:HexPrefixStrategy": "epoch_num min_prefix_length prefix_count",
    "s3torchconnector.dcp:RoundRobinPrefixStrategy": "!user_prefixes epoch_num",
    "s3torchconnector.lightning:S3LightningCheckpoint": "!region s3client_config endpoint",
    "s3torchconnector.lightning:S3LightningCheckpoint.save_checkpoint": "!checkpoint !path storage_options",
    "s3torchconnector.lightning:S3LightningCheckpoint.load_checkpoint": "!path map_location weights_only",
    "s3torchconnector.lightning:S3LightningCheckpoint.remove_checkpoint": "!path",
    "s3torchconnector._s3client:S3Client": "!region * endpoint user_agent s3client_config",
    "s3torchconnector._s3client:S3Client.get_object": "!bucket !key * object_info reader_constructor",
    "s3torchconnector._s3client:S3Client.put_object": "!bucket !key storage_class",
    "s3torchconnector._s3client:S3Client.list_objects": "!bucket prefix delimiter max_keys",
    "s3torchconnector._s3client:S3Client.head_object": "!bucket !key",
    "s3torchconnector._s3client:S3Client.delete_object": "!bucket !key",
    "s3torchconnector._s3client:S3Client.copy_object": "!src_bucket !src_key !dst_bucket !dst_key",
    "s3torchconnector._s3client:MockS3Client": "!region !bucket user_agent s3client_config",
    "s3torchconnector._s3client:MockS3Client.add_object": "!key !data",
    "s3torchconnector._s3client:MockS3Client.remove_object": "!key",
    "s3torchconnector.s3reader:SequentialS3Reader": "!bucket !key !get_object_info !get_stream",
    "s3torchconnector.s3reader:RangedS3Reader": "!bucket !key !get_object_info !get_stream buffer_size",
    "s3torchconnector.s3reader:DCPOptimizedS3Reader": (
        "!bucket !key !item_ranges !get_object_info !get_stream max_gap_size"
    ),
    "s3torchconnector.s3reader:DCPOptimizedConstructor": "max_gap_size",
    "s3torchconnector.s3reader:ItemRange": "!start !end",
    "s3torchconnector.s3reader:RangeGroup": "!start !end !item_ranges",
    "s3torchconnector._s3dataset_common:get_objects_from_uris": "!object_uris !client",
    "s3torchconnector._s3dataset_common:get_objects_from_prefix": "!s3_uri !client",
    "s3torchconnector._s3bucket_key_data:S3BucketKeyData": "!bucket !key object_info",
    "s3torchconnector._user_agent:UserAgent": "comments",
}

DEFAULTS = {
    "throughput_target_gbps": 10.0,
    "part_size": 8 * 1024 * 1024,
    "unsigned": False,
    "force_path_style": False,
    "max_attempts": 10,
    "requester_pays": False,
    "enable_sharding": False,
    "thread_count": 1,
    "min_prefix_length": 10,
    "prefix": "",
    "delimiter": "",
    "max_keys": 1000,
    "max_gap_size": 32 * 1024 * 1024,
}


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_names(module, names):
    found = importlib.import_module(module)
    for name in names.split():
        assert getattr(found, name) is not None, name
    assert set(found.__all__) <= set(dir(found))


def test_the_package_exports_exactly_these():
    assert set(s3torchconnector.__all__) == set(NAMES["s3torchconnector"].split())
    assert s3torchconnector.__version__ == version("s3torch-compat")
    assert s3torchconnector.S3Exception is s3torchconnectorclient.S3Exception is S3Error
    assert logging.getLevelName(s3torchconnectorclient.LOG_TRACE) == "TRACE"


@pytest.mark.parametrize(("where", "expected"), SIGNATURES.items())
def test_signatures(where, expected):
    module, _, path = where.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name != "self"]
    wanted = expected.split()
    by_position = wanted[: wanted.index("*")] if "*" in wanted else wanted
    positional = [p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    names = [name.strip("!") for name in by_position if not name.startswith("**")]
    assert positional[: len(names)] == names
    by_name = {parameter.name: parameter for parameter in parameters}
    for name in wanted:
        if name == "*":
            continue
        parameter = by_name[name.strip("!*")]
        if name.startswith("**"):
            assert parameter.kind is parameter.VAR_KEYWORD
        elif name.startswith("!"):
            assert parameter.default is parameter.empty, name
        elif name != "transform":
            assert parameter.default == DEFAULTS.get(name), name
    # Whatever is there besides may be left out, so that no call needs it.
    for name in set(by_name) - {name.strip("!*") for name in wanted}:
        parameter = by_name[name]
        assert parameter.kind is parameter.VAR_KEYWORD or parameter.default is not parameter.empty, name


def run(code):
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_it_loads_no_extras():
    code = (
        "import sys, s3torchconnector, s3torchconnector.s3reader, s3torchconnector._s3client; "
        "heavy = ('lightning', 'pytorch_lightning', 'torch.distributed.checkpoint', 'awscrt', 'boto3'); "
        "print([name for name in sys.modules if name in heavy])"
    )
    assert run(code) == "[]"


def test_it_can_be_imported_where_the_extras_are_missing():
    code = (
        "import sys\n"
        "for name in ('lightning', 'lightning_fabric', 'pytorch_lightning', 'fsspec'):\n"
        "    sys.modules[name] = None\n"
        "import s3torchconnector, s3torchconnector.dcp\n"
        "try:\n"
        "    import s3torchconnector.lightning\n"
        "except ModuleNotFoundError as exc:\n"
        "    print(exc)\n"
    )
    assert run(code).startswith("No module named 'lightning'")


def test_the_other_distribution_beside_it_is_refused(tmp_path):
    metadata = tmp_path / "s3torchconnector-1.5.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: s3torchconnector\nVersion: 1.5.0\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "try:\n"
        "    import s3torchconnector\n"
        "except ImportError as exc:\n"
        "    print(exc)\n"
    )
    text = run(code)
    assert text.startswith("s3torch-compat is installed beside s3torchconnector 1.5.0")
    assert "pip uninstall s3torchconnector" in text
