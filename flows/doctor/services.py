"""Checks of what a run is made of: RUN.yaml, Prefect, Ray, and what killed runs left of them."""

import os

import psutil

from flows.doctor.case import Case, Finding, fail, ok, warn, without_user
from infra.errors import PipelineError


def settings(case: Case) -> Finding | None:
    """Look whether RUN.yaml can be run as it is."""
    if case.run_yaml is None:
        return None
    from flows.config import load_config

    try:
        load_config(case.run_yaml, list(case.overrides))
    except PipelineError as error:
        return fail(str(error))
    return ok(f"{case.run_yaml} can be run")


def orphans(case: Case) -> Finding:  # noqa: ARG001  # of this machine alone
    """Look for servers that killed runs left running."""
    from flows.orphans import orphaned_servers

    left = [f"Prefect, process {process.pid}" for process in orphaned_servers()]
    if not os.environ.get("RAY_ADDRESS"):
        left += [f"a Ray cluster without a driver here, process {pid}" for pid in _lone_clusters()]
    return warn("; ".join(left)) if left else ok("none")


def _lone_clusters() -> list[int]:
    """Return this user's Ray head processes that no program here started, or whose driver is gone."""
    if psutil.Process(1).name().startswith(("python", "superscene")):  # a container's driver, which has children
        return []
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.uids().real == os.getuid()
            if ours and process.name() == "gcs_server" and process.ppid() == 1:
                found.append(process.pid)
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def prefect(case: Case) -> Finding:  # noqa: ARG001  # of the environment alone
    """Look whether Prefect's settings can be read."""
    try:
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    except Exception as error:  # noqa: BLE001  # whatever is wrong is what a doctor reports
        return fail(f"{type(error).__name__}: {error}")
    return ok(f"server {without_user(url)}" if url else "embedded server, started by each run")


def ray(case: Case) -> Finding:  # noqa: ARG001  # of this machine, or of the cluster that the environment names
    """Start Ray, or join the cluster."""
    try:
        from infra.ray_cluster import cluster

        with cluster():
            import ray as started

            resources: dict[str, float] = started.cluster_resources()  # type: ignore[no-untyped-call]
            return ok(f"{resources.get('CPU', 0):.0f} cores, {resources.get('GPU', 0):.0f} GPUs")
    except Exception as error:  # noqa: BLE001  # whatever is wrong is what a doctor reports
        return fail(f"{type(error).__name__}: {error}")
