import io
import os
import pickle
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pytest

from infra import object_store
from infra.errors import ConfigError, StoreError, TransientError
from infra.object_store import ObjectPath, RangeReader, object_path, put, put_if, version
from tests.infra.s3_server import ACCESS_KEY, BUCKET, SECRET, TOKEN, Fault, S3Server


def by_boto(server: S3Server) -> "boto3.S3Client":
    return boto3.client("s3", endpoint_url=server.url)  # an S3 client that is not ours


def test_paths_behave_as_names_of_files_do() -> None:
    root = object_path("s3://some.bucket/a//b/")
    path = root / "work" / "part-00001.parquet"
    assert str(path) == "s3://some.bucket/a/b/work/part-00001.parquet"
    assert (path.key, path.name, path.stem, path.suffix) == (
        "a/b/work/part-00001.parquet",
        "part-00001.parquet",
        "part-00001",
        ".parquet",
    )
    assert str(path.relative_to(root)) == "work/part-00001.parquet"
    assert str(path.with_name("x")) == "s3://some.bucket/a/b/work/x"
    assert path.parent.parent == root
    assert root.resolve() is root
    assert sorted([path, root]) == [root, path]
    again = pickle.loads(pickle.dumps(path))
    assert isinstance(again, ObjectPath)
    assert again == path
    assert str(object_path("gs://bkt")) == "gs://bkt"


def test_what_a_folder_of_this_machine_can_and_an_object_cannot_is_refused() -> None:
    path = object_path("s3://bucket/a")
    uses: list[Callable[[], object]] = [
        lambda: os.listdir(path),  # noqa: PTH208  # as a library would
        path.touch,
        path.stat,
        path.is_symlink,
        lambda: path.rename("b"),
    ]
    for use in uses:
        with pytest.raises(TypeError, match="s3://bucket/a lies on object storage"):
            use()
    with pytest.raises(ValueError, match="written whole"):
        path.write_text("x")


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{ACCESS_KEY}:{SECRET}@bucket/prefix",
        f"s3://user:{SECRET}@bucket",
        f"s3://bucket/prefix?secret={SECRET}",
        f"gs://bucket/prefix#{SECRET}",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials come from the environment") as caught:
        object_path(url)
    assert SECRET not in str(caught.value)
    assert ACCESS_KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///a",
        "S3://bucket",
        "s3://B/a",
        "s3://bucket/../a",
        "s3://bucket/a/./b",
        "s3://bucket/a\nb",
        "s3://bucket/a%2e",
        "http://bucket/a",
        "s3://bucket/ä",
        "s3://bucket/a*",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        object_path(url)


def test_objects_are_what_another_client_sees(s3: S3Server, s3_folder: ObjectPath) -> None:
    client = by_boto(s3)
    path = s3_folder / "a" / "b=1" / "naïve +.txt"
    put(path, "naïve\n".encode())
    assert client.get_object(Bucket=BUCKET, Key=path.key)["Body"].read() == b"na\xc3\xafve\n"
    client.put_object(Bucket=BUCKET, Key=path.key, Body=b"2\r\n")
    assert path.read_bytes() == b"2\r\n"
    assert path.read_text() == "2\n"
    assert [path.exists(), path.is_file(), path.is_dir()] == [True, True, False]
    assert [s3_folder.exists(), s3_folder.is_file(), s3_folder.is_dir()] == [True, False, True]
    assert not (s3_folder / "a" / "b=").exists()  # the beginning of a name is no folder
    path.unlink()
    assert not s3_folder.exists()
    path.unlink(missing_ok=True)
    for missing in (path.unlink, path.read_bytes, lambda: path.open("rb"), lambda: version(path)):
        with pytest.raises(FileNotFoundError, match="there is no s3://"):
            missing()


