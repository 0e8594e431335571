"""The conformance suite of transports: it demands every rule of ``s3torch.core.seam`` that can be tested.

The author of a transport plugin subclasses ``TransportTests`` in a test module and overrides
``create_transport`` and the fixtures ``transport_context`` and ``bucket``; ``pytest`` does the rest::

    import pytest

    pytest.register_assert_rewrite("s3torch.testing")

    from s3torch.testing.transport_tests import TransportTests


    class TestMyTransport(TransportTests):
        verifies_checksums = False

        def create_transport(self, context):
            return MyTransport(context)

        @pytest.fixture
        def transport_context(self): ...

        @pytest.fixture
        def bucket(self): ...

Most tests ask a store: the class attributes say what that can, and what needs versions is skipped without a
``versioned_bucket``. The others ask a server that answers as they script (``s3torch.testing.scripted``): what
goes over the wire, which failures are tried again, what happens while the server is silent. A transport that
does not speak HTTP says so with ``speaks_http = False``; one that needs more than addresses, keys and
settings overrides ``create_context``.
"""

from __future__ import annotations

from s3torch.testing._transport_case import StaticSession, TransportCalls
from s3torch.testing._transport_control_tests import (
    CopyTests,
    DeleteTests,
    HeadTests,
    ListTests,
    VersionTests,
)
from s3torch.testing._transport_read_tests import AWKWARD_KEYS, KeyTests, ReadTests
from s3torch.testing._transport_rule_tests import (
    BufferTests,
    CancelTests,
    CloseTests,
    SilenceTests,
    TransferTests,
)
from s3torch.testing._transport_wire_tests import AnswerTests, RetryTests, WireTests
from s3torch.testing._transport_write_tests import MultipartTests, PartCopyTests, PutTests, UploadListingTests

__all__ = ["AWKWARD_KEYS", "StaticSession", "TransportCalls", "TransportTests"]


class TransportTests(
    ReadTests,
    KeyTests,
    PutTests,
    MultipartTests,
    PartCopyTests,
    UploadListingTests,
    HeadTests,
    ListTests,
    DeleteTests,
    CopyTests,
    VersionTests,
    TransferTests,
    BufferTests,
    CancelTests,
    CloseTests,
    SilenceTests,
    WireTests,
    AnswerTests,
    RetryTests,
):
    """All groups of the suite, to be subclassed."""
