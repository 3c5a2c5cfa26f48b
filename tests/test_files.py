import errno
import os
import resource
import stat
import subprocess
import sys
import time

import pytest

from fastgen import files
from fastgen.files import atomic


def put(path, data=b"new"):
    with atomic(path) as file:
        file.write(data)


def only(folder):
    """The names in `folder`: a temporary file left behind would be one more."""
    return sorted(name.name for name in folder.iterdir())


@pytest.mark.parametrize("convert", [str, os.fsencode, lambda path: path])
def test_writes_a_new_file_and_replaces_an_old_one(tmp_path, convert):
    path = tmp_path / "a file"
    put(convert(path), b"old")
    put(convert(path), b"new")
    assert path.read_bytes() == b"new"
    assert only(tmp_path) == ["a file"]


def test_writes_into_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put("a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError(5, "read")])
def test_an_exception_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a"
    put(path, b"old")

    def write():
        with atomic(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        write()
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["a"]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with atomic(tmp_path / "a"):
            (tmp_path / "b").read_bytes()
    assert caught.value.filename == str(tmp_path / "b")
    assert only(tmp_path) == []


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "a"
    put(path, b"old")
    with atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_of_two_writers_the_last_to_end_wins(tmp_path):
    path = tmp_path / "a"
    with atomic(path) as outer:
        with atomic(path) as inner:
            outer.write(b"outer")
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    assert only(tmp_path) == ["a"]


def test_syncs_the_file_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "a"
    synced = []
    fsync = os.fsync

    def record(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if folder else os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    put(path, b"12345")
    assert synced == [(5, False), ("folder", True)]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    put(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"No space left on device.*name") as caught:
        put(tmp_path / "name")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "name")
    assert only(tmp_path) == []


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    path = tmp_path / "a"
    put(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            put(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["a"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    # run as a script, so that the child need not import torch
    code = (
        "import itertools, runpy, sys\n"
        "atomic = runpy.run_path(sys.argv[1])['atomic']\n"
        "for n in itertools.count():\n"
        "    with atomic(sys.argv[2]) as file:\n"
        "        for _ in range(64):\n"
        "            file.write(bytes([n % 256]) * 4096)\n"
    )
    path = tmp_path / "a"
    for wait in (0.0, 0.003, 0.011, 0.02):
        child = subprocess.Popen([sys.executable, "-c", code, files.__file__, path])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(wait)
        child.kill()
        child.wait()
        data = path.read_bytes()
        assert data == data[:1] * 64 * 4096
        path.unlink()


def test_a_new_file_gets_the_usual_mode(tmp_path):
    previous = os.umask(0o027)
    try:
        put(tmp_path / "a")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "a"
    put(path)
    path.chmod(0o600)
    put(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_stays_and_its_target_is_replaced(tmp_path, exists):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    link = tmp_path / "link"
    link.symlink_to("far/target")
    if exists:
        put(target, b"old")
    put(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert only(tmp_path) == ["far", "link"]
    assert only(tmp_path / "far") == ["target"]


@pytest.mark.parametrize("name", ["", "folder", "folder/", "absent/", "folder/.."])
def test_refuses_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        put(name)
    assert caught.value.filename == name
    assert only(tmp_path) == ["folder"]


def test_refuses_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop"):
        with pytest.raises(OSError, match=r"regular file.*" + name):
            put(tmp_path / name)
    assert only(tmp_path) == ["loop", "pipe"]


@pytest.mark.parametrize("name", ["absent/a", "file/a"])
def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path, name):
    put(tmp_path / "file")
    with pytest.raises(OSError, match=name) as caught:
        put(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert only(tmp_path) == ["file"]
