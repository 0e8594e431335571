"""The transport that changes the texts of errors is a transport like any other."""

from __future__ import annotations

import copy
import uuid

import pytest

from s3torch.core.config import S3ClientConfig as CoreConfig
from s3torch.core.plugins.manager import create_transport, transport_names
from s3torch.core.protocols import TransportContext
from s3torch.core.session import AwsSession
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.transport_tests import TransportTests
from s3torchconnector import S3ClientConfig


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
        return create_transport(context.config.transport_name, context)

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


def test_the_environment_chooses_what_is_wrapped(monkeypatch):
    monkeypatch.setenv("S3TORCH_TRANSPORT", "boto")
    assert S3ClientConfig().transport_name == "s3torchconnector"
    assert S3ClientConfig().wrapped_transport_name == "boto"
    assert S3ClientConfig(transport="crt").wrapped_transport_name == "crt"
