"""Fetching official weight files: from mirrors and the official address, checked before they get a name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from infra.download import Progress, discard, download, silent
from infra.errors import ConfigError, WeightsError
from infra.weights_store import Check, OfficialFile, WeightsStore, sha256, shown, writing


def fetch(
    store: WeightsStore,
    model: str,
    official: OfficialFile,
    check: Check,
    *,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    progress: Progress = silent,
    waiting: Callable[[], None] = lambda: None,
) -> Path:
    """Return a model's stored official file, downloading what is missing of it.

    A download that was cut off is gone on with. Of two processes, one downloads, and the other waits and finds it done.

    Args:
        store: Where it goes.
        model: The model.
        official: Its file.
        check: Refuses a file of another network; asked where no whole official hash is known.
        mirrors: Folders on other servers that hold the file under its own name; they are tried first, in this order.
        offline: Never touch the network.
        progress: Is told of every block that arrives.
        waiting: Called once when another process holds the model's folder.

    Raises:
        WeightsError: The file cannot be got, or is not what its hash says; the message says what to do.
        ConfigError: A mirror is not an http or https address.
        StoreError: The store cannot be written.
    """
    addresses = [_address_at(mirror, official) for mirror in mirrors]
    if official.direct:
        addresses.append(official.url)
    found = store.find(model, official)
    if found is not None:
        return found
    if offline:
        raise WeightsError(
            f"{official.file_name} is not stored, and offline nothing is fetched. {by_hand(store, model, official)}"
        )
    if not addresses:
        raise WeightsError(f"{official.file_name} cannot be fetched by a program. {by_hand(store, model, official)}")
    with store.lock(model, waiting):
        found = store.find(model, official)
        if found is not None:
            return found
        faults = []
        for address in addresses:
            try:
                return _fetch_from(address, store, model, official, check, progress)
            except WeightsError as error:
                faults.append(str(error))
    raise WeightsError(
        f"{official.file_name} could not be fetched: {'; '.join(faults)}. {by_hand(store, model, official)}"
    )


def by_hand(store: WeightsStore, model: str, official: OfficialFile) -> str:
    """Return one sentence on how a person gets a file into the store."""
    return (
        f"Download {official.name} from {official.url} with a browser, on any machine, and store it with "
        f"`superscene weights add {model} FILE`, which checks it and puts it at {store.path(model, official)}"
    )


def _address_at(mirror: str, official: OfficialFile) -> str:
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"--mirror {mirror}: a mirror is a folder's address that starts with http:// or https://")
    return f"{mirror.rstrip('/')}/{quote(official.file_name)}"


def _fetch_from(
    address: str, store: WeightsStore, model: str, official: OfficialFile, check: Check, progress: Progress
) -> Path:
    """Download from one address, check what came, and give it its name; the caller holds the lock."""
    partial, path = store.partial(model, official), store.path(model, official)
    with writing(path):
        continued = download(address, partial, any_source=official.sha256 is not None, progress=progress)
    digest = sha256(partial)
    if not official.accepts(digest) and continued:  # the older bytes may be to blame
        with writing(path):
            discard(partial)
            download(address, partial, progress=progress)
        digest = sha256(partial)
    try:
        _require_genuine(partial, digest, address, official, check)
    except WeightsError:
        discard(partial)
        raise
    store.install(partial, path, digest)
    discard(partial)
    return path


def _require_genuine(partial: Path, digest: str, address: str, official: OfficialFile, check: Check) -> None:
    if official.sha256 is not None and not official.accepts(digest):
        raise WeightsError(
            f"{address} sent a file with the SHA-256 {digest}, the official file has {shown(official.sha256)}: not "
            "stored"
        )
    if not official.pinned:
        check(partial)
