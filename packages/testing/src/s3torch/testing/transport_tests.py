"""The conformance suite of transports: every rule of ``s3torch.core.protocols`` that can be tested.

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

A transport with a control plane of its own (``SupportsControl``) is tested with that, any other with the
control plane on boto3. Abilities that a control plane does not have (``s3torch.core.abilities``) are skipped,
and so is what needs versions, without a ``versioned_bucket``. The class attributes say what the store behind
the transport can.
"""

from __future__ import annotations

from s3torch.testing._transport_control_tests import (
    AWKWARD_KEYS,
    DeleteTests,
    HeadTests,
    KeyTests,
    ListTests,
)
from s3torch.testing._transport_copy_tests import CopyTests, PartCopyTests
from s3torch.testing._transport_read_tests import ReadTests
from s3torch.testing._transport_rule_tests import (
    BufferTests,
    CancelTests,
    CloseTests,
    TransferTests,
)
from s3torch.testing._transport_upload_tests import UploadListingTests
from s3torch.testing._transport_version_tests import VersionTests
from s3torch.testing._transport_write_tests import MultipartTests, PutTests

__all__ = ["AWKWARD_KEYS", "TransportTests"]


class TransportTests(
    ReadTests,
    PutTests,
    MultipartTests,
    TransferTests,
    BufferTests,
    CancelTests,
    CloseTests,
    KeyTests,
    HeadTests,
    ListTests,
    DeleteTests,
    CopyTests,
    PartCopyTests,
    VersionTests,
    UploadListingTests,
):
    """All groups of the suite, to be subclassed."""
