"""Runs commands: in this process on a store in memory, or as a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from s3torch.core.cli import _process
from s3torch.core.cli._application import application


@dataclass
class Ran:
    """How a command has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self):
        return self.out.splitlines()

    @property
    def documents(self):
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def command(store, client, monkeypatch):
    """Runs a command in this process on the store in memory."""
    monkeypatch.setenv("S3TORCH_TRANSPORT", "memory")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")

    def run(*arguments, code=0, answer=None):
        has_place = any(str(argument).startswith("s3://") for argument in arguments)
        where = ("--endpoint", store.endpoint) if has_place else ()
        result = CliRunner().invoke(application, [*map(str, arguments), *where], input=answer)
        _process.stopping.clear()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def put(client):
    """Stores objects, by their keys and bytes."""

    def put(objects):
        for key, data in objects.items():
            with client.put_object("bucket", key) as writer:
                writer.write(data)

    return put


@pytest.fixture
def keys(client):
    """The keys in the bucket."""
    return lambda prefix="": [info.key for info in client.walk("bucket", prefix)]


@pytest.fixture
def process():
    """Runs a command as a process of its own, which a signal may end."""

    def run(*arguments, environment=None, interrupt=None, kill=None, open_files=None, stdin=None):
        limit = [] if open_files is None else ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh"]
        started = subprocess.Popen(
            [*limit, sys.executable, "-m", "s3torch.core.cli", *map(str, arguments)],
            env={**os.environ, "COLUMNS": "80", **(environment or {})},
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if interrupt is not None:
                interrupt()
                started.send_signal(signal.SIGINT)
            if kill is not None:
                kill()
                started.kill()
            out, err = started.communicate(stdin, timeout=60)
        finally:
            started.kill()
            started.wait()
        return Ran(started.returncode, out, err)

    return run
