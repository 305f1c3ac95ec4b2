import errno
import json
import os
import subprocess
import sys

import pytest

from holdfast.errors import UserError
from holdfast.files import atomic_path, read_json, sha256_of, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_killed_write_never_shows_under_the_final_name(tmp_path):
    path = tmp_path / "b.bin"
    code = f"""
import os, signal
from holdfast.files import atomic_path
with atomic_path({str(path)!r}) as t:
    t.write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not path.exists()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        write_bytes(tmp_path / "c", b"1")
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_needed_is_one_sentence(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_bytes(tmp_path / "f" / "g", b"")


def test_json_refuses_nan_and_reports_broken_files(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x", float("nan"))
    (tmp_path / "broken").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path / "broken")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "missing")


def test_sha256(tmp_path):
    write_bytes(tmp_path / "e", b"")
    assert sha256_of(tmp_path / "e").startswith("e3b0c44298fc1c14")


def test_published_files_have_ordinary_permissions(tmp_path):
    write_bytes(tmp_path / "p", b"")
    plain = tmp_path / "q"
    plain.write_bytes(b"")
    assert (tmp_path / "p").stat().st_mode == plain.stat().st_mode
