"""Object storage as folders and files: S3 and Google Cloud Storage behind the part of pathlib that a store needs.

An object appears by one PUT, whole or not at all. Failures that may pass (5xx, throttling, time-outs, cut connections)
are tried again by object_store's client, with growing pauses; credentials come from the environment or the provider's
chain, and what a server says is never quoted: S3 repeats signed headers in its errors.
"""

import io
import os
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from pathlib import Path, PosixPath
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PreconditionError,
)
from obstore.store import GCSStore, S3Store

from infra.errors import ConfigError, PipelineError, StoreError, TransientError

if TYPE_CHECKING:  # obstore has them for type checkers only
    from obstore import GetOptions, ObjectMeta, PutMode, PutResult, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=60),
    "timeout": timedelta(seconds=120),
}
"""Time limits of one request; a PUT of _ONE_PUT bytes has to be through within read_timeout."""

RETRY: "RetryConfig" = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
    "retry_timeout": timedelta(seconds=150),
}
"""What the client does by itself."""

PAUSES: tuple[float, ...] = (0.5, 2.0, 8.0)
"""Seconds before further attempts at what the client does not repeat: a conditional PUT that timed out, a listing or a
removal whose answer broke off."""

_ONE_PUT = 32 * 2**20
"""Bytes up to which an object is one PUT; beyond, it is uploaded in pieces and appears by the last request."""

_READ_AHEAD = 8 * 2**20
"""Bytes of one request of a file that is read from its beginning to its end."""

_RANGES_AHEAD = 4
"""Such requests at a time: one connection seldom fills the line."""

_CREDENTIALS_FROM = ("169.254.169.254", "169.254.170.", "metadata.google.internal", "/latest/api/token")
"""Where the client looks for credentials once the environment has none."""

_BROKEN_OFF = "response body error"
"""How the client tells of an answer of which only a part came."""

_URL = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,253}[a-z0-9])(?:/(.*))?", re.ASCII)
_KEPT = re.compile(r"[A-Za-z0-9._=+ -]+", re.ASCII)


