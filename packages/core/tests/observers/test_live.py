"""The live view counts this process and those that it starts, and leaves no trace."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from s3torch.core.errors import ConfigurationError
from s3torch.core.observers import TransferCounters, observe
from s3torch.core.observers.live import LiveView, TransferPanel


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def shown(panel):
    console = Console(file=io.StringIO(), width=80)
    console.print(panel)
    return console.file.getvalue()


def move(client, count):
    for number in range(count):
        with client.put_object("bucket", f"{number}") as writer:
            writer.write(bytes(2**20))
        client.get_object("bucket", f"{number}").read()


def test_a_panel_of_80_columns(client):
    console = terminal()
    with LiveView(console=console) as view:
        move(client, 3)
    text = console.file.getvalue()
    assert "s3torch 0:00:0" in text
    assert "3.0 MiB in all" in text
    assert view._counters is None
    assert max(len(line) for line in shown(TransferPanel(Path())).splitlines()) <= 80


def test_children_are_counted_however_they_start(client, in_child, python, tmp_path, monkeypatch):
    monkeypatch.setenv("S3TORCH_COUNTERS", str(tmp_path))
    in_child(lambda: move(client, 2))
    code = """
    import sys
    from s3torch.core import S3Client, S3ClientConfig
    from s3torch.core.transports.memory import MemoryStore
    MemoryStore.at("http://other").create_bucket("bucket")
    client = S3Client("us-east-1", s3client_config=S3ClientConfig(transport="memory", endpoint="http://other"))
    with client.put_object("bucket", "a") as writer:
        writer.write(bytes(2**20))
    """
    python(code)
    text = shown(TransferPanel(tmp_path))
    assert "2.0 MiB in all" in text
    assert "3.0 MiB in all" in text
    assert "5 in all" in text
    assert "none is running" in text


def test_without_a_terminal_nothing_is_shown(client, capsys):
    before = dict(os.environ)
    with LiveView(console=Console(file=io.StringIO(), force_terminal=False)) as view:
        move(client, 1)
        folder = view._counters.folder
        assert os.environ["S3TORCH_COUNTERS"] == str(folder)
    assert not folder.exists()
    assert dict(os.environ) == before
    assert capsys.readouterr() == ("", "")


def test_an_error_in_the_block_is_raised_and_nothing_is_left(client):
    with pytest.raises(RuntimeError, match="training"), LiveView(console=terminal()) as view:
        folder = view._counters.folder
        raise RuntimeError("training failed")
    assert not folder.exists()
    with observe(TransferCounters()) as counters:
        move(client, 1)
    assert counters.snapshot().requests == 2


def test_a_folder_that_cannot_be_made_is_a_warning(python):
    code = """
    from s3torch.core import S3Client, S3ClientConfig
    from s3torch.core.transports.memory import MemoryStore
    MemoryStore.at("http://other").create_bucket("bucket")
    client = S3Client("us-east-1", s3client_config=S3ClientConfig(transport="memory", endpoint="http://other"))
    assert not client.exists("bucket", "a")
    """
    done = python(code, environment={"S3TORCH_COUNTERS": "/dev/null/folder"})
    assert "S3TORCH_COUNTERS is skipped" in done.stderr


def test_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ConfigurationError, match=r"pip install 's3torch\[cli\]'"):
        LiveView()
