"""The command line. Commands live in attncc/commands, one file each; this file finds them and turns errors into messages.

Exit status: 0 done; 1 what was given is wrong (a text, a file, an option) or a check failed; 2 an error inside attncc, of
which a file with the details was written; 130 interrupted; 141 the reader of a pipe went away.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from attncc import __version__
from attncc.commands import bundle
from attncc.diagnostics import AttnError

COMMANDS = {
    "run": "compile a spec for the GPU that is there (or the CPU interpreter) and run it on generated data",
    "check": "report what is wrong in a spec",
    "compile": "write the generated kernel, its PTX, cubin and resources; needs no GPU",
    "explain": "show the IR, what each pass did, bytes and flops, tile classes",
    "draw": "draw mask, tile classes and the schedule as SVG",
    "fuzz": "compare interpreters and reference on generated specs",
    "bench": "time a spec beside the installed peers that can express it",
    "tune": "time several kernels of a spec on this machine's GPU and remember the fastest",
    "verify": "compare kernels with the float64 reference on this machine's GPU",
}


OUT_OF_MEMORY = "error: there is not enough memory for these sizes\n  help: give a smaller --shape"


class Commands(click.Group):
    """A group whose commands are imported when they are used: `attncc check` does not wait for torch."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"attncc.commands.{name}").command

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from attncc.diagnostics import did_you_mean

            near = did_you_mean(str(args[0]), COMMANDS)
            raise click.UsageError(f"there is no command `{args[0]}`" + (f"; {near}" if near else ""), ctx) from error

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="attncc")
def cli():
    """attncc compiles a short text that says what an attention variant computes into a GPU kernel."""


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with its status."""
    sys.exit(run((sys.argv[1:] if arguments is None else arguments) or ["--help"]))


def run(arguments: list[str]) -> int:
    """Runs one command line and gives the exit status; no exception leaves it."""
    for name in ("stdout", "stderr"):  # closed by the caller: `attncc ... >&-`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - to the end of the process
    try:
        with cli.make_context("attncc", list(arguments)) as context:
            status = cli.invoke(context)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except BrokenPipeError:
        # What is still buffered has nowhere to go: keep the interpreter from flushing it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", 130)
    except AttnError as error:
        return _say(str(error), 1)
    except click.ClickException as error:
        return _say(_usage(error), 1)
    except MemoryError:
        return _say(OUT_OF_MEMORY, 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {place}{error.strerror or error}", 1)
    except Exception as error:  # noqa: BLE001 - the last line of defence against tracebacks
        if "can't allocate memory" in str(error) or "out of memory" in str(error):  # a RuntimeError of torch
            return _say(OUT_OF_MEMORY, 1)
        return _say(bundle.report(error, arguments), 2)


def _usage(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    hint = f"\n  help: {ctx.command_path} --help lists what it takes" if ctx is not None else ""
    return f"error: {error.format_message()}{hint}"


def _say(message: str, status: int) -> int:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        pass
    return status
