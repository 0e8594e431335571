"""Plugins of third parties, as unpacked distributions on ``sys.path``."""

from __future__ import annotations

import os
from textwrap import dedent

import pytest

from s3torch.core.plugins._manager import transport_names

TRANSPORT = """
from s3torch.core.plugins import hookimpl
from s3torch.core.transports.memory import MemoryStore, MemoryTransport

@hookimpl
def s3torch_create_transport(context):
    store = MemoryStore.at("http://third.invalid")
    store.create_bucket("b")
    return MemoryTransport(store)
"""
CLIENT = """
from s3torch.core import S3Client, S3ClientConfig
def client(name):
    return S3Client("us-east-1", s3client_config=S3ClientConfig(transport=name))
def error(name):
    try:
        client(name).head_object("b", "k")
    except Exception as exc:
        return exc
"""
READER_KIND = """
from s3torch.core import SequentialS3Reader
from s3torch.core.plugins import hookimpl

class Kind:
    kind = "third"
    def __init__(self, size=1):
        self.size = size
    def __call__(self, source):
        return SequentialS3Reader(source)

@hookimpl
def s3torch_reader_kinds():
    return {"third": Kind}

@hookimpl
def s3torch_prefix_strategies():
    return {"third": lambda: (lambda rank: f"{rank}/")}

@hookimpl
def s3torch_user_agent():
    return "md/third#1"
"""


OBSERVER = """
from s3torch.core.observers import TransferObserver
from s3torch.core.plugins import hookimpl

class Seen(TransferObserver):
    events = []
    def started(self, transfer):
        self.events.append(("started", transfer.operation, transfer.key))
    def retried(self, transfer, retry):
        self.events.append(("retried", transfer.operation, type(retry.error).__name__))
    def progressed(self, transfer, progress):
        self.events.append(("progressed", transfer.operation, progress.nbytes))
    def ended(self, transfer, end):
        self.events.append(("ended", transfer.operation, end.attempts))

@hookimpl
def s3torch_transfer_observers():
    yield Seen()
"""


@pytest.fixture
def distributions(tmp_path, python):
    """Unpacks distributions and runs code that sees them."""

    def run(code, *, environment=None, **plugins):
        for name, (group, module) in plugins.items():
            (tmp_path / f"third_{name}.py").write_text(dedent(module))
            info = tmp_path / f"third_{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-{name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[s3torch.{group}]\n{name} = third_{name}\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"PYTHONPATH": path, **(environment or {})}
        return python(dedent(CLIENT) + dedent(code), environment=variables)

    return run


def test_the_builtin_transports_use_the_same_door():
    assert {"crt", "http", "memory"} <= set(transport_names())


def test_a_transport_of_a_third_party_is_found_by_name(distributions):
    code = """
    for name in ("tape", None):
        with client(name) as c:
            with c.put_object("b", "k") as writer:
                writer.write(b"data")
            assert c.get_object("b", "k").read() == b"data"
    """
    distributions(code, environment={"S3TORCH_TRANSPORT": "tape"}, tape=("transports", TRANSPORT))


def test_a_transport_that_is_installed_while_the_program_runs(distributions):
    code = """
    import importlib, pathlib, sys
    import third_tape
    from s3torch.core.errors import TransportError

    info = pathlib.Path(third_tape.__file__).with_name("third_later-1.0.dist-info")
    try:
        client("later").head_object("b", "k")
    except TransportError as exc:
        assert "tape" in str(exc)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: third-later\\nVersion: 1.0\\n")
    (info / "entry_points.txt").write_text("[s3torch.transports]\\nlater = third_tape\\n")
    importlib.invalidate_caches()
    with client("later").put_object("b", "k") as writer:
        writer.write(b"data")
    """
    distributions(code, tape=("transports", TRANSPORT))


@pytest.mark.promise(8)
def test_a_broken_transport_hurts_only_who_asks_for_it(distributions):
    code = """
    import sys
    from s3torch.core.errors import NotFoundError, TransportError
    from s3torch.core.plugins._manager import transport_names
    assert {"tape", "broken", "empty", "failing"} <= set(transport_names())
    assert isinstance(error("tape"), NotFoundError)
    assert not {"third_broken", "third_empty", "third_failing", "awscrt", "boto3"} & set(sys.modules)
    for name, word in (("broken", "no_such_driver"), ("empty", "s3torch_create_transport"),
                       ("failing", "no tape drive"), ("wrong", "third_wrong"), ("hint", "pip install x")):
        exc = error(name)
        assert type(exc) is TransportError, (name, exc)
        assert word in str(exc) and (name in str(exc) or name == "hint"), exc
    assert isinstance(error("tape"), NotFoundError)
    """
    hook = "from s3torch.core.plugins import hookimpl\nfrom s3torch.core.errors import *\n@hookimpl\n"
    distributions(
        code,
        tape=("transports", TRANSPORT),
        broken=("transports", "import no_such_driver"),
        empty=("transports", ""),
        failing=(
            "transports",
            hook + "def s3torch_create_transport(context): raise OSError('no tape drive')",
        ),
        wrong=("transports", hook + "def s3torch_create_transport(contxt): return 1"),
        hint=(
            "transports",
            hook + "def s3torch_create_transport(context): raise TransportError('pip install x')",
        ),
    )


