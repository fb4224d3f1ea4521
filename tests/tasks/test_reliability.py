"""What is refused before anything is trained, and which fit of another store is taken; oracles are counts by hand."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers.cam.options import OptionValue
from classifiers.network import Classifier
from classifiers.registry import build
from classifiers.reliability import ClusterSettings, FittedReliability, from_bytes, to_bytes
from infra.errors import ConfigError, WeightsError
from infra.storage import StorePaths, write_bytes
from tasks.branch import Branch, make_branch
from tasks.reliability import FitsOfJobs, ReliabilityJob, ReliabilityPlan, check_pixels, check_samples
from tasks.reliability_stage import ReliabilityFitter
from tests.tasks.planted_maps import LABELS, SEED, Planted, PlantedStore, plan_of, planted, planted_store

EIGHT = ClusterSettings(clusters=8)
PLAN = plan_of()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PlantedStore:
    """50 patches of the validation split, of which 45 count, by three labels."""
    case = planted(50, 10)
    return planted_store(tmp_path_factory.mktemp("planted"), case, flagged=[0, 1, 2, 52], unlabelled=[2, 3, 4, 53])


def test_patches_that_count_are_those_labelled_and_clean(store: PlantedStore) -> None:
    inputs, validation = store.branch.inputs, store.validation
    check_samples(inputs, validation, plan_of(), 3)
    words = r"each of 3 clusters, 60 in all, found 45: ask for at most 2 clusters, or pool the labels, or label more"
    with pytest.raises(ConfigError, match=words):
        check_samples(inputs, validation, plan_of(settings=ClusterSettings(clusters=3)), 3)
    words = r"each of 8 clusters, 160 in all, found 135: ask for at most 6 clusters, or label more"  # pooled they are
    with pytest.raises(ConfigError, match=words):
        check_samples(inputs, validation, plan_of(pooled=True, settings=EIGHT), 3)
    check_samples(inputs, validation, plan_of(pooled=True, settings=ClusterSettings(clusters=6)), 3)


def test_a_classifier_of_one_label_has_one_sample_a_patch(store: PlantedStore) -> None:
    """And nothing to pool."""
    inputs, validation = store.branch.inputs, store.validation
    three = ClusterSettings(clusters=3)
    for pooled in (False, True):
        with pytest.raises(ConfigError, match="60 in all, found 45: ask for at most 2 clusters, or label more"):
            check_samples(inputs, validation, plan_of(pooled=pooled, settings=three), 1)


def test_a_costly_method_has_samples_of_those_patches_alone_that_it_is_run_on(store: PlantedStore) -> None:
    """45 count of 50; those that do not, and those of another split, are no samples however they were drawn."""
    inputs, validation = store.branch.inputs, store.validation
    counted = [store.names[i] for i in range(5, 50)]
    uncounted = {store.names[i] for i in (*range(5), *range(50, 60))}
    check_samples(inputs, validation, plan_of(), 3, frozenset({*counted[:40], *uncounted}))
    words = (
        r"40 in all, found 39: pool the labels, or label more .*; grad_cam has maps of the patches of `explain.sample`"
    )
    with pytest.raises(ConfigError, match=words):
        check_samples(inputs, validation, plan_of(), 3, frozenset({*counted[:39], *uncounted}))
    check_samples(inputs, validation, plan_of(pooled=True), 3, frozenset({*counted[:14], *uncounted}))
    with pytest.raises(ConfigError, match="40 in all, found 39"):
        check_samples(inputs, validation, plan_of(pooled=True), 3, frozenset({*counted[:13], *uncounted}))


def test_an_archive_without_a_validation_split_is_told_so(store: PlantedStore) -> None:
    for pooled in (False, True):
        with pytest.raises(ConfigError, match="fitted on the validation split, and no patch of that is stored"):
            check_samples(store.branch.inputs, [], plan_of(pooled=pooled), 3)


def network(name: str) -> Classifier:
    """One of the registry, with shapes and without numbers."""
    with torch.device("meta"):
        return build(name, 3).eval()


@pytest.fixture(scope="module")
def enlarged(store: PlantedStore) -> Branch:
    return make_branch(store.branch.inputs, "bicubic", None)


@pytest.mark.parametrize(
    ("method", "classifier", "options", "pixels"),
    [
        ("grad_cam", "resnet18", {}, 16),  # 120 pixels: 4 x 4 places
        ("grad_cam", "inception_v4", {}, 4),  # 2 x 2
        ("eigen_cam", "inception_v4", {}, 4),
        ("occlusion", "inception_v4", {"window": 60, "stride": 60}, 120 * 120),
        ("lime", "resnet18", {"cells": 4}, 16),
        ("lime", "resnet18", {"cells": 3}, 9),
        ("lime", "inception_v4", {}, 64),  # 8 x 8 by default
    ],
)
def test_maps_have_sixteen_pixels_at_least(
    store: PlantedStore, method: str, classifier: str, options: Mapping[str, OptionValue], pixels: int
) -> None:
    plan = replace(plan_of(settings=EIGHT), method=method)
    if pixels >= 16:
        check_pixels(store.branch, network(classifier), plan, options)
        return
    words = f"{method} of {classifier} on none: reliability needs maps of at least 16 pixels, these have {pixels}: "
    with pytest.raises(ConfigError, match=words):
        check_pixels(store.branch, network(classifier), plan, options)


def test_a_branch_that_enlarges_has_finer_maps(enlarged: Branch) -> None:
    for classifier in ("resnet18", "inception_v4"):  # 15 x 15 and 13 x 13 places
        check_pixels(enlarged, network(classifier), plan_of(), {})
    with pytest.raises(ConfigError, match=r"lime of resnet18 on bicubic: .* these have 9"):
        check_pixels(enlarged, network("resnet18"), replace(plan_of(), method="lime"), {"cells": 3})


def test_options_that_the_method_does_not_have_are_refused(store: PlantedStore) -> None:
    with pytest.raises(ConfigError, match="lime does not take window"):
        check_pixels(store.branch, network("resnet18"), replace(plan_of(), method="lime"), {"window": 3})


def lender(
    folder: Path, plan: ReliabilityPlan = PLAN, case: Planted | None = None
) -> tuple[StorePaths, ReliabilityJob]:
    """A store that has a fit."""
    store = planted_store(folder, case)
    job = store.job(plan)
    ReliabilityFitter([job]).run(0)
    return StorePaths(folder), job


def a_copy(source: StorePaths, job: ReliabilityJob, config: str, **changes: Any) -> Path:
    """Another file of the same classifier and branch in that store, newer than the job's."""
    path = source.reliability(job.sr, job.classifier, config)
    write_bytes(path, to_bytes(replace(job.model(), **changes)))
    os.utime(path, (job.file.stat().st_mtime + 10,) * 2)
    return path


