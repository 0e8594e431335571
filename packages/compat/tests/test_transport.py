"""The transport that changes the texts of errors is a transport like any other."""

from __future__ import annotations

import copy
import uuid
from concurrent.futures import Future

import pytest

from s3torch.core import NotFoundError, requests
from s3torch.core import S3ClientConfig as CoreConfig
from s3torch.core.models import Credentials
from s3torch.core.plugins import create_transport, transport_names
from s3torch.core.seam import BuffersParts, SupportsSendNow, TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.transport_tests import TransportTests
from s3torchconnector import S3ClientConfig
from s3torchconnector._transport import s3torch_create_transport


def context_for(config):
    session = AwsSession(region=None, endpoint=None, config=config, user_agent="test", endpoints={})
    return TransportContext(config, session, "test")


class TestOldTextTransport(TransportTests):
    endpoint = "http://conformance-of-the-drop-in"

    @pytest.fixture(autouse=True)
    def same_classes(self, monkeypatch):
        # The suite wants the very classes of s3torch; what becomes of them is tested with the errors.
        monkeypatch.setattr("s3torchconnector._transport.with_old_text", copy.copy)

    def create_transport(self, context):
        return s3torch_create_transport(context)

    @pytest.fixture
    def transport_context(self):
        return context_for(S3ClientConfig(transport="memory", endpoint=self.endpoint))

    @pytest.fixture
    def bucket(self):
        name = uuid.uuid4().hex
        MemoryStore.at(self.endpoint).create_bucket(name)
        return name


def test_it_is_registered_and_wraps_the_default_for_other_configurations():
    assert "s3torchconnector" in transport_names()
    transport = create_transport("s3torchconnector", context_for(CoreConfig(transport="s3torchconnector")))
    transport.close()


@pytest.fixture
def wrapping(seaweedfs):
    """A function that makes the transport of the drop-in around another, on a real server."""
    keys = Credentials(seaweedfs.access_key, seaweedfs.secret_key)
    made = []

    def make(name):
        config = S3ClientConfig(transport=name, endpoint=seaweedfs.endpoint, credentials=lambda: keys)
        made.append(create_transport(config.transport_name, context_for(config)))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.mark.parametrize(
    ("name", "sends_now", "buffers"),
    [("http", True, False), ("crt", False, True), ("memory", False, False)],
)
def test_it_can_what_the_wrapped_transport_can(wrapping, name, sends_now, buffers):
    transport = wrapping(name)
    assert isinstance(transport, SupportsSendNow) is sends_now
    assert isinstance(transport, BuffersParts)
    assert transport.buffers_parts is buffers


def test_what_is_sent_on_the_calling_thread_has_the_old_texts(wrapping, session_bucket):
    transport = wrapping("http")
    with pytest.raises(NotFoundError) as caught:
        transport.send_now(requests.get_object(session_bucket, "none"))
    assert str(caught.value) == "Service error: The key does not exist"
    assert caught.value.key == "none"


@pytest.mark.parametrize("name", ["http", "crt"])
def test_an_error_can_be_asked_for_without_raising_it(wrapping, session_bucket, name):
    transfer = wrapping(name).send(requests.get_object(session_bucket, "none"))
    ended = Future()
    transfer.add_done_callback(ended.set_result)
    assert ended.result(30) is transfer
    assert isinstance(transfer, Future)
    assert str(transfer.exception(0)) == "Service error: The key does not exist"


def test_the_environment_chooses_what_is_wrapped(monkeypatch):
    monkeypatch.setenv("S3TORCH_TRANSPORT", "memory")
    assert S3ClientConfig().transport_name == "s3torchconnector"
    assert S3ClientConfig().wrapped_transport_name == "memory"
    assert S3ClientConfig(transport="crt").wrapped_transport_name == "crt"