def test_names_are_found_as_pathlib_finds_them(s3_folder: ObjectPath, tmp_path: Path) -> None:
    names = ["x", "a/part-1.parquet", "a/part-10.parquet", "a/part-1.json", "a/b/part-1.parquet", "b/k=1/d.parquet",
             "b/k=2/d.parquet", "b/k=2/e.parquet", "c/seed-1/d.parquet"]  # fmt: skip
    for name in names:
        put(s3_folder / name, b"")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def relative(found: Iterable[Path], root: Path) -> list[str]:
        return sorted(str(path.relative_to(root)) for path in found)

    for pattern in (
        "*",
        "a/part-*.parquet",
        "*/d.parquet",
        "*/*/d.parquet",
        "b/k=[13]/*",
        "b/*",
        "?",
        "no/*",
        "a/part-1*",
    ):
        assert relative(s3_folder.glob(pattern), s3_folder) == relative(tmp_path.glob(pattern), tmp_path), pattern
    assert relative(s3_folder.rglob("*.parquet"), s3_folder) == relative(tmp_path.rglob("*.parquet"), tmp_path)
    assert relative((s3_folder / "a").iterdir(), s3_folder) == relative((tmp_path / "a").iterdir(), tmp_path)
    with pytest.raises(ValueError, match="rglob"):
        list(s3_folder.glob("**/x"))


def test_more_names_than_one_answer_holds_are_all_found(s3: S3Server, s3_folder: ObjectPath) -> None:
    s3.page = 10
    for i in range(35):
        put(s3_folder / f"part-{i:05d}", b"")
    s3.requests.clear()
    assert len(list(s3_folder.glob("part-*"))) == len(list(s3_folder.rglob("*"))) == 35
    assert s3.count("GET") == 2 * 4


