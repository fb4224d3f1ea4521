"""Titles of stages that others look for: in the rates of earlier runs, and in a plan."""

from sr_models.registry import SrSpec

_TITLE = "super-resolve "
_OF_SR_SHARDS = ", SR shards"


def stage_title(sr: str, spec: SrSpec) -> str:
    """Return the title of the stage that stores a model's pixels; it says where its numbers are not the shards'."""
    return f"{_TITLE}{sr}{'' if spec.sr_shard is None else _OF_SR_SHARDS}"


def sr_of_title(title: str) -> str | None:
    """Return the SR model of such a title; None for other stages."""
    return title.removeprefix(_TITLE).removesuffix(_OF_SR_SHARDS) if title.startswith(_TITLE) else None
