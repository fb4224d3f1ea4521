"""Which patches of many: those on which costly methods run and maps are judged by passes, and those on a sheet."""

import hashlib
import random
from collections.abc import Sequence
from itertools import cycle

import pyarrow as pa
import pyarrow.compute as pc

from infra.bigearthnet.bands import S1
from tasks.branch import Inputs
from tasks.labels import is_clean
from tasks.plan import planned_inputs

_SHEET_SEED = 0


def drawn_at_random[T](items: Sequence[T], count: int) -> list[T]:
    """Return items drawn without regard to what they are, in the order drawn: the same of the same items.

    Args:
        items: What to draw from.
        count: Items to draw; fewer where there are no more.
    """
    return random.Random(_SHEET_SEED).sample(items, min(count, len(items)))


def planned_sample(inputs: Inputs, size: int) -> frozenset[str]:
    """Return the sample of an archive, drawn from its plan, so that no shard that fails makes it another one.

    Patches that the plan knows to have snow or cloud are not drawn, since they are not scored; nor those without a
    Sentinel-1 pair where the bands ask for one. A patch that is drawn and cannot be read is missing from the sample.

    Args:
        inputs: What the branches see of the archive.
        size: Patches of each split; fewer where it has no more.
    """
    planned = planned_inputs(inputs.ingest)
    planned = planned.filter(is_clean(planned))
    if S1 in inputs.groups:
        planned = planned.filter(pc.is_valid(planned["s1_name"]))
    return stratified_sample(planned, size)


def stratified_sample(patches: pa.Table, size: int) -> frozenset[str]:
    """Return patches of every split, drawn so that rare labels are as well represented as they can be.

    In each split the labels take turns, the rarest first, ties by name: each adds its next patch that is not drawn yet,
    in the order of a hash of the names. Patches without a label take a turn of their own.

    Args:
        patches: patch_id, split, labels.
        size: Patches of each split; fewer where it has no more.
    """
    drawn: set[str] = set()
    splits = patches["split"].to_pylist()
    for split in sorted(set(splits)):
        rows = [index for index, name in enumerate(splits) if name == split]
        of_split = patches.select(["patch_id", "labels"]).take(rows)
        drawn |= _of_split(of_split["patch_id"].to_pylist(), of_split["labels"].to_pylist(), size)
    return frozenset(drawn)


def _of_split(ids: Sequence[str], labels: Sequence[Sequence[str] | None], size: int) -> set[str]:
    order = sorted(range(len(ids)), key=lambda index: hashlib.blake2b(ids[index].encode(), digest_size=8).digest())
    queues: dict[str | None, list[str]] = {}
    for index in reversed(order):  # the end of a list is cheap to take from
        for label in labels[index] or (None,):
            queues.setdefault(label, []).append(ids[index])
    turns = sorted(queues, key=lambda label: (len(queues[label]), label or ""))
    drawn: set[str] = set()
    for queue in cycle([queues[label] for label in turns]):
        while queue and queue[-1] in drawn:
            queue.pop()
        if queue:
            drawn.add(queue.pop())
        if len(drawn) == min(size, len(ids)):
            return drawn
    return drawn