def test_a_file_is_read_here_and_there(s3: S3Server, s3_folder: ObjectPath) -> None:
    content = bytes(range(256)) * 64
    put(s3_folder / "f", content)
    with (s3_folder / "f").open("rb", buffering=1000) as file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, io.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]
        assert file.read(1) == b""
        file.seek(0)
        s3.requests.clear()
        assert b"".join(iter(lambda: file.read(300), b"")) == content
        assert s3.count("GET") == -(-len(content) // 1000)
    put(s3_folder / "t", "a\nä\n".encode())
    with (s3_folder / "t").open() as text:
        assert text.readlines() == ["a\n", "ä\n"]
    assert RangeReader(s3_folder / "t").size() == 5


def test_a_large_object_appears_by_its_last_request(
    s3: S3Server, s3_folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_ONE_PUT", 2**24)
    content = bytes(2**24) + b"end"
    (tmp_path / "f").write_bytes(content)
    s3.faults.append(Fault("status", method="PUT", key="partNumber=2"))
    put(s3_folder / "f", tmp_path / "f")
    assert (s3_folder / "f").read_bytes() == content
    assert s3.count("PUT", "partNumber=") == 3 + 1
    s3.requests.clear()
    put(s3_folder / "g", content[: 2**24])
    assert s3.count("PUT") == len(s3.requests) == 1


FAULTS = [
    Fault("status", 500), Fault("status", 503, times=3), Fault("status", 429), Fault("cut", times=2), Fault("lost"),
    Fault("stall", seconds=1.5),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_what_may_pass_is_tried_again(
    s3: S3Server, s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    path = s3_folder / "f"
    if fault.kind == "stall":
        monkeypatch.setattr(object_store, "CLIENT", {"read_timeout": timedelta(seconds=1)})
        object_store.bucket.cache_clear()

    def again() -> None:
        s3.faults[:] = [Fault(**vars(fault))]

    again()
    put(path, b"content")
    assert s3.count("PUT") == 1 + fault.times
    again()
    assert path.read_bytes() == b"content"
    again()
    assert path.is_file()
    again()
    assert [found.name for found in s3_folder.glob("*")] == ["f"]
    again()
    assert put_if(s3_folder / "created", b"mine", None) == version(s3_folder / "created")
    again()
    path.unlink()
    assert not path.exists()


def test_an_answer_that_breaks_off_is_read_to_its_end(s3: S3Server, s3_folder: ObjectPath) -> None:
    content = bytes(range(256)) * 4096
    put(s3_folder / "f", content)
    s3.faults.append(Fault("half", method="GET"))
    assert (s3_folder / "f").read_bytes() == content
    s3.faults.append(Fault("half", method="GET"))
    with (s3_folder / "f").open("rb") as file:
        assert file.read() == content


def test_a_listing_or_a_removal_whose_answer_breaks_off_is_asked_for_again(s3: S3Server, s3_folder: ObjectPath) -> None:
    for name in ("a", "b", "c/d"):
        put(s3_folder / name, b"1")
    asked: list[tuple[Callable[[], object], object]] = [
        (lambda: [path.name for path in s3_folder.rglob("*")], ["a", "b", "d"]),
        (lambda: sorted(path.name for path in s3_folder.iterdir()), ["a", "b", "c"]),
        ((s3_folder / "c").is_dir, True),
        ((s3_folder / "b").unlink, None),
        ((s3_folder / "b").is_file, False),
    ]
    for ask, answer in asked:
        fault = Fault("half", times=2)
        s3.faults[:] = [fault]
        assert ask() == answer
        assert fault.times < 2
    s3.faults[:] = [Fault("half", times=9)]
    with pytest.raises(TransientError, match="no connection"):
        list(s3_folder.iterdir())


def test_what_does_not_pass_is_told_without_what_the_server_says(s3: S3Server, s3_folder: ObjectPath) -> None:
    path = s3_folder / "f"
    uses = (lambda: put(path, b""), path.read_bytes, path.exists, lambda: list(s3_folder.glob("*")), path.unlink)
    expected: list[tuple[int, type[Exception], str]] = [
        (503, TransientError, "does not answer as it should"),
        (403, StoreError, "access denied"),
        (400, StoreError, "refuses the request"),
    ]
    for status, kind, words in expected:
        s3.faults[:] = [Fault("status", status, times=1000)]
        for use in uses:
            with pytest.raises(kind, match=rf"s3://.*{words} \(status {status}") as caught:
                use()
            said = "".join(traceback.format_exception(caught.value))
            assert not any(secret in said for secret in (ACCESS_KEY, SECRET, TOKEN))


def test_a_missing_bucket_is_told(s3: S3Server) -> None:
    path = object_path("s3://there-is-none/a")
    for use in (lambda: put(path, b""), path.read_bytes, lambda: list(path.glob("*"))):
        with pytest.raises(StoreError, match=r"s3://there-is-none/a: there is no such bucket: correct the URL, or"):
            use()


def test_missing_credentials_are_told(s3: S3Server, s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3.url}/no-metadata")
    s3.faults.append(Fault("status", 404, key="latest/api/token", times=100))
    object_store.bucket.cache_clear()
    with pytest.raises(StoreError, match=r"no credentials, neither in the environment .* nor from this machine's"):
        put(s3_folder / "f", b"")


def test_one_of_two_writers_wins(s3: S3Server, s3_folder: ObjectPath) -> None:
    path = s3_folder / "lease"
    first = put_if(path, b"first", None)
    assert first is not None
    assert put_if(path, b"second", None) is None
    assert path.read_bytes() == b"first"
    second = put_if(path, b"second", first)
    assert second is not None
    assert put_if(path, b"third", first) is None
    assert path.read_bytes() == b"second"
    path.unlink()
    assert put_if(path, b"third", second) is None
    assert not path.exists()


def test_google_storage_is_spoken_to_in_its_own_dialect(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Against moto, whose bucket answers the requests that both dialects share."""
    account = tmp_path / "account.json"
    account.write_text(f'{{"gcs_base_url": "{s3.url}", "disable_oauth": true, "client_email": "", "private_key": "",'
                       ' "private_key_id": ""}')  # fmt: skip
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setattr(object_store, "CLIENT", {"allow_http": True})
    folder = object_path(f"gs://{BUCKET}/google")
    put(folder / "a" / "f", b"content")
    assert (folder / "a" / "f").read_bytes() == b"content"
    assert [str(path) for path in folder.glob("*/*")] == [f"gs://{BUCKET}/google/a/f"]
    (folder / "a" / "f").unlink()
    assert not folder.exists()
