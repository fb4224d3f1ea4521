"""What is refused before anything is trained, and which fit of another store is taken; oracles are counts by hand."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classifiers.cam.explain import OptionValue
from classifiers.network import Classifier
from classifiers.registry import build
from classifiers.reliability import ClusterSettings, to_bytes
from infra.errors import ConfigError
from infra.storage import StorePaths, write_bytes
from tasks.branch import Branch, make_branch
from tasks.reliability import check_pixels, check_samples
from tasks.reliability_stage import ReliabilityFitter
from tests.tasks.planted_maps import PlantedStore, plan_of, planted, planted_store

EIGHT = ClusterSettings(clusters=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PlantedStore:
    """50 patches of the validation split, of which 45 count, by three labels."""
    case = planted(50, 10)
    return planted_store(tmp_path_factory.mktemp("planted"), case, flagged=[0, 1, 2, 52], unlabelled=[2, 3, 4, 53])


@pytest.mark.parametrize("sample_size", [None, 45, 46, 1000])
def test_patches_that_count_are_those_labelled_and_clean_whatever_the_sample_allows(
    store: PlantedStore, sample_size: int | None
) -> None:
    inputs, validation = store.branch.inputs, store.validation
    check_samples(inputs, validation, plan_of(), sample_size)
    with pytest.raises(ConfigError, match=r"each of 3 clusters, 60 in all, found 45: .* at most 2 clusters"):
        check_samples(inputs, validation, plan_of(settings=ClusterSettings(clusters=3)), sample_size)
    with pytest.raises(ConfigError, match=r"each of 8 clusters, 160 in all, found 135"):
        check_samples(inputs, validation, plan_of(pooled=True, settings=EIGHT), sample_size)
    check_samples(inputs, validation, plan_of(pooled=True, settings=ClusterSettings(clusters=6)), sample_size)


def test_a_costly_method_has_no_more_samples_than_the_patches_it_is_run_on(store: PlantedStore) -> None:
    inputs, validation = store.branch.inputs, store.validation
    check_samples(inputs, validation, plan_of(), 40)
    with pytest.raises(ConfigError, match=r"20 validation samples for each of 2 clusters, 40 in all, found 39: pool"):
        check_samples(inputs, validation, plan_of(), 39)
    check_samples(inputs, validation, plan_of(pooled=True), 14)  # 14 patches by 3 labels
    with pytest.raises(ConfigError, match="40 in all, found 39"):
        check_samples(inputs, validation, plan_of(pooled=True), 13)


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


def test_a_fit_of_no_label_is_not_lent(tmp_path: Path) -> None:
    """Of another classifier of that store, say, of which every decision is right: it tells nothing of whose maps."""
    lender = planted_store(tmp_path / "lender")
    own = lender.job(plan_of())
    ReliabilityFitter([own]).run(0)
    source = StorePaths(tmp_path / "lender")
    nothing = source.reliability("none", "another", "0a0a0a0a")
    write_bytes(nothing, to_bytes({}))
    os.utime(nothing, (own.file.stat().st_mtime + 10,) * 2)  # the newest
    assert source.reliabilities() == [nothing, own.file]
    borrower = planted_store(tmp_path / "borrower", planted(0, 50, seed=4))
    assert borrower.job(plan_of(), source).file == own.file
    own.file.unlink()
    with pytest.raises(ConfigError, match="has no reliability of these settings for grad_cam maps"):
        borrower.job(plan_of(), source)
