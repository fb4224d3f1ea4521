"""Checks of weight files: where they are stored, and whether those are there that a run needs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flows.doctor.case import Case, Finding, fail, ok
from infra.errors import ConfigError, PipelineError, WeightsError
from infra.weights_store import WeightsStore


def stored(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folder
    """Look whether weight files can be stored."""
    store = WeightsStore.default()
    try:
        count = len([path for path in store.files() if path.is_file()])
        writable = store.writable()
    except PipelineError as error:
        return fail(str(error))
    if not writable and not count:
        return fail(f"{store.folder} is empty, and cannot be written")
    return ok(f"{count} stored in {store.folder}" + ("" if writable else ", read-only"))


def needed(case: Case) -> Finding | None:
    """Look whether every model that RUN.yaml names has its weights."""
    if case.run_yaml is None:
        return None
    import classifiers
    import sr_models

    known: list[tuple[str, Callable[[], Path | None]]] = [
        (name, partial(sr_models.weights_file, name, case.weights.get(name), case.sr_options.get(name)))
        for name in case.sr
        if name in sr_models.SR_MODELS
    ]
    known += [
        (name, partial(classifiers.weights_file, name, case.weights.get(name)))
        for name in case.classifiers
        if name in classifiers.names()
    ]
    wrong, count = [], 0
    for name, find in known:
        try:
            count += find() is not None
        except (WeightsError, ConfigError) as error:
            told = _first_clause(error)
            wrong.append(told if name in told else f"{name}: {told}")
    return fail("; ".join(wrong)) if wrong else ok(f"{count} of {len(known)} models need files, and have them")


def _first_clause(error: PipelineError) -> str:
    """Return what is wrong, without where an official file may be had: the advice says it."""
    return str(error).partition(". The official file")[0]
