"""How a command is made: the options that all have, the client that they give, and the exit codes.

A package adds commands with the hook ``s3torch_commands``::

    @command
    @click.argument("uri")
    def size(context: CommandContext, uri: str) -> None:
        \"\"\"Tells the size of an object.\"\"\"
        head = context.client.head_object(*parse_s3_uri(uri))
        context.write(f"{head.size} bytes", size=head.size)
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import click

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.cli._output import (
    Advance,
    count_text,
    progress,
    time_text,
    write_json,
    write_table,
)
from s3torch.core.cli._process import cancellers, log_everything
from s3torch.core.errors import (
    AccessDeniedError,
    CertificateError,
    ConfigurationError,
    NotFoundError,
    S3ConnectionError,
    S3TimeoutError,
)
from s3torch.core.observers.live import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

__all__ = ["CommandContext", "ExitCode", "command", "count_text", "size_text", "time_text"]


class ExitCode(IntEnum):
    """How a command ends; a signal ends it with 128 and its number (Ctrl-C: 130)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    UNREACHABLE = 5
    PARTIAL = 6
    WARNINGS = 7


_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigurationError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (AccessDeniedError, ExitCode.DENIED),
    (CertificateError, ExitCode.UNREACHABLE),
    (S3ConnectionError, ExitCode.UNREACHABLE),
    (S3TimeoutError, ExitCode.UNREACHABLE),
    # Those of local files.
    (FileNotFoundError, ExitCode.NOT_FOUND),
    (PermissionError, ExitCode.DENIED),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Returns the exit code for an error that ended a command."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


@dataclass
class CommandContext:
    """What a command is given besides its own arguments.

    Attributes:
        region: ``--region``; ``None`` for what environment and profile say, as with all of these.
        endpoint: ``--endpoint``.
        profile: ``--profile``.
        transport: ``--transport``.
        unsigned: ``--no-sign``.
        as_json: ``--json``: JSON lines on stdout and nothing else.
    """

    region: str | None = None
    endpoint: str | None = None
    profile: str | None = None
    transport: str | None = None
    unsigned: bool = False
    as_json: bool = False

    @cached_property
    def config(self) -> S3ClientConfig:
        """The settings that the options give."""
        return S3ClientConfig(profile=self.profile, transport=self.transport, unsigned=self.unsigned)

    @cached_property
    def client(self) -> S3Client:
        """A client with these options, closed when the command ends."""
        client = S3Client(self.region, endpoint=self.endpoint, s3client_config=self.config)
        cancellers.append(client.close)
        return client

    def write(self, text: str | None = None, /, **facts: Any) -> None:
        """Writes a line of text, or with ``--json`` the facts as a line of JSON."""
        if self.as_json:
            if facts:
                write_json(facts)
        elif text is not None:
            click.echo(text)

    def write_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()
    ) -> None:
        """Writes a table; nothing with ``--json``.

        Args:
            columns: The headings.
            rows: The cells.
            numbers: The headings of the columns that end at the right.
        """
        if not self.as_json:
            write_table(columns, rows, numbers=numbers)

    def note(self, text: str) -> None:
        """Writes a line for the user to stderr; nothing with ``--json``."""
        if not self.as_json:
            click.echo(text, err=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Asks before something is lost; ``--yes`` answers.

        Raises:
            UsageError: There is nobody to ask: stdin is no terminal.
            Abort: The answer is no.
        """
        if yes:
            return
        if self.as_json or not sys.stdin.isatty():
            raise click.UsageError(f"{question} There is no terminal to ask at: give --yes, or --dry-run.")
        click.confirm(question, abort=True, err=True)

    def progress(self, text: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Shows on stderr how many bytes have been moved; calling what the block is given counts some."""
        return progress(text, total, quiet=self.as_json)

    def close(self) -> None:
        """Closes the client, if there is one."""
        if "client" in self.__dict__:
            self.client.close()
            cancellers.remove(self.client.close)
            del self.__dict__["client"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Command(click.Command):
    """Shows the options that all commands have after those that only this one has."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        of_all = {"verbose", *(one.name for one in fields(CommandContext))}
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                (common if parameter.name in of_all else own).append(record)
        for heading, records in (("Options", own), ("Common options", common)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


_OPTIONS = (
    click.option("--region", metavar="NAME", help="Region of the bucket."),
    click.option("--endpoint", metavar="URL", help="Another S3 server than AWS."),
    click.option("--profile", metavar="NAME", help="Profile of the AWS files."),
    click.option("--transport", metavar="NAME", help="What moves the bytes: crt, http, or a plugin's."),
    click.option("--no-sign", "unsigned", is_flag=True, help="Send anonymous requests."),
    click.option("--json", "as_json", is_flag=True, help="Write JSON lines."),
    click.option("-v", "--verbose", is_flag=True, help="Show each operation and retry on stderr."),
)


def command(function: Callable[..., Any]) -> click.Command:
    """Makes a click command of a function that is given a ``CommandContext`` first.

    Its own arguments and options come from click's decorators, below this one. The first sentence of its
    docstring is its short help.
    """

    @functools.wraps(function)
    def run(*, verbose: bool, **arguments: Any) -> Any:
        if verbose:
            log_everything()
        with CommandContext(
            **{one.name: arguments.pop(one.name) for one in fields(CommandContext)}
        ) as context:
            return function(context, **arguments)

    for option in reversed(_OPTIONS):
        run = option(run)
    made: click.Command = click.command(
        cls=_Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
    )(run)
    return made
