"""`poisoning-bench` and `python -m bench`. Exit codes: 0 done, 1 a trial failed, 2 bad input or a full disk, above
128 interrupted."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from bench import __version__
from bench.cli import archive, catalogue, exchange, figure, leaderboard, plugin, run, tracking
from bench.foundation import files
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.guests import LEFT_THREADS
from bench.foundation.shown import echo, plain
from bench.foundation.signals import Stopped, ending_cleanly

COMPLETION = "_POISONING_BENCH_COMPLETE"


@click.group(no_args_is_help=False, context_settings={"max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def commands() -> None:
    """A benchmark for clean-label data poisoning.

    Completion of commands and options: eval "$(_POISONING_BENCH_COMPLETE=bash_source poisoning-bench)"; also for zsh
    and fish.
    """


commands.add_command(run.run)
commands.add_command(run.run, "sweep")
for module in (exchange, archive, catalogue, leaderboard, tracking, plugin, figure):
    for command in module.COMMANDS:
        commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. What a user can mend is one line on stderr."""
    if instruction := os.environ.get(COMPLETION):
        return shell_complete(commands, {}, "poisoning-bench", COMPLETION, instruction)
    try:
        with ending_cleanly():
            return _call(list(sys.argv[1:] if arguments is None else arguments))
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except click.ClickException as error:
        return _say(_one_line(error), 2)
    except BadInput as error:
        return _say(error, 2)
    except TrialFailed as error:
        return _say(error, 1)
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            _say("interrupted; the same command goes on where this one stopped", 130)
        return error.code if isinstance(error, Stopped) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in files.NO_ROOM:
            if error.filename is None:
                raise
            line = f"'{error.filename}' cannot be used: {error.strerror}; fix: a place that can be read and written"
            return _say(line, 2)
        return _say(files.no_room(error.filename or "a temporary file", error), 2)


def run_and_exit() -> None:
    """The command line's own entry: ends the process when the command has ended, whatever threads plug-ins left."""
    code = main()
    running = sorted(f"'{thread.name}'" for thread in LEFT_THREADS if thread.is_alive())
    if not running:
        sys.exit(code)
    _say(f"a plug-in left threads running, which are not waited for: {', '.join(running)}", code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _call(arguments: list[str]) -> int:
    # Not click's own main: it turns interrupts and broken pipes into endings of its own.
    with commands.make_context("python -m bench", arguments) as context:
        return int(commands.invoke(context) or 0)


def _say(message: object, code: int) -> int:
    echo(plain(f"bench: {' '.join(str(message).splitlines())}"), err=True)
    return code


def _one_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".").replace(". Did you mean", "; did you mean")
    context = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}" + (f"; see: {context.command_path} --help" if context is not None else "")
