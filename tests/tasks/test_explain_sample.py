import hashlib
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.bigearthnet.bands import BAND_SETS, stretch_max_dn
from infra.storage import StorePaths
from tasks.explain_sample import drawn_at_random, planned_sample, stratified_sample
from tasks.plan import Plan, make_plan
from tests.tasks.small_store import MAX_DN, SHARD_SIZE, band_file, branch_of, copied, ingest, metadata, v2

type Patch = tuple[str, str, list[str] | None]
"""patch_id, split, labels."""


def table(patches: Sequence[Patch]) -> pa.Table:
    ids, splits, labels = zip(*patches, strict=True)
    return pa.table({"patch_id": ids, "split": splits, "labels": pa.array(labels, pa.list_(pa.string()))})


def archive(n: int, seed: int, splits: Sequence[str] = ("train", "validation", "test")) -> list[Patch]:
    """Patches with labels of very different frequency; one in ten has none, unlabelled or with an empty list."""
    draw = random.Random(seed)
    shares = {"common": 0.9, "usual": 0.4, "rare": 0.1, "rarest": 0.02}
    patches: list[Patch] = []
    for number in range(n):
        labels: list[str] | None = [label for label, share in shares.items() if draw.random() < share]
        if draw.random() < 0.1:
            labels = draw.choice([None, []])
        patches.append((f"patch-{number}", draw.choice(splits), labels))
    return patches


def by_turns(patches: Sequence[Patch], size: int) -> set[str]:
    """The rule, word by word, for one split: labels from the rarest on each add their next patch."""

    def rank(patch: Patch) -> bytes:
        return hashlib.blake2b(patch[0].encode(), digest_size=8).digest()

    of_label: dict[str | None, list[str]] = {}
    for name, _, labels in sorted(patches, key=rank):
        keys: Sequence[str | None] = labels or [None]
        for label in keys:
            of_label.setdefault(label, []).append(name)
    turns = sorted(sorted(of_label, key=str), key=lambda label: len(of_label[label]))
    drawn: list[str] = []
    while len(drawn) < min(size, len(patches)):
        for turn in turns:
            left = [name for name in of_label[turn] if name not in drawn]
            if left and len(drawn) < size:
                drawn.append(left[0])
    return set(drawn)


@pytest.mark.parametrize("size", [1, 3, 10, 50, 150])
@pytest.mark.parametrize("seed", [0, 2])
def test_labels_take_turns_in_every_split(size: int, seed: int) -> None:
    patches = archive(400, seed)
    expected = set().union(
        *(by_turns([p for p in patches if p[1] == split], size) for split in ("train", "validation", "test"))
    )
    assert stratified_sample(table(patches), size) == expected


def test_rare_labels_are_all_there_where_turns_reach_them() -> None:
    """Four labels and a turn without one: of 50 patches each has ten turns at least."""
    patches = archive(400, 1, ["train"])
    found = stratified_sample(table(patches), 50)
    of_rarest = {name for name, _, labels in patches if "rarest" in (labels or [])}
    assert 0 < len(of_rarest) <= 10
    assert of_rarest <= found
    assert len(found) == 50


def test_the_order_of_rows_changes_nothing() -> None:
    patches = archive(200, 0)
    found = stratified_sample(table(patches), 20)
    random.Random(7).shuffle(patches)
    assert stratified_sample(table(patches), 20) == found
    shards = [table(patches[start : start + 30]) for start in range(0, 200, 30)]
    assert stratified_sample(pa.concat_tables(reversed(shards)), 20) == found


def test_labels_of_one_frequency_take_their_turns_in_one_order() -> None:
    patches: list[Patch] = [(f"p{i}", "train", ["a" if i % 2 else "b"]) for i in range(20)]
    found = [stratified_sample(table(order), 7) for order in (patches, patches[::-1])]
    assert found[0] == found[1]
    assert abs(2 * sum(int(name[1:]) % 2 for name in found[0]) - 7) == 1


def test_fewer_patches_than_asked_are_all_taken() -> None:
    patches = archive(30, 0)
    assert stratified_sample(table(patches), 1000) == {name for name, _, _ in patches}


