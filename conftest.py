"""What holds for the tests of every package: servers of our own, no account, no network but loopback."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import warnings

import hypothesis
import pytest

# The published suites, whose asserts explain themselves only when they are rewritten.
pytest.register_assert_rewrite("s3torch.testing")

_ISOLATION = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
_PATIENCE = 20


def _foreign_settings():
    prefixes = ("AWS_", "S3TORCH_", "S3_TORCH_")
    return [name for name in os.environ if name.startswith(prefixes) and name not in _ISOLATION]


# Already here, and not only in a fixture, so that what tests import and what runs for a session sees it, too.
for _name in _foreign_settings():
    del os.environ[_name]
os.environ.update(_ISOLATION)

# A busy machine makes single examples slow; in CI a failure must come back with the next run.
hypothesis.settings.register_profile("s3torch", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("s3torch")


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch):
    """Keeps every test away from the developer's AWS settings, and from those that another test has left."""
    for name in _foreign_settings():
        monkeypatch.delenv(name)
    for name, value in _ISOLATION.items():
        monkeypatch.setenv(name, value)


def _report(connection, function):
    try:
        connection.send((True, function()))
    except BaseException as exc:  # noqa: BLE001 - It is raised in the parent.
        connection.send((False, exc))


@pytest.fixture
def in_child():
    """Calls a function in a forked child, and returns or raises what it does; a hanging child is an error."""

    def run(function):
        context = multiprocessing.get_context("fork")
        mine, theirs = context.Pipe()
        child = context.Process(target=_report, args=(theirs, function))
        with warnings.catch_warnings():
            # Python warns of forks in programs with threads, which is what these tests are about.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        theirs.close()
        try:
            assert mine.poll(_PATIENCE), "the child hangs"
            succeeded, value = mine.recv()
            child.join(_PATIENCE)
            assert child.exitcode == 0
        finally:
            if child.is_alive():
                child.kill()
                child.join()
            child.close()
            mine.close()
        if not succeeded:
            raise value
        return value

    return run


@pytest.fixture(scope="session")
def seaweedfs():
    """A real S3 server: it checks signatures, checksums and conditions."""
    from s3torch.testing.servers import start_seaweedfs

    with start_seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def moto():
    """A simulated S3 server: exact in names and order of keys, and it checks no checksums."""
    from s3torch.testing.servers import start_moto

    with start_moto() as server:
        yield server


@pytest.fixture(params=["seaweedfs", "moto"])
def s3_server(request):
    """Each server in turn; parametrize it indirectly with the name of one to have only that."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(s3_server):
    """The name of a fresh bucket on ``s3_server``."""
    return s3_server.create_bucket()


@pytest.fixture
def fault_proxy():
    """A function that puts a proxy before the server that it is given; all are closed after the test."""
    from s3torch.testing.faults import FaultProxy

    with contextlib.ExitStack() as proxies:
        yield lambda server: proxies.enter_context(FaultProxy(server.endpoint))
