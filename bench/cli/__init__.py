"""The command line, one file per group of commands: parse, call `bench.api`, print."""

from bench.cli.main import main

__all__ = ["main"]