class ObjectPath(PosixPath):
    """The URL of an object, or of what begins with it as files do with their folder; pickled as its name alone.

    What pathlib offers and this class does not asks the operating system for a path, and is refused there.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon and scheme in {"s3", "gs"} else scheme + colon + rest

    def __fspath__(self) -> str:
        raise TypeError(f"{self} lies on object storage: open(), os and libraries cannot be given its name")

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[2:])

    @property
    def bucket(self) -> S3Store | GCSStore:
        """The client of the bucket."""
        return bucket(self.parts[0].rstrip(":"), self.parts[1], endpoint())

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002, FBT001, FBT002  # pathlib's signature
        """Return itself: a URL is always absolute."""
        return self

    def absolute(self) -> Self:
        """Return itself."""
        return self

    def expanduser(self) -> Self:
        """Return itself: ~ is a letter like others."""
        return self

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: folders are there as soon as something lies in them."""

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return head(self) is not None

    def is_dir(self) -> bool:
        """Return whether an object's name begins with this folder's."""
        return again(lambda: any(obstore.list(self.bucket, f"{self.key}/", chunk_size=1)), self)

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002  # pathlib's signature
        """Return whether there is such an object or folder."""
        return self.is_file() or self.is_dir()

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        with in_our_words(self):
            return obstore.get(self.bucket, self.key).bytes().to_bytes()

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """Return the content of an object as text, UTF-8 unless told."""
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", errors, newline) as file:
            return file.read()

    def open(  # type: ignore[override]  # for reading only
        self,
        mode: Literal["r", "rb"] = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open an object for reading, from its beginning to its end or here and there.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The mode is another: objects are written whole, by infra.storage.
        """
        if mode not in {"r", "rb"}:
            raise ValueError(f"{self} cannot be opened as {mode!r}: objects are written whole")
        file = io.BufferedReader(RangeReader(self), _READ_AHEAD if buffering < 2 else buffering)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def iterdir(self) -> Generator[Self]:
        """Yield what lies in the folder: objects, and folders of one name part."""
        folders, files = self.children()
        yield from (*folders, *files)

    def glob(self, pattern: str, *, case_sensitive: bool | None = None) -> Generator[Self]:  # noqa: ARG002
        """Yield what matches a pattern of names without `**`; each part of it with a wildcard is one listing."""
        if "**" in pattern:
            raise ValueError(f"{pattern!r}: rglob lists what lies at any depth")
        yield from sorted(_select(self, pattern.split("/")))

    def rglob(self, pattern: str, *, case_sensitive: bool | None = None) -> Generator[Self]:  # noqa: ARG002
        """Yield the objects, and no folders, at any depth whose names match."""
        found = again(lambda: obstore.list(self.bucket, f"{self.key}/", chunk_size=1000).collect(), self)
        paths = (self._child(item["path"]) for item in found)
        yield from sorted(path for path in paths if fnmatchcase(path.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002  # pathlib's signature
        """Remove an object.

        Raises:
            FileNotFoundError: There is none, and that was not allowed.
        """
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(f"there is no {self}")
        try:
            again(lambda: obstore.delete(self.bucket, self.key), self)
        except FileNotFoundError:  # Google's service tells, Amazon's does not
            return

    def children(self) -> tuple[list[Self], list[Self]]:
        """Return the folders and the objects that lie in the folder."""
        found = again(lambda: obstore.list_with_delimiter(self.bucket, f"{self.key}/"), self)
        folders = [self._child(prefix) for prefix in found["common_prefixes"]]
        files = [self._child(item["path"]) for item in found["objects"]]
        return folders, [path for path in files if path != self]  # a web console's mark of an empty folder

    def _child(self, key: str) -> Self:
        return self.with_segments(*self.parts[:2], key)


def _select[P: ObjectPath](folder: P, parts: list[str]) -> Iterator[P]:
    first, rest = parts[0], parts[1:]
    if not any(sign in first for sign in "*?["):
        child = folder / first
        if rest:
            yield from _select(child, rest)
        elif child.exists():
            yield child
        return
    folders, files = folder.children()
    for child in (*folders, *([] if rest else files)):
        if fnmatchcase(child.name, first):
            yield from _select(child, rest) if rest else (child,)


class RangeReader(io.RawIOBase):
    """An object as a file to read: each read is one request for a range."""

    def __init__(self, path: ObjectPath) -> None:
        """Ask how long the object is.

        Raises:
            FileNotFoundError: There is none.
        """
        self._path, self._size, self._at = path, size(path), 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another place, and return it."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # any writable buffer
        """Read what the buffer takes, and return how much that is; 0 at the end."""
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        with in_our_words(self._path):
            content = obstore.get_range(self._path.bucket, self._path.key, start=self._at, length=length)
        buffer[: len(content)] = memoryview(content)
        self._at += len(content)
        return len(content)

    def size(self) -> int:
        """Return the object's length in bytes."""
        return self._size


class Ahead(io.RawIOBase):
    """An object as a file that is read once, from its beginning to its end: ranges are fetched ahead, side by side."""

    def __init__(self, path: ObjectPath) -> None:
        """Ask how long the object is, and begin to fetch it.

        Raises:
            FileNotFoundError: There is none.
        """
        self._path, self._size, self._at = path, size(path), 0
        self._starts = iter(range(0, self._size, _READ_AHEAD))
        self._coming: deque[Future[bytes]] = deque()
        self._here = memoryview(b"")
        for _ in range(_RANGES_AHEAD):
            self._ask()

    def _ask(self) -> None:
        """Have the next range fetched, where there is one more."""
        for start in islice(self._starts, 1):
            coming: Future[bytes] = Future()
            self._coming.append(coming)
            # A pool's threads are waited for when the process ends, and a request may take minutes to fail.
            Thread(target=self._fetch, args=(start, coming), name="read-ahead", daemon=True).start()

    def _fetch(self, start: int, coming: "Future[bytes]") -> None:
        try:
            coming.set_result(get_part(self._path, start, min(start + _READ_AHEAD, self._size)))
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits for the range
            coming.set_exception(error)

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the bytes read."""
        return self._at

    def size(self) -> int:
        """Return the object's length in bytes."""
        return self._size

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # any writable buffer
        """Read what has come, and return how much that is; 0 at the end."""
        if not self._here and self._coming:
            self._here = memoryview(self._coming.popleft().result())
            self._ask()
        part = self._here[: len(buffer)]
        buffer[: len(part)] = part
        self._here = self._here[len(part) :]
        self._at += len(part)
        return len(part)


def object_path(url: str) -> ObjectPath:
    """Return the path of s3://bucket/prefix or gs://bucket/prefix.

    Raises:
        ConfigError: The URL holds a password, a query, a name part such as `..`, or no bucket; it is quoted without
            what may be secret.
    """
    if "@" in url or "?" in url or "#" in url:
        scheme = url.partition("://")[0]
        raise ConfigError(
            f"a URL {scheme}://… with @, ? or #: it names bucket and prefix only; credentials come from the environment"
        )
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError(f"{url!r} is no URL of object storage: write s3://bucket/prefix or gs://bucket/prefix")
    scheme, bucket, prefix = match.groups()
    parts = [part for part in (prefix or "").split("/") if part]
    for part in parts:
        if part in {".", ".."} or not _KEPT.fullmatch(part):
            raise ConfigError(f"{url!r}: {part!r} is no part of a prefix; letters, digits and . _ - = + are")
    return ObjectPath(f"{scheme}:", bucket, *parts)


def head(path: ObjectPath) -> "ObjectMeta | None":
    """Return size, version and time of an object, or None where there is none."""
    try:
        with in_our_words(path):
            return obstore.head(path.bucket, path.key)
    except FileNotFoundError:
        return None


def _found(path: ObjectPath) -> "ObjectMeta":
    found = head(path)
    if found is None:
        raise FileNotFoundError(f"there is no {path}")
    return found


def version(path: ObjectPath) -> "UpdateVersion":
    """Return what changes whenever the object is written with another content.

    Raises:
        FileNotFoundError: There is no such object.
    """
    return _version(_found(path))


def put(path: ObjectPath, content: bytes | Path) -> None:
    """Write an object, whole or not at all; a file is given by its path.

    Never a view of a buffer: see `infra.zarr_objects`.

    Raises:
        StoreError: It may not be written.
        TransientError: The service did not take it, however often it was asked.
    """
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    with in_our_words(path):
        obstore.put(
            path.bucket, path.key, content, use_multipart=size > _ONE_PUT, chunk_size=_ONE_PUT // 2, max_concurrency=4
        )


def put_if(path: ObjectPath, content: bytes, replaces: "UpdateVersion | None") -> "UpdateVersion | None":
    """Write an object if nobody else did, and return its new version, or None where somebody did.

    Args:
        path: The object.
        content: Its content, unlike that of any other writer and of any earlier time.
        replaces: Version that it must have; None: there must be no such object.
    """
    mode: PutMode = "create" if replaces is None else replaces
    for pause in (*PAUSES, None):
        try:
            with in_our_words(path):
                return _version(obstore.put(path.bucket, path.key, content, mode=mode))
        except (FileExistsError, FileNotFoundError):  # not found: it was to be replaced, and was removed
            break
        except TransientError:
            if pause is None:
                raise
            time.sleep(pause)
    try:  # an earlier attempt may have been carried out, and only its answer lost
        found = version(path)
        return found if path.read_bytes() == content else None
    except FileNotFoundError:
        return None


def _version(found: "ObjectMeta | PutResult") -> "UpdateVersion":
    kept: UpdateVersion = {}
    if found["e_tag"] is not None:
        kept["e_tag"] = found["e_tag"]
    if found["version"] is not None:
        kept["version"] = found["version"]
    return kept


def size(path: ObjectPath) -> int:
    """Return an object's length, bytes.

    Raises:
        FileNotFoundError: There is no such object.
    """
    return _found(path)["size"]


def size_and_version(path: ObjectPath) -> "tuple[int, UpdateVersion]":
    """Return an object's length, bytes, and what `version` does, by one request.

    Raises:
        FileNotFoundError: There is no such object.
    """
    found = _found(path)
    return found["size"], _version(found)


def modified(path: ObjectPath) -> datetime:
    """Return when an object was written, by the service's clock.

    Raises:
        FileNotFoundError: There is no such object.
    """
    return _found(path)["last_modified"]


def get_part(path: ObjectPath, start: int, end: int | None) -> bytes:
    """Return bytes of an object by one request.

    Args:
        path: The object.
        start: The first byte; below 0, it counts from the object's end, and all from there on are returned.
        end: The byte behind the last; None: to the end.

    Raises:
        FileNotFoundError: There is none.
    """
    with in_our_words(path):
        if end is not None:
            return obstore.get_range(path.bucket, path.key, start=start, end=end).to_bytes()
        options: GetOptions = {"range": {"offset": start} if start >= 0 else {"suffix": -start}}
        return obstore.get(path.bucket, path.key, options=options).bytes().to_bytes()


def again[T](ask: Callable[[], T], path: Path) -> T:
    """Return the answer to a request that may be repeated, such as a listing, asked for again where it broke off.

    Raises:
        StoreError, TransientError, FileNotFoundError: As `told` says.
    """
    with in_our_words(path):
        for pause in PAUSES:
            try:
                return ask()
            except BaseError as error:
                if _BROKEN_OFF not in str(error):
                    raise
            time.sleep(pause)
        return ask()


@contextmanager
def in_our_words(path: Path) -> Iterator[None]:
    """Turn the client's errors into this project's; no cause is kept, since its text repeats what was sent."""
    try:
        yield
    except PipelineError:
        raise
    except (BaseError, OSError) as error:
        raise told(error, path) from None


def told(error: Exception, path: Path) -> Exception:
    """Return this project's error for one of the client, without what the service wrote."""
    text = str(error)
    if "<Code>NoSuchBucket</Code>" in text:
        return StoreError(f"{path}: there is no such bucket: correct the URL, or create the bucket of a new store")
    if isinstance(error, NotFoundError | FileNotFoundError):
        return FileNotFoundError(f"there is no {path}")
    if isinstance(error, AlreadyExistsError | PreconditionError | FileExistsError):
        return FileExistsError(f"{path} was written by somebody else")
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>([A-Za-z]{3,40})</Code>", text)
    spoken = "timed out" if "timed out" in text else "no connection"
    why = ", ".join(([f"status {status[1]}"] if status else [spoken]) + ([code[1]] if code else []))
    if any(place in text for place in _CREDENTIALS_FROM):
        return StoreError(
            f"{path}: no credentials, neither in the environment (such as AWS_ACCESS_KEY_ID) nor from this machine's "
            f"metadata service ({why})"
        )
    if status and status[1] in {"401", "403"}:  # listings raise no error of their own for it
        return StoreError(f"{path}: access denied ({why}): check the credentials in the environment and their rights")
    if status and status[1] < "500" and status[1] not in {"408", "429"}:
        return StoreError(f"{path}: object storage refuses the request ({why}): check region, endpoint and bucket")
    return TransientError(f"{path}: object storage does not answer as it should ({why})")


def endpoint() -> str | None:
    """Return the S3 address that the environment names, if it does."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")


@lru_cache
def bucket(scheme: str, name: str, endpoint: str | None) -> S3Store | GCSStore:
    """Return the client of a bucket, one for each process; object_store reads the environment's settings itself."""
    return _client(scheme, name, endpoint, CLIENT, RETRY)


def _client(
    scheme: str, name: str, endpoint: str | None, limits: "ClientConfig", retry: "RetryConfig"
) -> S3Store | GCSStore:
    if scheme == "gs":
        return GCSStore(name, client_options=limits, retry_config=retry)
    plain = endpoint is not None and urlsplit(endpoint).scheme == "http"  # then somebody asked for it
    return S3Store(name, client_options={**limits, "allow_http": plain}, retry_config=retry)


def ask_once(path: ObjectPath) -> None:
    """Ask for a name in a folder, with seconds of patience where a run has minutes.

    Raises:
        StoreError, TransientError: As `told` says.
    """
    seconds = timedelta(seconds=5)
    limits: ClientConfig = {"connect_timeout": seconds, "read_timeout": seconds, "timeout": seconds}
    pause: RetryConfig = {**RETRY, "max_retries": 1, "retry_timeout": seconds}
    client = _client(path.parts[0].rstrip(":"), path.parts[1], endpoint(), limits, pause)
    with in_our_words(path):
        any(obstore.list(client, f"{path.key}/", chunk_size=1))
