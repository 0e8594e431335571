"""The command ``s3torch``: which commands there are, and which exit code tells how one ended."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from s3torch.core import _version
from s3torch.core.cli._output import error_facts, error_text, write_json
from s3torch.core.cli.commands import ExitCode, exit_code_of
from s3torch.core.errors import S3Error
from s3torch.core.plugins import failures
from s3torch.core.plugins._manager import commands as plugin_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

# Imported when they are used. What plugins add comes behind them, and replaces none.
_COMMANDS = {
    "doctor": "doctor._command:doctor",
    "bench": "bench._command:bench",
    "ls": "_objects:ls",
    "cp": "_copying:cp",
    "rm": "_objects:rm",
    "gc": "_garbage:gc",
    "watch": "_watching:watch",
    "plugins": "_plugins:plugins",
    "completion": "_plugins:completion",
}
_FAILURES = (S3Error, OSError)


class Application(click.Group):
    """The commands of this package and those of plugins, each loaded when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Lists the names, those of this package first."""
        del ctx
        return [*_COMMANDS, *sorted(plugin_commands().keys() - _COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads a command; plugins are asked only for what is none of this package's."""
        del ctx
        if cmd_name not in _COMMANDS:
            return plugin_commands().get(cmd_name)
        module, _, name = _COMMANDS[cmd_name].partition(":")
        found: click.Command = getattr(import_module(f"s3torch.core.cli.{module}"), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command; where there is none, it may be one of a plugin that could not be loaded."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            broken = [f"the plugin {name} could not be loaded: {why!r}" for name, why in failures().items()]
            raise click.UsageError("\n".join([error.message, *broken]), ctx) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command and ends with its exit code."""
        run = super().main
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return run(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        sys.exit(_exit_code(partial(run, arguments, prog_name, complete_var, standalone_mode=False, **extra)))


def _exit_code(run: partial[Any]) -> int:
    try:
        outcome = run()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.Abort as aborted:
        # click makes this of every KeyboardInterrupt.
        stopped = aborted.__cause__
        click.echo("Nothing was done." if stopped is None else "Stopped.", err=True)
        return getattr(stopped, "exit_code", ExitCode.FAILED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except _FAILURES as error:
        report(error, as_json="--json" in run.args[0])
        return exit_code_of(error)
    return outcome if isinstance(outcome, int) else ExitCode.DONE


def report(error: BaseException, *, as_json: bool) -> None:
    """Says what went wrong: on stderr, and with ``--json`` on stdout for a program."""
    if as_json:
        write_json(error_facts(error))
    else:
        click.echo(f"Error: {error_text(error)}", err=True)


@click.group(
    cls=Application,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit codes: 0 success, 1 failure, 2 wrong usage or setting, 3 not found, 4 denied, "
    "5 no connection, 6 partial success, 7 doctor found only warnings, 130 Ctrl-C, 143 SIGTERM.",
)
@click.version_option(_version.__version__, prog_name="s3torch")
def application() -> None:
    """List, copy, clean up, measure and diagnose training data and checkpoints in S3."""
