"""Checks of what the machine, or the container, gives: cores, memory, shared memory, open files, processes."""

import os
import re
import resource
import shutil

import psutil

from flows.doctor.case import Case, Finding, fail, gigabytes, ok, warn

ACTOR_BYTES = 1.5e9
"""Memory of a worker with torch, a small network and its batch."""

_LEAST_MEMORY = 2e9
_SHARED_BYTES = 128 * 2**20  # Ray's object store takes 100 MiB
_FEW_FILES, _TOO_FEW_FILES = 1024, 256
_FEW_PROCESSES, _TOO_FEW_PROCESSES = 2048, 256


def cores(case: Case) -> Finding:
    """Look whether there are as many cores as RUN.yaml asks for, and whether a container has fewer than the machine."""
    from infra.ray_cluster import available_cores

    may, there = available_cores(), os.cpu_count() or 1
    found = f"{may} cores" if may == there else f"{may} of the machine's {there} cores, which is this container's share"
    if case.actors is not None and case.actors > may and not os.environ.get("RAY_ADDRESS") and not case.gpus:
        return warn(f"{found}, and RUN.yaml says actors: {case.actors}")
    return ok(found)


def memory_limit(case: Case) -> float | None:
    """Return how much more memory a container may take, bytes; None where it has no limit."""
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        most, now, kinds = (case.text(f"sys/fs/cgroup/{name}") for name in (limit, used, stat))
        if most and most.strip().isdecimal() and int(most) < psutil.virtual_memory().total:
            # Pages of files that were read are given back when they are asked for.
            freed = re.search(rf"^{cache} (\d+)$", kinds or "", re.MULTILINE)
            return max(0.0, int(most) - int(now or 0) + (int(freed[1]) if freed else 0))
    return None


def memory(case: Case) -> Finding:
    """Look whether the memory suffices for the workers."""
    from infra.ray_cluster import available_cores

    free = float(psutil.virtual_memory().available)
    limit = memory_limit(case)
    found = f"{gigabytes(free)} free"
    if limit is not None and limit < free:
        free, found = limit, f"{gigabytes(limit)} free, which is this container's limit"
    if free < _LEAST_MEMORY:
        return fail(found)
    actors = min(case.actors or available_cores(), available_cores())
    if free < actors * ACTOR_BYTES:
        return warn(f"{found}, for {actors} workers of about {gigabytes(ACTOR_BYTES)}")
    return ok(found)


def shared_memory(case: Case) -> Finding:
    """Look whether Ray's object store has room."""
    folder = case.system / "dev/shm"
    if not folder.exists():
        return ok("no /dev/shm on this system")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 2**20:.0f} MiB of {usage.total / 2**20:.0f} free in /dev/shm"
    return warn(found) if usage.free < _SHARED_BYTES else ok(found)  # Ray then takes a file on a disk


def open_files(case: Case) -> Finding:  # noqa: ARG001  # of this process alone
    """Look how many files this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} at most, and the administrator allows {hard}"
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        return ok(found)
    return fail(found) if soft < _TOO_FEW_FILES else warn(found)


def processes(case: Case) -> Finding:
    """Look how many processes and threads there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = {"ulimit -u": soft} if soft != resource.RLIM_INFINITY and os.geteuid() != 0 else {}
    pids = case.text("sys/fs/cgroup/pids.max")
    if pids and pids.strip().isdecimal():
        limits["the container"] = int(pids)
    if not limits:
        return ok("no limit")
    who, most = min(limits.items(), key=lambda item: item[1])
    found = f"{most} at most, by {who}"
    if most < _TOO_FEW_PROCESSES:
        return fail(found)
    return warn(found) if most < _FEW_PROCESSES else ok(found)
