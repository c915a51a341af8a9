"""`python -m bench`."""

from bench.cli.main import run_and_exit

run_and_exit()