def test_the_fit_of_another_branch_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """One file of weights serves both branches; its maps on the pixels of another are other maps."""
    source, own = lender(tmp_path / "lender")
    bicubic = make_branch(planted_store(tmp_path / "other").branch.inputs, "bicubic", None)
    of_bicubic = {**own.maps_of, "branch": dict(bicubic.identity)}
    a_copy(source, own, "0b0b0b0b", maps_of=of_bicubic)  # even where its folder does not tell
    write_bytes(source.reliability("bicubic", own.classifier, "0a0a0a0a"), own.file.read_bytes())
    borrower = planted_store(tmp_path / "borrower", planted(0, 50, seed=4))
    assert borrower.job(PLAN, source).file == own.file
    own.file.unlink()
    with pytest.raises(ConfigError, match=r'branch .*"sr": "bicubic".*, not .*"sr": "none"'):
        borrower.job(PLAN, source)


def test_a_branch_is_another_where_its_pixels_are_stretched_otherwise(tmp_path: Path) -> None:
    source, _ = lender(tmp_path / "lender")
    borrower = planted_store(tmp_path / "borrower", planted(0, 50, seed=4))
    stretched = replace(borrower.branch.inputs, max_dn=(2500,) * 3)
    with pytest.raises(ConfigError, match=r"\[3000, 3000, 3000\].*, not .*\[2500, 2500, 2500\]"):
        replace(borrower, branch=make_branch(stretched, "none", None)).job(PLAN, source)


