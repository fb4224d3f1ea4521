import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import StoreError, TransientError
from infra.node_files import local_file, local_folder, share, share_folder
from infra.object_store import ObjectPath
from infra.storage import StorePaths, write_bytes
from tests.infra.s3_server import Fault, S3Server

READ = """
import sys
from infra.node_files import local_file
from infra.object_store import object_path
with local_file(object_path(sys.argv[1])) as file:
    print(file.read_bytes().decode())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SUPERSCENE_CACHE", str(folder))
    return folder


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != "lock")


def test_a_file_of_this_machine_is_taken_as_it_is(tmp_path: Path, cache: Path) -> None:
    with local_file(tmp_path / "a.safetensors") as file:
        assert file == tmp_path / "a.safetensors"
    assert not cache.exists()


def test_processes_of_a_node_fetch_an_object_once(s3: S3Server, s3_folder: ObjectPath, cache: Path) -> None:
    path = s3_folder / "a.safetensors"
    write_bytes(path, b"weights")
    s3.requests.clear()
    processes = [
        subprocess.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["weights"] * 3
    assert s3.count("GET", "a.safetensors") == 1
    with local_file(path) as file:
        assert (file.read_bytes(), file.name) == (b"weights", "a.safetensors")
    assert s3.count("GET", "a.safetensors") == 1
    assert copies(cache) == ["a.safetensors"]


def test_an_object_that_was_written_anew_is_fetched_anew(s3_folder: ObjectPath) -> None:
    path = s3_folder / "a"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        with local_file(path) as file:
            assert file.read_bytes() == content


def test_what_was_not_used_for_days_is_removed(s3_folder: ObjectPath, cache: Path) -> None:
    for name in ("a", "b", "c"):
        write_bytes(s3_folder / name, name.encode())
    for name in ("a", "b"):
        with local_file(s3_folder / name) as file:
            os.utime(file, (time.time() - 3 * 86400,) * 2)
    with local_file(s3_folder / "b"):  # used again
        pass
    with local_file(s3_folder / "c"):
        assert copies(cache) == ["b", "c"]
        assert len([path for path in (cache / "objects").iterdir() if path.is_dir()]) == 2, "folders go, too"
    with local_file(s3_folder / "a") as file:
        assert file.read_bytes() == b"a"


def test_processes_that_want_others_and_sweep_do_not_meet(s3_folder: ObjectPath, cache: Path) -> None:
    """Four at once, each of another object, with much that is old around them."""
    names = ("a", "b", "c", "d")
    for name in names:
        write_bytes(s3_folder / name, name.encode())

    def read(name: str) -> bytes:
        with local_file(s3_folder / name) as file:
            return file.read_bytes()

    (cache / "objects").mkdir(parents=True)
    (cache / "objects" / "a file").touch()
    for _ in range(5):
        for i in range(60):
            place = cache / "objects" / f"{i:03d}"
            place.mkdir()
            for old in range(i % 3):  # some were emptied
                (place / str(old)).touch()
                os.utime(place / str(old), (time.time() - 3 * 86400,) * 2)
        for copy in (cache / "objects").glob("*/[abcd]"):
            copy.unlink()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, names)) == [b"a", b"b", b"c", b"d"]
        kept = [path for path in (cache / "objects").iterdir() if path.is_dir()]
        assert len(kept) <= 4
        assert copies(cache) == ["a", "a file", "b", "c", "d"]


def test_what_cannot_be_fetched_leaves_nothing(s3: S3Server, s3_folder: ObjectPath, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no s3://"), local_file(s3_folder / "none"):
        pass
    write_bytes(s3_folder / "a", b"weights")
    s3.faults.append(Fault("status", 503, method="GET", times=1000))
    with pytest.raises(TransientError, match="503"), local_file(s3_folder / "a"):
        pass
    assert copies(cache) == []
    s3.faults.clear()
    cache.rename(cache.with_name("moved"))
    cache.write_text("a file")
    with pytest.raises(StoreError, match="a part of the path is a file"), local_file(s3_folder / "a"):
        pass


def test_weights_are_put_into_the_store_once(tmp_path: Path, s3: S3Server, s3_folder: ObjectPath) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    digest = "9a129038d9a00aed"  # of sha256sum
    place = share(file, StorePaths(s3_folder))
    assert str(place) == f"{s3_folder}/work/weights/{digest}/model.safetensors"
    s3.requests.clear()
    assert share(file, StorePaths(s3_folder)) == place
    assert s3.count("PUT") == 0
    with local_file(place) as copy:
        assert copy.read_bytes() == b"weights"
    assert share(place, StorePaths(tmp_path / "store")) == place, "all nodes have an object"
    here = share(file, StorePaths(tmp_path / "store"))
    assert here == tmp_path / "store" / "work" / "weights" / digest / "model.safetensors"
    assert share(here, StorePaths(tmp_path / "store")) == here, "and what lies in the store"
    file.write_bytes(b"others")
    assert share(file, StorePaths(tmp_path / "store")).parent != here.parent


def test_a_folder_of_weights_goes_the_same_way(
    tmp_path: Path, s3: S3Server, s3_folder: ObjectPath, cache: Path
) -> None:
    """Only the files that are named, in their folders; put once, fetched once, whatever the process."""
    folder = tmp_path / "official"
    for name in ("unet/model", "tags.txt", "readme"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    files = [Path("tags.txt"), Path("unet/model")]
    place = share_folder(folder, files, "c0ffee" * 8, StorePaths(s3_folder))
    assert str(place) == f"{s3_folder}/work/weights/c0ffeec0ffeec0ff/official"
    s3.requests.clear()
    assert share_folder(folder, files, "c0ffee" * 8, StorePaths(s3_folder)) == place
    assert s3.count("PUT") == 0
    for _ in range(2):
        with local_folder(place) as copy:
            assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == {*files}
            assert [(copy / file).read_text() for file in files] == ["tags.txt", "unet/model"]
    assert s3.count("GET", "unet/model") == 1
    assert share_folder(place, files, "c0ffee" * 8, StorePaths(tmp_path / "store")) == place
    here = share_folder(folder, files, "c0ffee" * 8, StorePaths(tmp_path / "store"))
    with local_folder(here) as copy:
        assert copy == here == tmp_path / "store" / "work" / "weights" / "c0ffeec0ffeec0ff" / "official"
    with pytest.raises(FileNotFoundError, match="there is nothing below s3://"), local_folder(s3_folder / "none"):
        pass


def test_a_folder_that_lost_a_file_gets_it_again(s3_folder: ObjectPath, cache: Path) -> None:
    for name in ("a", "inside/b"):
        write_bytes(s3_folder / name, name.encode())
    with local_folder(s3_folder) as copy:
        (copy / "inside" / "b").unlink()
        os.utime(copy / "a", (time.time() - 3 * 86400,) * 2)
    with local_folder(s3_folder) as copy:
        assert [(copy / name).read_text() for name in ("a", "inside/b")] == ["a", "inside/b"]
