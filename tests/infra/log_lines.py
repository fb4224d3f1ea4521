"""Logs as a run writes them, caught; everything is as before afterwards."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra import logs


@contextmanager
def written(form: str = "json", level: str = "INFO") -> Iterator[io.StringIO]:
    """Configure logs and yield what goes to standard error."""
    names = (None, *logs._PACKAGES)
    before = [(logging.getLogger(name).level, logging.getLogger(name).propagate) for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream := io.StringIO())
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(logs, "_settings", None)
        patch.setattr(logs, "_buffer", None)
        logs.configure({"SUPERSCENE_LOG": form, "SUPERSCENE_LOG_LEVEL": level})
        try:
            yield stream
        finally:
            for name, (its_level, propagate) in zip(names, before, strict=True):
                logger = logging.getLogger(name)
                logger.setLevel(its_level)
                logger.propagate = propagate
                for handler in [handler for handler in logger.handlers if handler.get_name() == logs.__name__]:
                    logger.removeHandler(handler)


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines as JSON; each of them has to be."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]
