"""Protocol files, sweep files and --set items as people have them: read as UTF-8, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.foundation.errors import BadInput
from bench.foundation.settings import literal
from bench.request import sweep_file
from bench.request.protocol_file import resolve
from tests.aftermath import ROOT

ODD = {
    "not UTF-8": (b'description = "\xe9"', "is not UTF-8 (byte 15); fix: save it as UTF-8"),
    "UTF-16": ('description = "x"'.encode("utf-16"), "is not UTF-8"),
    "deep lists": (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deep; allowed: up to 16 levels"),
    "lists that the parser takes": (b"x = " + b"[" * 40 + b"]" * 40, "nested too deep"),
    "deep tables": (b".".join([b"a"] * 3000) + b" = 1", "nested too deep"),
    "5,000 digits": (b"trials = " + b"1" * 5000, "is not TOML"),
    "65 bits": (b"trials = 18446744073709551616", "more than 64 bits"),
    "hexadecimal digits": (b"trials = 0x" + b"f" * 9000, "more than 64 bits"),
    "a NUL": (b'description = "\x00"', "is not TOML"),
    "a long key": (b"x" * 100_000 + b" = 1", "unknown key 'xxx"),
    "a long value": (b'trials = "' + b"x" * 100_000 + b'"', "bad value for 'trials': 'xxx"),
    "too long": (b"# " + b"x" * 2**20, "more than 1048576"),
}


@pytest.mark.parametrize(("data", "says"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("option", ["--protocol", "sweep"])
def test_what_is_odd_is_one_short_line(
    option: str, data: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(data)
    asked = ["--protocol", str(file)] if option == "--protocol" else [str(file)]
    assert main(["run", *asked, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said and "mine.toml" in said and said.count("\n") == 1 and len(said) < 2100
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["folder.toml", "pipe.toml", "nowhere.toml"])
def test_what_is_no_file_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for read in (lambda path: resolve(path, []), sweep_file.read):
        with pytest.raises(BadInput, match=name):
            read(str(tmp_path / name))


def test_text_is_utf_8_with_or_without_a_mark_and_whatever_the_line_ends(tmp_path: Path) -> None:
    text = 'description = "Bildgröße é"\r\nmodel = "convnet"\r\n'
    for number, data in enumerate((text.encode(), b"\xef\xbb\xbf" + text.encode(), text.replace("\r", "").encode())):
        file = tmp_path / f"mine{number}.toml"
        file.write_bytes(data)
        assert resolve(str(file), [])[0].description == "Bildgröße é"


@pytest.mark.slow
def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('attacks = ["none"]\ndescription = "größer"\n', encoding="utf-8")
    code = f"from bench.request import sweep_file; print(ascii(sweep_file.read({str(tmp_path / 'mine.toml')!r})[1]))"
    locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=locale, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == r"'gr\xf6\xdfer'", ran.stderr


def test_a_value_of_an_option_is_one_value_or_text() -> None:
    assert [literal(text) for text in ("8", "0.1", "true", "[30, 50]", "abc")] == [8, 0.1, True, [30, 50], "abc"]
    for text in ("8\nother = 9", "9" * 5000, "[" * 5000, "1" * 20):
        assert literal(text) == text


def test_blocks_that_do_not_go_together_with_the_rest_of_a_sweep_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('poisons = "a"\n[[block]]\nsetups = "b"\n')
    with pytest.raises(BadInput, match="mine.toml': --poisons brings its own trials; fix: leave --setups out"):
        sweep_file.read(str(file))
