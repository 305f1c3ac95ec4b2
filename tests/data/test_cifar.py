import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from holdfast.data.cifar import OFFICIAL, Official, cifar, is_here
from holdfast.data.download import download
from holdfast.errors import UserError
from holdfast.run import Run

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
TEST = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
COARSE, FINE = np.arange(8) // 4, np.arange(8) % 3


def records(images, *labels):
    heads = np.stack([label[: len(images)] for label in labels], 1).astype(np.uint8)
    return np.concatenate([heads, images.reshape(len(images), -1)], 1).tobytes()


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


CONTENT = archive(
    {
        "names.txt": b"ant\nbee\ncow\n\n",
        "b.bin": records(TRAIN[4:], COARSE[4:], FINE[4:]),
        "a.bin": records(TRAIN[:4], COARSE, FINE),
        "test.bin": records(TEST, COARSE, FINE),
        "readme.html": b"nothing",
    }
)


def official(url, content=CONTENT):
    return Official(
        url=url,
        md5=hashlib.md5(content).hexdigest(),
        labels=("coarse", "label"),
        train=("a.bin", "b.bin"),
        test=("test.bin",),
        names="names.txt",
    )


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    (root / "cifar.tar.gz").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/cifar.tar.gz"
        running.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    return tmp_path


def matches(data):
    return (
        data.classes == ("ant", "bee", "cow")
        and np.array_equal(data.train.x.numpy(), TRAIN)
        and np.array_equal(data.test.x.numpy(), TEST)
        and data.train.y.tolist() == FINE.tolist()
        and data.train.columns["coarse"].tolist() == COARSE.tolist()
    )


def test_the_archive_is_downloaded_once_checked_and_packed_without_loss(home, server):
    data = cifar("cifar100", run=Run(), official=official(server))
    assert matches(data)
    assert sorted(p.name for p in (home / "cache" / "data" / "cifar100").iterdir()) == ["test.parquet", "train.parquet"]
    assert matches(cifar("cifar100", run=Run(), official=official("http://127.0.0.1:9/gone.tar.gz")))


def test_a_wrong_checksum_is_refused_and_leaves_nothing(home, server):
    with pytest.raises(UserError, match=r"has the checksum .* the download was discarded"):
        cifar("cifar100", run=Run(), official=official(server, b"something else"))
    assert list((home / "cache" / "data" / "cifar100").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.tar.gz", "http://nowhere.invalid/x.tar.gz"])
def test_without_a_network_one_sentence_says_where_to_put_the_files(home, url, monkeypatch):
    monkeypatch.setenv("HOLDFAST_DATA", str(home / "mine"))
    with pytest.raises(UserError, match=r"cannot be downloaded.*put x.tar.gz, or train.parquet and") as caught:
        cifar("cifar10", run=Run(), official=official(url))
    assert str(home / "mine" / "cifar10") in str(caught.value)


def test_a_missing_page_is_refused(home, server):
    with pytest.raises(UserError, match="404"):
        download(server + "x", home / "x", md5="", run=Run())
    assert not (home / "x").exists()


def test_an_archive_put_in_place_by_hand_is_used(home, monkeypatch):
    monkeypatch.setenv("HOLDFAST_DATA", str(home / "mine"))
    (home / "mine" / "cifar100").mkdir(parents=True)
    assert not is_here("cifar100")
    (home / "mine" / "cifar100" / OFFICIAL["cifar100"].file).write_bytes(CONTENT)
    assert is_here("cifar100")
    here = official(f"http://127.0.0.1:9/{OFFICIAL['cifar100'].file}")
    assert matches(cifar("cifar100", run=Run(), official=here))
    (home / "mine" / "cifar10").mkdir()
    (home / "mine" / "cifar10" / "cifar.tar.gz").write_bytes(CONTENT[:-50])
    with pytest.raises(UserError, match="not the official archive, or not whole"):
        cifar("cifar10", run=Run(), official=official("http://127.0.0.1:9/cifar.tar.gz"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"names.txt": b"a"}, "lacks a.bin"),
        ({"names.txt": b"a", "a.bin": b"123", "b.bin": b"", "test.bin": b""}, "is not made of records"),
    ],
)
def test_an_archive_with_other_contents_is_refused(home, server, files, message):
    content = archive(files)
    (home / "served" / "cifar.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        cifar("cifar10", run=Run(), official=official(server, content))


def test_the_published_archives_are_those_without_pickles():
    assert {name: (o.file, o.md5) for name, o in OFFICIAL.items()} == {
        "cifar10": ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "cifar100": ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    }
