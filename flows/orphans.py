"""Prefect servers that drivers started for themselves and, killed, left running.

Without PREFECT_API_URL, Prefect starts a server as a child of the driver. A driver that is killed by SIGKILL cannot end
it; the next one with the same PREFECT_HOME does. A server is an orphan when its parent is no longer the driver that it
was started by. Other containers' servers, whose parents have other numbers there, are none of its business.
"""

import os

import psutil

_DRIVER = "SUPERSCENE_DRIVER"
"""Environment variable by which a driver's children know its process id, and where that counts."""


def end_orphaned_servers() -> int:
    """End the servers of this user's dead drivers, mark those of this one, and return how many were ended.

    Call it before Prefect runs a flow.
    """
    orphans = orphaned_servers()
    for process in orphans:
        process.terminate()
    _, stubborn = psutil.wait_procs(orphans, timeout=10)
    for process in stubborn:
        process.kill()
    os.environ[_DRIVER] = f"{os.getpid()} {_pid_namespace()}"
    return len(orphans)


def orphaned_servers() -> list[psutil.Process]:
    """Return the servers of this user's dead drivers."""
    return [process for process in psutil.process_iter() if _is_orphan(process)]


def _is_orphan(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
        if not ("uvicorn" in words and any("prefect.server" in word for word in words)):
            return False
        environment = process.environ()
        driver, _, namespace = environment.get(_DRIVER, "").partition(" ")
        ours = namespace == _pid_namespace() and environment.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME")
        return bool(driver) and ours and process.uids().real == os.getuid() and process.ppid() != int(driver)
    except psutil.Error:  # it has ended, or is another user's
        return False


def _pid_namespace() -> str:
    """Return what tells apart the process numbers of containers and their host; `-` where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # not a path
    except OSError:
        return "-"
