"""Only regular files are read; locks hold between processes and go with theirs; a full disk is told in one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import socket
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from bench.foundation import files
from bench.foundation.errors import DiskFull


def hold(path: Path, ready: Connection) -> None:
    with files.lock(path):
        ready.send("held")
        time.sleep(600)


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.lock"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    holder = context.Process(target=hold, args=(path, there))
    holder.start()
    assert here.poll(60)
    with pytest.raises(Timeout):
        files.take_lock(path, timeout=0.2)
    holder.kill()
    holder.join()
    with files.lock(path, timeout=10):
        pass
    with files.lock(path, timeout=0):  # and it was let go
        pass


def test_a_lock_that_finds_no_flock_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as a stand-in would outlive a killed holder."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="not implemented"):
        files.take_lock(tmp_path / "a.lock")


def test_a_lock_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A disk with room for two files, its own folder among them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        files.take_lock(disk / "a.lock").release()
        with pytest.raises(DiskFull, match=r"disk full: cannot write .*b\.lock .*fix: "):
            files.take_lock(disk / "b.lock")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_file_is_read_whole_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert files.read_regular(tmp_path / name) == b"content"
        assert files.read_regular(str(tmp_path / name), most=7) == b"content"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(path.parent):  # the name of a socket must be short
        end.bind(path.name)


@pytest.mark.parametrize(
    ("make", "cause"),
    [(make_pipe, "a pipe, not a file"), (link_to_zero, "a device, not a file"), (Path.mkdir, "a folder, not a file"),
     (bind_socket, "No such device"), (lambda path: path.symlink_to(path), "Too many levels"),
     (lambda path: path.write_bytes(b"eight by"), "8 bytes, more than 7")],
)  # fmt: skip
def test_nothing_but_a_regular_file_of_that_size_is_read(make: Any, cause: str, tmp_path: Path) -> None:
    """A pipe without a writer would hang, /dev/zero would fill the memory."""
    make(tmp_path / "entry")
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=cause) as caught:
        files.read_regular(tmp_path / "entry", most=7)
    assert cause in str(caught.value.strerror)
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_missing_file_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "none")
