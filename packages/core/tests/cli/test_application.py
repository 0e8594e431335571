"""The command as a whole: what it needs, its plugins, its exit codes, its help and its completion."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest

PLUGIN = """
import click
from s3torch.core import parse_s3_uri
from s3torch.core.cli.commands import CommandContext, command
from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.plugins import hookimpl

@command
@click.argument("uri")
def size(context: CommandContext, uri):
    '''Tells the size of an object.'''
    head = context.client.head_object(*parse_s3_uri(uri))
    context.write(f"{head.size} bytes", size=head.size)

@hookimpl
def s3torch_commands():
    return {"size": size, "ls": size}

@hookimpl
def s3torch_doctor_checks():
    return [lambda context: [Finding("Third", "party", Severity.OK, "is here")]]
"""
BROKEN = "raise RuntimeError('a broken plugin')"


@pytest.fixture
def installed(tmp_path, process):
    """Unpacks distributions with plugins, and runs commands that see them."""
    for name, module in (("fine", PLUGIN), ("broken", BROKEN)):
        (tmp_path / f"third_{name}.py").write_text(dedent(module))
        info = tmp_path / f"third_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[s3torch.plugins]\n{name} = third_{name}\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments, **environment):
        return process(*arguments, environment={"PYTHONPATH": path, **environment})

    return run


def test_plugins_add_commands_and_one_that_is_broken_hurts_nobody(installed, seaweedfs):
    bucket = seaweedfs.create_bucket()
    seaweedfs.client().put_object(Bucket=bucket, Key="a", Body=b"data")
    environment = seaweedfs.environment()
    ran = installed("size", f"s3://{bucket}/a", **environment)
    assert (ran.code, ran.out) == (0, "4 bytes\n")
    assert installed("size", f"s3://{bucket}/nothing", **environment).code == 3
    # Commands of our own are not replaced, and load no plugin.
    ran = installed("ls", f"s3://{bucket}/", **environment)
    assert ran.out.endswith("4 B  a\n")
    ran = installed("plugins", "--json")
    assert ran.code == 1
    found = {one["name"]: one for one in ran.documents}
    assert found["broken"]["status"] == "RuntimeError: a broken plugin"
    assert {found[name]["kind"] for name in ("crt", "http", "memory")} == {"transport"}
    assert found["fine"]["distribution"] == "third-fine 1.0"
    ran = installed("nothing")
    assert ran.code == 2
    assert "the plugin broken could not be loaded" in ran.err
    ran = installed("doctor", **environment)
    assert ran.code == 7
    assert "is here" in ran.out
    assert "repair or uninstall third-broken" in ran.out


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_sentence(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from s3torch.core.cli.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"s3torch: the command line needs {missing}; install it with pip install 's3torch[cli]'\n"
    )


def test_importing_core_loads_nothing_of_the_command_line(python):
    python("import sys, s3torch.core; assert not {'click', 'rich', 's3torch.core.cli'} & set(sys.modules)")


def test_help_fits_80_columns(command):
    for arguments in (("--help",), ("cp", "--help"), ("doctor", "-h"), ("gc", "--help"), ("rm", "--help")):
        ran = command(*arguments)
        assert "Usage: " in ran.out
        assert max(len(line) for line in ran.lines) <= 80
    assert "Exit codes:" in command("--help").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(command, shell):
    assert "_S3TORCH_COMPLETE" in command("completion", shell).out


def test_completion_knows_commands_and_options(process):
    found = process(
        environment={"_S3TORCH_COMPLETE": "bash_complete", "COMP_WORDS": "s3torch d", "COMP_CWORD": "1"}
    )
    assert found.out.split() == ["plain,doctor"]


def test_verbose_tells_each_operation(process, seaweedfs):
    bucket = seaweedfs.create_bucket()
    ran = process("ls", "-v", f"s3://{bucket}/", environment=seaweedfs.environment())
    assert f"Debug: ListObjects s3://{bucket}/" in ran.err


def test_a_reader_that_has_enough_is_no_error(seaweedfs):
    bucket = seaweedfs.create_bucket()
    seaweedfs.client().put_object(Bucket=bucket, Key="a", Body=bytes(4 * 2**20))
    code = f"{sys.executable} -m s3torch.core.cli cp s3://{bucket}/a - | head -c 10 | wc -c"
    environment = {**os.environ, **seaweedfs.environment()}
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "10"
    assert "Traceback" not in done.stderr
