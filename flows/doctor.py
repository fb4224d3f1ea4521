"""Doctor: what of this machine works, and what to do about what does not."""

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from infra.errors import StoreError

_FREE_GB = 5.0
_SHM_MB = 256


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    """What to do, empty where nothing is wrong."""


def checks() -> list[Check]:
    """Return all checks; starting Ray takes some seconds."""
    return [_python(), _libraries(), _gpu(), _disk(), _weights(), _shared_memory(), _ray(), _prefect()]


def _python() -> Check:
    ok = sys.version_info[:2] == (3, 12)
    return Check("Python", ok, platform.python_version(), "" if ok else "use Python 3.12: `make setup` does")


def _libraries() -> Check:
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "prefect", "zarr", "rasterio", "timm"))
    return Check("libraries", ok=True, found=found)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", ok=True, found=torch.cuda.get_device_name(0))
    if shutil.which("nvidia-smi"):
        return Check("GPU", ok=False, found="a driver, but torch cannot use it", advice="update the NVIDIA driver")
    return Check("GPU", ok=True, found="none: runs go on the CPU")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    ok = free > _FREE_GB
    return Check("disk", ok, f"{free:.1f} GB free here", "" if ok else "give `store:` a folder on a larger disk")


def _weights() -> Check:
    from infra.weights_store import VARIABLE, WeightsStore

    store = WeightsStore.default()

    def look() -> str:
        count = len([path for path in store.files() if path.is_file()])
        if not store.writable() and not count:
            raise StoreError("empty, and cannot be written")
        return f"{count} stored in {store.folder}" + ("" if store.writable() else ", read-only")

    return _attempt("weights", look, f"set {VARIABLE} to a folder that can be written")


def _shared_memory() -> Check:
    shm = Path("/dev/shm")  # noqa: S108  # where Ray puts its object store on Linux
    if not shm.exists():
        return Check("shared memory", ok=True, found="no /dev/shm on this system")
    free = shutil.disk_usage(shm).free / 2**20
    ok = free > _SHM_MB
    advice = "" if ok else "start the container with --shm-size=1g"
    return Check("shared memory", ok, f"{free:.0f} MB free in /dev/shm", advice)


def _ray() -> Check:
    from infra.ray_cluster import cluster

    def start() -> str:
        import ray

        with cluster():
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            return f"{resources.get('CPU', 0):.0f} cores, {resources.get('GPU', 0):.0f} GPUs"

    return _attempt("Ray", start, "see the message; `ray stop --force` ends a stale cluster")


def _prefect() -> Check:
    def settings() -> str:
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
        return f"server {url}" if url else "embedded server, started by each run"

    return _attempt("Prefect", settings, "check `prefect config view`")


def _attempt(name: str, look: Callable[[], str], advice: str) -> Check:
    try:
        return Check(name, ok=True, found=look())
    except Exception as error:  # noqa: BLE001  # whatever is wrong is what a doctor reports
        return Check(name, ok=False, found=f"{type(error).__name__}: {error}", advice=advice)
