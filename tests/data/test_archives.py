import io
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import load_data
from holdfast.data.archives import Limits, extracted
from holdfast.errors import UserError


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"pets/{name}/{i}.png": png(10 * k + i) for k, name in enumerate(("cat", "dog")) for i in range(8)}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"])
def test_an_archive_of_a_folder_loads_like_the_folder(tmp_path, name):
    path = tmp_path / name
    if name == "a.zip":
        write_zip(path, FILES)
    else:
        write_tar(path, FILES, {"tar": "w", "gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}[path.suffix[1:]])
    data = load_data(str(path))
    assert data.name == "a"
    assert data.classes == ("cat", "dog")
    for name_, content in FILES.items():
        (tmp_path / "plain" / name_).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name_).write_bytes(content)
    assert torch.equal(data.test.x, load_data(str(tmp_path / "plain" / "pets")).test.x)


def test_an_archive_is_extracted_once_until_it_changes(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    first = extracted(path)
    stamp = (first / "cat" / "0.png").stat().st_mtime_ns
    assert extracted(path) == first
    assert (first / "cat" / "0.png").stat().st_mtime_ns == stamp
    write_zip(path, {**FILES, "pets/cat/new.png": png(99)})
    assert extracted(path) != first


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "pets/../../evil.png", "pets\\..\\evil.png"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_paths_that_lead_outside_are_refused_and_nothing_is_kept(tmp_path, cache, name, write):
    path = write(tmp_path / ("a.zip" if write is write_zip else "a.tar.gz"), {**FILES, name: b"evil"})
    with pytest.raises(UserError, match="a path that leads outside"):
        load_data(str(path))
    assert list((cache / "extracted").iterdir()) == []
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", FILES, "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("pets/cat/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match="is a link or device"):
        load_data(str(path))


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("pets/cat/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or device"):
        load_data(str(path))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_bomb_is_stopped_by_what_comes_out_of_it(tmp_path, write):
    path = write(tmp_path / ("a.zip" if write is write_zip else "a.tar.gz"), {"pets/cat/0.png": bytes(2**24)})
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):
        extracted(path, Limits(free=2**20, ratio=10))


def test_a_size_that_the_header_lies_about_does_not_help_a_bomb(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"pets/cat/0.png": bytes(2**24)})
    content = path.read_bytes()
    lie = content.replace((2**24).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != content
    path.write_bytes(lie)
    with pytest.raises(UserError):
        extracted(path, Limits(free=2**20, ratio=10))


def test_too_many_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="more than 3 files"):
        extracted(write_zip(tmp_path / "a.zip", FILES), Limits(count=3))


def test_damaged_and_encrypted_archives_are_refused(tmp_path, cache):
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="cannot be read as an archive"):
        load_data(str(tmp_path / "a.zip"))
    path = write_tar(tmp_path / "b.tar.gz", FILES)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match="cannot be read as an archive"):
        load_data(str(path))
    path = write_zip(tmp_path / "c.zip", FILES)
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\x01\x02")
    while start >= 0:  # the flag that says: encrypted
        content[start + 8] |= 1
        start = content.find(b"PK\x01\x02", start + 1)
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        load_data(str(path))
    assert list((cache / "extracted").iterdir()) == []


def test_content_that_fails_its_checksum_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("pets/cat/0.png", b"A" * 1000)
    content = path.read_bytes()
    assert zlib.crc32(b"A" * 1000) != zlib.crc32(b"B" * 1000)
    path.write_bytes(content.replace(b"A" * 1000, b"B" * 1000))
    with pytest.raises(UserError, match="cannot be read as an archive"):
        load_data(str(path))


def test_two_files_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("pets/cat/0.png", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("pets/cat/0.png", b"two")
    with pytest.raises(UserError, match="twice"):
        load_data(str(tmp_path / "a.zip"))
