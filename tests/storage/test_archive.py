"""An output folder as one file: what it holds, how it is merged, and what a forged one can do, which is nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.foundation import files
from bench.foundation.errors import BadInput, DiskFull
from bench.foundation.scratch import scratch_folder
from bench.storage.archive import END, KINDS, Carried, pack, unpack
from bench.storage.record import Record, sealed
from bench.storage.records import Records
from bench.storage.store import Store, encode
from tests.records import cell, record, write

KEY, OTHER = "ab" * 32, "cd" * 32
CHECKPOINT = f"{OTHER}-{'1f' * 12}-1"


def tensors(value: float = 0.5, n: int = 6) -> dict[str, torch.Tensor]:
    return {"images": torch.full((n, 3), value)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """As a run that was killed leaves it: records, what its store holds, and what nobody needs to go on."""
    folder = tmp_path / "out"
    write(folder, [*cell("gm", "none", [1.0, 0.0]), *cell("gm", "a+b", [None], error="no memory")])
    store = Store(folder / "store")
    for kind in KINDS:
        store.put(kind, CHECKPOINT if kind == "checkpoints" else KEY, tensors(), {"seconds": 3.0})
    with store.lock(KEY):
        pass
    for name in ("images/x.png", "logs/x.log", "mlflow.db", "scratch/x/owner", "store/poisons/ab/x.damaged",
                 f"store/poisons/ab/.{KEY}.safetensors.12.tmp"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def needed(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name.endswith((".json", ".safetensors"))}


def carry(folder: Path, there: Path) -> tuple[Carried, list[str]]:
    said: list[str] = []
    pack(folder, folder.parent / "it.tar", said.append)
    return unpack(folder.parent / "it.tar", there, said.append), said


def refused(archive: Path, there: Path) -> str:
    """Why; and nothing is written anywhere."""
    before = tree(archive.parent)
    with pytest.raises(BadInput) as caught:
        unpack(archive, there, lambda line: pytest.fail(line))
    assert tree(archive.parent) == before and "\n" not in str(caught.value) and "fix:" in str(caught.value)
    return str(caught.value)


def test_what_is_needed_goes_over_bit_for_bit_and_nothing_else(out: Path, tmp_path: Path) -> None:
    carried, said = carry(out, tmp_path / "there")
    wanted = needed(out)
    assert len(wanted) == 7 and tree(tmp_path / "there") == wanted and said == []
    assert dict(carried.files) == {"records": 3, "artefacts": 3, "checkpoints": 1}
    assert carried.bytes == sum(map(len, wanted.values()))


def test_a_second_time_changes_nothing(out: Path, tmp_path: Path) -> None:
    carry(out, tmp_path / "there")
    carried, said = carry(out, tmp_path / "there")
    assert (carried.files.total(), carried.there, said) == (0, 7, [])


def test_commands_say_what_went_over(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, there = str(tmp_path / "it.tar"), str(tmp_path / "there")
    assert main(["pack", str(out), archive]) == 0 and main(["unpack", archive, there]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("records 3, artefacts 3, checkpoints 1; ") and first.endswith(archive)
    assert second.endswith(there)
    assert main(["unpack", archive, there]) == 0
    assert "7 were there already" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "nowhere"), archive]) == 2
    assert "no records and nothing stored" in capsys.readouterr().err


# Merging


def test_a_folder_with_other_work_keeps_it(out: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    write(there, cell("bp", "none", [1.0]))
    Store(there / "store").put("poisons", OTHER, tensors(), {})
    before = tree(there)
    carry(out, there)
    assert tree(there) == before | needed(out)


def changed(record: Record, **changes: Any) -> Record:
    return {**record, **changes}  # type: ignore[typeddict-item]


def test_the_same_trial_made_twice_stays_as_it_is_there(out: Path, tmp_path: Path) -> None:
    """It took another time, on another day."""
    there = tmp_path / "there"
    write(there, [changed(one, seconds={"train": 9.0}) for one in cell("gm", "none", [1.0, 0.0])])
    Store(there / "store").put("poisons", KEY, tensors(), {"seconds": 99.0})
    before = tree(there)
    carried, _ = carry(out, there)
    assert carried.there == 3 and tree(there) == needed(out) | before


def test_a_failed_record_gives_way_to_a_finished_one_and_never_the_other_way_round(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, cell("gm", "none", [1.0, None]))
    write(other, cell("gm", "none", [None, 0.0]))
    both = cell("gm", "none", [1.0, 0.0])
    carry(one, other)
    assert list(Records(other / "records").all()) == both
    carry(other, one)
    assert list(Records(one / "records").all()) == both


@pytest.mark.parametrize(("here", "there"), [(3.0, 8.0), (8.0, 3.0)])
def test_of_two_checkpoints_of_one_work_the_one_that_is_further_stays(
    tmp_path: Path, here: float, there: float
) -> None:
    for name, seconds in (("one", here), ("other", there)):
        Store(tmp_path / name / "store").put("checkpoints", CHECKPOINT, tensors(seconds), {"seconds": seconds})
    carry(tmp_path / "one", tmp_path / "other")
    kept = Store(tmp_path / "other" / "store").get("checkpoints", CHECKPOINT)
    assert kept is not None and kept.meta == {"seconds": 8.0} and kept.tensors["images"][0, 0] == 8.0


@pytest.mark.parametrize("what", ["record", "poisons"])
def test_other_results_for_the_same_key_are_refused_and_nothing_is_written(
    out: Path, tmp_path: Path, what: str
) -> None:
    there = tmp_path / "there"
    if what == "record":  # the last one: others would have been written before it
        last = cell("gm", "none", [1.0, 0.0])[1]
        write(there, [changed(last, success=1.0)])
    else:
        Store(there / "store").put("poisons", KEY, tensors(0.25), {})
    pack(out, tmp_path / "it.tar", print)
    assert "it holds other results" in refused(tmp_path / "it.tar", there)


def test_a_damaged_file_is_left_out_and_set_aside_aloud(out: Path, tmp_path: Path) -> None:
    sound, there = needed(out), tmp_path / "there"
    carry(out, there)
    for folder, names in ((out, sorted(sound)[:1]), (there, sorted(sound)[-1:])):
        (path,) = (folder / name for name in names)
        path.write_bytes(path.read_bytes().replace(b"seconds", b"sEconds"))
    carried, said = carry(out, there)
    assert len(said) == 2 and "is left out" in said[0] and "takes its place" in said[1]
    assert needed(there) == sound and len(list(there.rglob("*.damaged"))) == 1
    assert dict(carried.files) == {"artefacts": 1}


def test_nothing_is_unpacked_into_a_folder_that_a_command_works_on(out: Path, tmp_path: Path) -> None:
    pack(out, tmp_path / "it.tar", print)
    there = tmp_path / "there"
    with scratch_folder(there):
        assert "a command works on" in refused(tmp_path / "it.tar", there)
    unpack(tmp_path / "it.tar", there, print)
    assert tree(there) == needed(out)


def test_one_may_pack_while_a_command_works_there(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint goes when its work ends; the archive is whole without it."""
    read = files.read_regular

    def ends(path: Path, *more: Any) -> bytes:
        for checkpoint in out.glob("store/checkpoints/*/*"):
            checkpoint.unlink()
        return read(path, *more)

    monkeypatch.setattr(files, "read_regular", ends)
    with scratch_folder(out):
        carried = pack(out, tmp_path / "it.tar", pytest.fail)
    assert dict(carried.files) == {"records": 3, "artefacts": 3}
    unpack(tmp_path / "it.tar", tmp_path / "there", print)
    assert tree(tmp_path / "there") == needed(out)


