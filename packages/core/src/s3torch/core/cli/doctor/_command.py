"""The command ``doctor``: all checks one after the other, as texts with remedies or as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING

import click
from rich.table import Table

from s3torch.core import S3Client, parse_s3_uri
from s3torch.core.cli._output import console, count_text, shown, write_json
from s3torch.core.cli.commands import CommandContext, ExitCode, command
from s3torch.core.cli.doctor._abilities import look_at_first_object, try_abilities
from s3torch.core.cli.doctor._connection import look_at_network, send_signed
from s3torch.core.cli.doctor._machine import look_at_installation, look_at_machine
from s3torch.core.cli.doctor._origins import look_at_settings
from s3torch.core.cli.findings import Finding, Severity
from s3torch.core.plugins._manager import doctor_checks
from s3torch.core.session import AwsSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

_MARKS = {
    Severity.OK: ("ok", "green"),
    Severity.NOTE: ("note", "cyan"),
    Severity.WARNING: ("warn", "yellow"),
    Severity.ERROR: ("ERROR", "bold red"),
}
_CODES = {
    Severity.OK: ExitCode.DONE,
    Severity.NOTE: ExitCode.DONE,
    Severity.WARNING: ExitCode.WARNINGS,
    Severity.ERROR: ExitCode.FAILED,
}


@command
@click.argument("uri", required=False)
@click.option(
    "--write", is_flag=True, help="Also try what the store can do, with objects that are removed afterwards."
)
def doctor(context: CommandContext, uri: str | None, write: bool) -> int:
    """Find out what is wrong with the setup, and how to fix it.

    With s3://bucket/prefix it sends signed requests that only read: a listing of one object and a HEAD.
    --write also stores some small objects below PREFIX/.s3torch-doctor-…, to see whether the store supports
    checksums, conditions, copies and batches, and removes them. Secrets are never shown.

    Exit code: 1 if there is an error, 7 if there are only warnings, else 0.
    """
    if write and uri is None:
        raise click.UsageError("--write needs s3://bucket/prefix")
    report = _Report(as_json=context.as_json)
    for finding in _look(context, uri, write=write):
        report.add(finding)
    return report.finish()


def _look(context: CommandContext, uri: str | None, *, write: bool) -> Iterator[Finding]:
    bucket, prefix = (None, "") if uri is None else parse_s3_uri(uri)
    yield from look_at_installation()
    yield from look_at_machine(context.config)
    session = AwsSession(
        region=context.region, endpoint=context.endpoint, config=context.config, user_agent="", endpoints={}
    )
    usable = True
    for finding in chain(look_at_settings(context, session, bucket), look_at_network(session, bucket)):
        usable = usable and finding.severity < Severity.ERROR
        yield finding
    if bucket is None:
        text = "not sent: give s3://bucket/prefix to try one"
        yield Finding("Connection", "signed request", Severity.NOTE, text)
    elif usable:
        yield from _look_at_store(context, bucket, prefix, write=write)
    yield from _look_with_plugins(context)


def _look_at_store(context: CommandContext, bucket: str, prefix: str, *, write: bool) -> Iterator[Finding]:
    # Impatient, because somebody waits for what is wrong.
    config = replace(context.config, max_attempts=2, connect_timeout=5.0, read_timeout=15.0)
    with S3Client(context.region, endpoint=context.endpoint, s3client_config=config) as client:
        reached = send_signed(client, bucket, prefix)
        if reached.skew is not None:
            yield reached.skew
        yield reached.finding
        if reached.page is not None:
            yield from look_at_first_object(client, bucket, reached.page)
        if write and (reached.page is not None or reached.finding.facts.get("code") == "AccessDenied"):
            yield from try_abilities(client, bucket, prefix)


def _look_with_plugins(context: CommandContext) -> Iterator[Finding]:
    for check in doctor_checks():
        try:
            yield from check(context)
        except Exception as exc:  # noqa: BLE001 - Whatever a third party does, others go on.
            name = f"{check.__module__}.{getattr(check, '__name__', check)}"
            yield Finding(
                "Plugins", "check", Severity.WARNING, f"{name} failed: {exc!r}", "report this to its authors"
            )


class _Report:
    """Shows findings as they come."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = console()
        self._topic: str | None = None
        self._findings: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Shows one."""
        self._findings.append(finding)
        if self._as_json:
            return
        if finding.topic != self._topic:
            self._topic = finding.topic
            self._out.print(f"{'' if len(self._findings) == 1 else os.linesep}{finding.topic}", style="bold")
        _show(self._out, finding)

    def finish(self) -> ExitCode:
        """Shows how many there were, and returns the exit code for the worst."""
        worst = max(one.severity for one in self._findings)
        if self._as_json:
            write_json({"worst": worst, "findings": [asdict(one) for one in self._findings]})
        elif worst < Severity.WARNING:
            self._out.print("\nNothing is wrong.", style="green")
        else:
            self._out.print()
            for severity, noun in ((Severity.ERROR, "error"), (Severity.WARNING, "warning")):
                names = [one.name for one in self._findings if one.severity is severity]
                if names:
                    text = f"{count_text(len(names), noun)}: {', '.join(map(shown, names))}"
                    self._out.print(text, style=_MARKS[severity][1])
        return _CODES[worst]


def _show(out: Console, finding: Finding) -> None:
    mark, style = _MARKS[finding.severity]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=5)
    grid.add_column(width=16)
    grid.add_column(overflow="fold", ratio=1)
    grid.add_row(mark, shown(finding.name), shown(finding.text))
    if finding.remedy is not None:
        grid.add_row(
            "", "", f"→ {shown(finding.remedy)}", style="bold" if finding.severity > Severity.NOTE else ""
        )
    grid.columns[0].style = style
    out.print(grid)