@pytest.mark.promise(8)
def test_an_unknown_name_lists_what_is_installed(distributions):
    code = """
    from s3torch.core.errors import TransportError
    exc = error("tpae")
    assert type(exc) is TransportError and isinstance(exc, (ValueError, ImportError))
    for word in ("'tpae'", "crt", "http", "memory", "tape"):
        assert word in str(exc), exc
    """
    distributions(code, tape=("transports", TRANSPORT))


def test_a_plugin_adds_kinds_and_tokens(distributions):
    code = """
    import pickle
    from s3torch.core import S3ReaderConstructor, UserAgent
    from s3torch.core.errors import ConfigurationError
    from s3torch.core.plugins._manager import failures, prefix_strategy
    constructor = S3ReaderConstructor.named("third", size=5)
    assert constructor.size == 5
    assert S3ReaderConstructor.get_reader_type_string(constructor) == "third"
    assert prefix_strategy("third")()(3) == "3/"
    assert " md/third#1" in UserAgent(["x"]).prefix
    assert not failures()
    for ask in (S3ReaderConstructor.named, prefix_strategy):
        try:
            ask("fourth")
        except ConfigurationError as exc:
            assert "'fourth'" in str(exc) and "third" in str(exc), exc
        else:
            raise AssertionError
    """
    distributions(code, third=("plugins", READER_KIND))


def test_a_plugin_is_told_of_transfers(distributions):
    code = """
    import os
    from third_seen import Seen
    with client("tape") as c:
        with c.put_object("b", "k") as writer:
            writer.write(b"data")
        if os.fork() == 0:
            # The child asks its plugins anew, and is told of its own transfers only.
            Seen.events.clear()
            assert isinstance(error("memory"), FileNotFoundError)
            assert Seen.events == [("started", "HeadObject", "k"), ("ended", "HeadObject", 1)], Seen.events
            os._exit(0)
        assert os.wait()[1] == 0
        assert c.get_object("b", "k").read() == b"data"
    assert Seen.events == [
        ("started", "PutObject", "k"), ("progressed", "PutObject", 4), ("ended", "PutObject", 1),
        ("started", "GetObject", "k"), ("progressed", "GetObject", 4), ("ended", "GetObject", 1),
    ], Seen.events
    """
    failing = (
        "from s3torch.core.plugins import hookimpl\n@hookimpl\n"
        "def s3torch_transfer_observers():\n    yield 1 / 0"
    )
    distributions(
        code, failing=("plugins", failing), seen=("plugins", OBSERVER), tape=("transports", TRANSPORT)
    )


def test_a_broken_plugin_is_left_out_with_a_warning(distributions):
    code = """
    import logging
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("s3torch.core").addHandler(handler)
    from s3torch.core import S3ReaderConstructor
    from s3torch.core.plugins._manager import failures
    assert S3ReaderConstructor.named("third")
    assert set(failures()) == {"broken", "wrong"}
    assert isinstance(failures()["broken"], ImportError)
    told = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert len(told) == 2 and any("no_such_thing" in text and "'broken'" in text for text in told), told
    assert isinstance(error("memory"), FileNotFoundError)
    """
    hook = "from s3torch.core.plugins import hookimpl\n@hookimpl\n"
    distributions(
        code,
        broken=("plugins", "import no_such_thing"),
        wrong=(
            "plugins",
            hook + "def s3torch_user_agents(): pass\n@hookimpl\ndef s3torch_user_agent(x): pass",
        ),
        third=("plugins", READER_KIND),
    )


def test_a_plugin_whose_hook_fails_does_not_break_every_client(distributions):
    code = """
    import logging
    logging.disable()
    from s3torch.core import S3ReaderConstructor, UserAgent
    assert isinstance(error("memory"), FileNotFoundError), error("memory")
    assert "md/third#1" in UserAgent().prefix
    assert S3ReaderConstructor.named("third")
    """
    hook = "from s3torch.core.plugins import hookimpl\n@hookimpl\n"
    failing = "def s3torch_user_agent(): 1 / 0\n@hookimpl\ndef s3torch_reader_kinds(): 1 / 0"
    distributions(code, failing=("plugins", hook + failing), third=("plugins", READER_KIND))


def test_importing_core_loads_nothing_heavy(python):
    python(
        """
        import sys
        import s3torch.core
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"torch", "lightning", "awscrt", "boto3", "botocore", "numpy"}, loaded
        from s3torch.core import *
        S3Client("us-east-1").get_object("b", "k").close()
        S3Checkpoint("us-east-1").writer("s3://b/k").abort()
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"torch", "awscrt", "boto3", "botocore"}, loaded
        """
    )
