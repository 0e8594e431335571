"""How many requests it takes, and what happens when they fail on the wire."""

from __future__ import annotations

import pytest
import torch

from s3torch.core import NotFoundError, S3ClientConfig
from s3torch.core.errors import S3Error
from s3torch.lightning import S3LightningCheckpoint
from s3torch.testing import Fault

MIB = 1024 * 1024


@pytest.fixture
def io(seaweedfs, folder, proxy):
    plugin = S3LightningCheckpoint(seaweedfs.region, S3ClientConfig(max_attempts=1), proxy.endpoint)
    yield plugin
    plugin.teardown()


def methods(proxy):
    return [request.method for request in proxy.requests()]


def test_small_checkpoints_take_one_request_each(io, proxy, folder):
    io.save_checkpoint({"epoch": 1}, f"{folder}/a.ckpt")
    assert methods(proxy) == ["PUT"]
    proxy.clear()
    io.load_checkpoint(f"{folder}/a.ckpt")
    assert methods(proxy) == ["GET"]
    proxy.clear()
    io.remove_checkpoint(f"{folder}/a.ckpt")
    assert methods(proxy) == ["DELETE"]


def test_large_checkpoints_take_one_request_a_part(io, proxy, folder):
    io.save_checkpoint({"weights": torch.zeros(5 * MIB)}, f"{folder}/a.ckpt")
    assert sorted(methods(proxy)) == ["POST", "POST", "PUT", "PUT", "PUT"]
    proxy.clear()
    io.load_checkpoint(f"{folder}/a.ckpt")
    assert methods(proxy) == ["GET", "GET", "GET"]


def test_a_save_that_breaks_on_the_wire_raises_and_leaves_nothing(io, proxy, folder):
    proxy.add(Fault.slow_down(), method="PUT", skip=1)
    with pytest.raises(S3Error):
        io.save_checkpoint({"weights": torch.zeros(5 * MIB)}, f"{folder}/a.ckpt")
    assert methods(proxy)[-1] == "DELETE"
    proxy.heal()
    with pytest.raises(NotFoundError):
        io.load_checkpoint(f"{folder}/a.ckpt")