def test_a_pack_that_is_interrupted_leaves_the_old_archive(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(out, tmp_path / "it.tar", print)
    before = tree(tmp_path)
    read, calls = files.read_regular, []

    def interrupted(path: Path, *more: Any) -> bytes:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(path, *more)

    monkeypatch.setattr(files, "read_regular", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(out, tmp_path / "it.tar", print)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, DiskFull])
def test_an_unpack_that_is_stopped_goes_on_when_it_is_started_again(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    pack(out, tmp_path / "it.tar", print)
    write, calls = files.write_bytes, []

    def stopped(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise stop("")
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", stopped)
    with pytest.raises(stop):
        unpack(tmp_path / "it.tar", tmp_path / "there", print)
    assert len(tree(tmp_path / "there")) == 3
    assert unpack(tmp_path / "it.tar", tmp_path / "there", print).there == 3
    assert tree(tmp_path / "there") == needed(out)


def test_a_disk_that_is_full_leaves_the_old_archive_and_nothing_beside_it(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "it.tar"
    pack(out, archive, print)
    (tmp_path / ".it.tar.0123abcd.tmp").touch()  # of one that was killed
    before = tree(out), archive.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["pack", str(out), str(archive)]) == 2
    assert "disk full: cannot write" in capsys.readouterr().err
    assert (tree(out), archive.read_bytes()) == before and sorted(os.listdir(tmp_path)) == ["it.tar", "out"]


@pytest.mark.parametrize("what", ["a text", "a folder", "a pipe", "an empty file"])
def test_what_is_no_archive_is_never_replaced(out: Path, tmp_path: Path, what: str) -> None:
    file = tmp_path / "it"
    if what == "a folder":
        file.mkdir()
    elif what == "a pipe":
        os.mkfifo(file)
    else:
        file.write_text("precious" if what == "a text" else "")
    with pytest.raises(BadInput, match=f"^pack: '{file}' is there and is no archive; fix: [^\n]*$"):
        pack(out, file, print)
    assert sorted(os.listdir(tmp_path)) == ["it", "out"] and not (
        file.is_file() and len(file.read_bytes()) not in (0, 8)
    )


def test_where_there_is_not_room_for_all_the_records_come_first_and_the_rest_is_said(out: Path, tmp_path: Path) -> None:
    Store(out / "store").put("poisons", OTHER, tensors(n=10_000), {})
    Store(out / "store").put("networks", OTHER, tensors(n=100_000), {})
    archive, said = tmp_path / "it.tar", list[str]()
    carried = pack(out, archive, said.append, most=400_000)
    assert dict(carried.files) == {"records": 3, "artefacts": 4, "checkpoints": 1}
    assert archive.stat().st_size <= 400_000 and said == [
        "1 files are left out, for which 0.4 MiB are too little; they are made again where needed"
    ]
    unpack(archive, tmp_path / "there", print)
    lacking = needed(out).keys() - needed(tmp_path / "there").keys()
    assert lacking == {f"store/networks/cd/{OTHER}.safetensors"}


def test_what_is_finished_elsewhere_needs_its_checkpoint_no_more(tmp_path: Path) -> None:
    """Neither that of a record nor that of an artefact; that of other work stays."""
    here, there, (one,) = tmp_path / "here", tmp_path / "there", cell("gm", "none", [1.0])
    write(there, [one])
    Store(there / "store").put("poisons", KEY, tensors(), {})
    for key in (one["key"], KEY, OTHER):
        Store(here / "store").put("checkpoints", f"{key}-{'1f' * 12}-1", tensors(), {"seconds": 3.0})
    carry(there, here)
    assert [path.name for path in here.glob("store/checkpoints/*/*")] == [f"{CHECKPOINT}.safetensors"]


# Archives that are not as they were written


@pytest.mark.parametrize("seed", range(6))
def test_whichever_byte_is_changed_or_missing_it_is_refused_or_the_same(out: Path, tmp_path: Path, seed: int) -> None:
    archive, chance, wanted = tmp_path / "it.tar", random.Random(seed), needed(out)
    pack(out, archive, print)
    whole = archive.read_bytes()
    for number in range(20):
        place = chance.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        archive.write_bytes(whole[:place] if number % 2 else bytes(changed))
        there = tmp_path / f"there {number}"
        try:
            unpack(archive, there, print)
        except BadInput:
            assert not there.exists()
        else:
            assert tree(there) == wanted


Member = tuple[str | tarfile.TarInfo, bytes]


def forged(path: Path, members: Sequence[Member], end: bool = True) -> Path:
    """A tar file with an end as `pack` writes it."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        count = json.dumps({"files": len(members)}).encode()
        for name, data in [*members, *([(END, count)] if end else [])]:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def of_type(kind: bytes, to: str = "") -> Callable[[str], tarfile.TarInfo]:
    def make(name: str) -> tarfile.TarInfo:
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, to
        return header

    return make


GOOD = record("gm", "none", 0, 1.0)
DATA = sealed(GOOD)
NAME = Records(Path("records")).path(GOOD).as_posix()
STORED = f"store/poisons/ab/{KEY}.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        f"/tmp/{NAME}", f"../{NAME}", f"records/../{NAME}", f"./{NAME}", NAME.replace("gm", ".."),
        NAME.replace("gm", ""), NAME.replace("gm", ".gm"), NAME.replace("gm", "gm\n"), NAME.replace("gm", "bp"),
        NAME + "\n", "records/x.json",
        "mlflow.db", "images/x.png", "store/locks/x.lock", "scratch/x/owner", NAME.replace("records", "Records"),
        NAME.replace("0000-", "0001-"), NAME.replace(".json", ".damaged"), "", "x" * 300, STORED,
    ],
)  # fmt: skip
def test_a_record_is_taken_under_its_own_name_only(tmp_path: Path, name: str) -> None:
    assert unpack(forged(tmp_path / "good.tar", [(NAME, DATA)]), tmp_path / "good", print).files["records"] == 1
    refused(forged(tmp_path / "it.tar", [(name, DATA)]), tmp_path / "there")


@pytest.mark.parametrize(
    "name",
    [
        STORED.replace(f"{KEY}", OTHER), f"store/poisons/cd/{OTHER}.safetensors", STORED.replace("/ab/", "/cd/"),
        STORED.replace("poisons", "networks"), STORED.replace("poisons", "checkpoints"), STORED.replace("poisons", "x"),
        STORED.replace(KEY, CHECKPOINT), f"store/poisons/ab/../ab/{KEY}.safetensors", NAME,
    ],
)  # fmt: skip
def test_an_artefact_is_taken_under_its_own_key_only(tmp_path: Path, name: str) -> None:
    data = encode(tensors(), {}, f"poisons/{KEY}")
    assert unpack(forged(tmp_path / "good.tar", [(STORED, data)]), tmp_path / "good", print).files["artefacts"] == 1
    refused(forged(tmp_path / "it.tar", [(name, data)]), tmp_path / "there")


@pytest.mark.parametrize(
    "header",
    [
        of_type(tarfile.SYMTYPE, "/etc/passwd"), of_type(tarfile.LNKTYPE, "/etc/passwd"), of_type(tarfile.CHRTYPE),
        of_type(tarfile.BLKTYPE), of_type(tarfile.FIFOTYPE), of_type(tarfile.DIRTYPE),
    ],
    ids=["link", "hard link", "device", "disk", "pipe", "folder"],
)  # fmt: skip
def test_only_files_are_taken(tmp_path: Path, header: Callable[[str], tarfile.TarInfo]) -> None:
    assert "no file" in refused(forged(tmp_path / "it.tar", [(header(NAME), b"")]), tmp_path / "there")


def test_a_link_does_not_carry_what_comes_after_it_outside(tmp_path: Path) -> None:
    link = of_type(tarfile.SYMTYPE, str(tmp_path / "outside"))("records")
    refused(forged(tmp_path / "it.tar", [(link, b""), (NAME, DATA)]), tmp_path / "there")


def test_a_size_that_the_archive_does_not_have_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo(NAME)
    for size in (2**33, 2**62, 10**6):
        header.size = size
        text = header.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "it.tar").write_bytes(text + DATA)
        refused(tmp_path / "it.tar", tmp_path / "there")


def test_a_size_below_nothing_does_not_send_the_reader_back(tmp_path: Path) -> None:
    """It would read the same member for ever."""
    header = tarfile.TarInfo(NAME)
    header.size, header.pax_headers = len(DATA), {"size": "-1024"}
    forged(tmp_path / "it.tar", [(header, DATA)])
    refused(tmp_path / "it.tar", tmp_path / "there")


def test_files_with_holes_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo(NAME)
    header.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.realsize": str(2**40)}
    refused(forged(tmp_path / "it.tar", [(header, DATA)]), tmp_path / "there")


@pytest.mark.parametrize("ending", ["none", "more", "later", "twice"])
def test_an_archive_without_its_own_end_is_refused(tmp_path: Path, ending: str) -> None:
    ends = {"more": {"files": 2}, "later": {"format": 2, "files": 1}}
    members: list[Member] = [(NAME, DATA)] * (2 if ending == "twice" else 1)
    if ending in ends:
        members.append((END, json.dumps(ends[ending]).encode()))
    refused(forged(tmp_path / "it.tar", members, end=ending == "twice"), tmp_path / "there")


@pytest.mark.parametrize("what", ["missing", "text", "empty", "folder", "pipe", "compressed"])
def test_what_is_no_archive_is_one_line(tmp_path: Path, what: str) -> None:
    archive = tmp_path / "it.tar"
    if what == "text":
        archive.write_text("[]")
    elif what == "empty":
        archive.touch()
    elif what == "folder":
        archive.mkdir()
    elif what == "pipe":
        os.mkfifo(archive)
    elif what == "compressed":
        with tarfile.open(archive, "w:gz"):
            pass
    with pytest.raises(BadInput, match="^archive '.*; fix: [^\n]*$"):
        unpack(archive, tmp_path / "there", print)
    assert not (tmp_path / "there").exists()