def test_without_labels_the_hash_decides() -> None:
    patches: list[Patch] = [(f"p{i}", "all", None) for i in range(50)]
    ranked = sorted((p[0] for p in patches), key=lambda n: hashlib.blake2b(n.encode(), digest_size=8).digest())
    assert stratified_sample(table(patches), 8) == set(ranked[:8])


def test_of_no_patches_there_is_no_sample() -> None:
    assert stratified_sample(table([("p", "train", None)]).slice(0, 0), 5) == frozenset()


def test_a_draw_is_the_same_of_the_same_items_and_favours_no_place() -> None:
    items = [f"p{i}" for i in range(400)]
    drawn = drawn_at_random(items, 100)
    assert drawn == drawn_at_random(items, 100)
    assert len(set(drawn)) == 100
    assert set(drawn) <= set(items)
    assert sorted(drawn_at_random(items[:7], 100)) == items[:7]
    assert drawn_at_random([], 3) == []
    # Places 0..399 have a mean of 199.5; a mean of 100 of them is off by 10 (one standard error), hardly by 40.
    assert sum(int(name[1:]) for name in drawn) / 100 == pytest.approx(199.5, abs=40)
    assert drawn != sorted(drawn)


def clean_patches(root: Path) -> list[Patch]:
    """Patches of an archive's metadata that it does not flag."""
    return [
        (row["patch_id"], row["split"], row["labels"])
        for row in metadata(root)
        if not (row["contains_seasonal_snow"] or row["contains_cloud_or_shadow"])
    ]


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_the_sample_of_an_archive_is_drawn_from_its_metadata(store: Plan, size: int) -> None:
    """From flagged patches not, from those of damaged pixels as from others: who could know before they are read?"""
    root = store.paths.root.parent / "archive"
    found = planned_sample(branch_of(store).inputs, size)
    assert found == stratified_sample(table(clean_patches(root)), size)
    assert len(metadata(root)) == 24
    assert len(found) == {1: 3, 4: 12, 1000: 23}[size]


def test_a_shard_that_failed_to_be_ingested_leaves_the_sample_as_it_is(store: Plan, tmp_path: Path) -> None:
    plan = copied(store, tmp_path / "store")
    for shard in (0, 3):
        plan.parts.path(shard).unlink()
    assert planned_sample(branch_of(plan).inputs, 4) == planned_sample(branch_of(store).inputs, 4)


def test_an_input_that_is_mended_leaves_the_sample_as_it_is(archive_copy: Path, tmp_path: Path) -> None:
    """It is planned twice then, and drawn once."""
    damaged = band_file(archive_copy, clean_patches(archive_copy)[0][0])
    sound = shutil.copy(damaged, tmp_path / "sound.tif")
    os.truncate(damaged, 1000)
    before = ingest(v2(archive_copy), tmp_path / "store")
    samples = [planned_sample(branch_of(before).inputs, size) for size in (4, 1000)]
    shutil.copy(sound, damaged)
    after = ingest(v2(archive_copy), tmp_path / "store")
    assert len(after.shards) == len(before.shards) + 1
    assert [planned_sample(branch_of(after).inputs, size) for size in (4, 1000)] == samples
    assert len(samples[1]) == 23


def test_patches_without_the_bands_are_not_drawn(archive_copy: Path, tmp_path: Path) -> None:
    """Sentinel-1 of every other patch is gone from the metadata."""
    file = archive_copy / "metadata.parquet"
    rows = pq.ParquetFile(file).read()
    names = [name if place % 2 else None for place, name in enumerate(rows["s1_name"].to_pylist())]
    pq.write_table(rows.set_column(rows.schema.get_field_index("s1_name"), "s1_name", pa.array(names)), file)
    plan = make_plan(v2(archive_copy), StorePaths(tmp_path / "store"), "bigearthnet-v2", SHARD_SIZE)
    rgb = branch_of(plan).inputs
    bands = BAND_SETS["s1s2"]
    both = replace(rgb, bands=bands, max_dn=stretch_max_dn(bands, MAX_DN))
    clean = {patch for patch, *_ in clean_patches(archive_copy)}
    with_pair = {row["patch_id"] for row in metadata(archive_copy) if row["s1_name"] is not None}
    assert planned_sample(rgb, 1000) == clean
    assert planned_sample(both, 1000) == clean & with_pair < clean
