"""Transports to servers whose answers a test writes itself, down to where a connection breaks."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

from s3torch.core._config import S3ClientConfig
from s3torch.core.models import Credentials
from s3torch.core.seam import TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.http import HttpTransport
from s3torch.testing import scripted
from s3torch.testing._seaweedfs import certificate_files
from s3torch.testing.scripted import ScriptedAnswer, ScriptedServer
from s3torch.testing.transport_tests import TransportCalls

# Before the first test module imports them.
pytest.register_assert_rewrite("s3torch.testing")


@pytest.fixture(scope="session")
def scripted_server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def stub(scripted_server):
    """The server, with neither answers nor requests."""
    scripted_server.reset()
    yield scripted_server
    scripted_server.release()


@pytest.fixture(scope="session")
def contexts():
    """What was made before, because the making of a boto3 client takes a while."""
    contexts: dict[object, TransportContext] = {}
    yield contexts
    for context in contexts.values():
        context.session.close()


@pytest.fixture
def make_context(contexts):
    """Makes the context of a transport to a server; settings are those of ``S3ClientConfig``."""

    def make(endpoint, *, keys=("AKID", "SECRET"), **settings):
        settings = {"max_attempts": 2, **settings}
        name = (endpoint, keys, *sorted(settings.items()))
        if name not in contexts:
            if keys is not None:
                settings.setdefault("credentials", lambda: Credentials(*keys))
            config = S3ClientConfig(endpoint=endpoint, **settings)
            session = AwsSession(
                region="us-east-1", endpoint=None, config=config, user_agent="agent/1", endpoints={}
            )
            contexts[name] = TransportContext(config, session, "agent/1")
        return contexts[name]

    return make


@pytest.fixture
def answer():
    return ScriptedAnswer


@pytest.fixture
def refusal():
    """Makes the answer of S3 with this status and error code."""
    return scripted.refusal


@pytest.fixture
def connect_with(make_context):
    """Makes transports of a class, each in a ``TransportCalls``, which are closed after the test."""
    transports = []

    def make(transport_class, endpoint, *, on_retry=None, **settings):
        context = replace(make_context(endpoint, **settings), on_retry=on_retry)
        transports.append(TransportCalls(transport_class(context)))
        return transports[-1]

    yield make
    for transport in transports:
        transport.close()


@pytest.fixture(params=[CrtTransport, HttpTransport], ids=["crt", "http"])
def transport_class(request):
    return request.param


@pytest.fixture
def connect(connect_with, transport_class):
    """Makes transports to a server, of each class that speaks HTTP in turn."""
    return partial(connect_with, transport_class)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    for name, content in certificate_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def serve():
    """Starts a server that calls a function with each connection; TLS with a context for it."""
    sockets = []

    def start(*connections, tls=None):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def accept():
            with suppress(OSError):  # The client may go away at any time.
                for function in connections:
                    connected, _ = listener.accept()
                    sockets.append(connected)
                    if tls is not None:
                        connected = tls.wrap_socket(connected, server_side=True)
                        sockets.append(connected)
                    function(connected)

        threading.Thread(target=accept, daemon=True).start()
        return f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for one in sockets:
        one.close()