def test_a_fit_of_no_label_says_whose_it_is(tmp_path: Path) -> None:
    """Of a network that is always right, say: it is lent to the same, with its reasons, and to no other."""
    everything_right = planted()
    everything_right = replace(everything_right, predicted=everything_right.truth)
    source, own = lender(tmp_path / "lender", case=everything_right)
    assert own.fitted() == {}
    case = planted(0, 50, seed=4)
    borrower = planted_store(tmp_path / "borrower", case)
    borrowed = borrower.job(PLAN, source)
    assert borrowed.file == own.file
    assert borrowed.why_not().keys() == set(LABELS)
    assert "no decision on 120 validation samples is wrong" in borrowed.why_not()[LABELS[0]]
    for changed in (plan_of(pooled=True), plan_of(threshold=0.5), plan_of(settings=ClusterSettings(clusters=3))):
        with pytest.raises(ConfigError, match="has no reliability of these settings"):
            borrower.job(changed, source)
    another = tmp_path / "another.safetensors"
    another.write_bytes(b"another network")
    scored = replace(borrower.scored, checkpoints={SEED: another})
    with pytest.raises(ConfigError, match=r'network "[0-9a-f]+", not "[0-9a-f]+"'):
        replace(borrower, scored=scored).job(PLAN, source)


def test_the_refusal_says_what_the_store_has_instead(tmp_path: Path) -> None:
    source, _ = lender(tmp_path / "lender")
    borrower = planted_store(tmp_path / "borrower", planted(0, 50))
    with pytest.raises(ConfigError, match=r"clusters 2, not 3; |clusters 2, not 3\): run it there first"):
        borrower.job(plan_of(settings=ClusterSettings(clusters=3)), source)
    renamed = replace(borrower, scored=replace(borrower.scored, classifier="resnet50"))
    with pytest.raises(
        ConfigError, match=r"maps of resnet50 on none \(it has none of this classifier on this branch\)"
    ):
        renamed.job(PLAN, source)


def test_labels_without_a_fit_in_the_other_store_have_their_reasons_here(tmp_path: Path) -> None:
    source, own = lender(tmp_path / "lender")
    borrowed = planted_store(tmp_path / "borrower", planted(0, 50, seed=4)).job(PLAN, source)
    assert borrowed.fit is None
    assert borrowed.why_not() == own.why_not()
    assert set(borrowed.why_not()) == {LABELS[2]}


def test_a_damaged_file_is_named_and_hinders_no_other(tmp_path: Path) -> None:
    source, own = lender(tmp_path / "lender")
    damaged = source.reliability("none", own.classifier, "0c0c0c0c")
    write_bytes(damaged, own.file.read_bytes()[:-1])
    os.utime(damaged, (own.file.stat().st_mtime + 10,) * 2)
    borrower = planted_store(tmp_path / "borrower", planted(0, 50))
    assert borrower.job(PLAN, source).file == own.file
    own.file.unlink()
    with pytest.raises(ConfigError, match=f"{damaged}: this file holds no reliability: it is damaged"):
        borrower.job(PLAN, source)


def test_a_fit_that_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    _, own = lender(tmp_path)
    content = own.file.read_bytes()
    own.file.write_bytes(content[:-1])
    for read in (own.fitted, own.why_not, own.model):
        with pytest.raises(WeightsError, match=f"{own.file}: this file holds no reliability: it is damaged"):
            read()
    own.file.unlink()
    with pytest.raises(WeightsError, match=f"{own.file} cannot be read: No such file"):
        own.fitted()


def test_the_file_says_what_its_maps_are_of(tmp_path: Path) -> None:
    _, own = lender(tmp_path)
    found: FittedReliability = from_bytes(own.file.read_bytes())
    assert found.maps_of["branch"] == planted_store(tmp_path / "again").branch.identity
    assert (found.maps_of["method"], found.maps_of["layer"], found.maps_of["size"]) == (
        "grad_cam",
        "last stage",
        [6, 6],
    )


def test_a_fit_is_done_when_its_part_and_its_file_are_there(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    jobs = [store.job(plan_of(threshold=threshold)) for threshold in (0.6, 0.7)]
    work = FitsOfJobs(jobs)
    assert work.done() == set()
    for item in range(2):
        ReliabilityFitter(jobs).run(item)
    assert work.done() == {0, 1}
    content = jobs[0].file.read_bytes()
    jobs[0].file.unlink()
    assert work.done() == {1}
    ReliabilityFitter(jobs).run(0)
    assert (work.done(), jobs[0].file.read_bytes()) == ({0, 1}, content)
    assert jobs[1].fit is not None
    jobs[1].fit.path(0).unlink()
    assert work.done() == {0}
    work.write_failure(1, 3, "no memory")
    assert jobs[1].fit.failures() == {0: "no memory"}
