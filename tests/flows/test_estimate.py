"""`superscene plan` on a small archive, by hand numbers."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.config import RunConfig
from flows.estimate import estimate
from infra.archives.synthetic import write_synthetic_archive
from tests.infra.archives.tar_files import pack

PATCHES = 12


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan") / "archive"
    write_synthetic_archive(root, PATCHES)
    return root


def planned(archive: Path, **changes: Any) -> dict[str, str]:
    settings: dict[str, Any] = {
        "archive": {"layout": "bigearthnet-v2", "root": archive},
        "store": archive.parent / "store",
        "classifiers": ["resnet18"],
        "train": {"backbone": "random"},
        **changes,
    }
    return {row.title: row.text for row in estimate(RunConfig.model_validate(settings))}


def of_splits(archive: Path) -> pd.DataFrame:
    return pd.read_parquet(archive / "metadata.parquet", columns=["split", "labels"])


def test_maps_of_every_patch(archive: Path) -> None:
    """Grad-CAM and the floor, which has one map for all labels, of 4 x 4 places without and 15 x 15 with bicubic."""
    n = len(of_splits(archive))
    rows = planned(archive)
    n_bytes = 2 * n * (16 + 225) * (19 + 1)
    assert rows["maps, before compression"] == f"{n_bytes / 1000:.3g} kB"
    assert rows["passes of costly methods"] == "0"
    assert rows["passes that judge maps, about"] == "0"


def test_costly_methods_without_a_sample_see_every_patch(archive: Path) -> None:
    n = len(of_splits(archive))
    explain = {"methods": ["grad_cam", "rise"], "options": {"rise": {"masks": 1000}}}
    rows = planned(archive, explain=explain, classifiers=["resnet18", "resnet50"])
    n_bytes = 2 * 2 * n * ((16 + 225) * (19 + 1) + 2 * 120 * 120 * 19)
    assert rows["maps, before compression"] == f"{n_bytes / 1e6:.3g} MB"
    assert rows["passes of costly methods"] == f"{2 * 2 * 1000 * n:,} (rise {2 * 2 * 1000 * n:,})"
    assert rows["passes that judge maps, about"] == "0"


@pytest.mark.parametrize("labels", ["all", "true"])
def test_a_sample_bounds_the_passes_and_has_those_that_judge(archive: Path, labels: str) -> None:
    """Two patches of each split: three maps of 71 passes for each label, and the floor's, on two branches."""
    truth = of_splits(archive)
    n, sampled = len(truth), sum(min(2, count) for count in truth["split"].value_counts())
    assert sampled < n
    methods = ["grad_cam", "rise", "score_cam"]
    explain = {"methods": methods, "sample": 2, "labels": labels, "options": {"rise": {"masks": 1000}}}
    rows = planned(archive, explain=explain)
    n_bytes = 2 * (n * (16 + 225) * (19 + 1) + sampled * ((16 + 225) * 19 + 2 * 120 * 120 * 19))
    assert rows["maps, before compression"] == f"{n_bytes / 1e6:.3g} MB"
    told = f"{2 * sampled * 1512:,} (rise {2 * sampled * 1000:,}, score_cam {2 * sampled * 512:,})"
    assert rows["passes of costly methods"] == told
    if labels == "all":
        assert rows["passes that judge maps, at most"] == f"{2 * sampled * 71 * (3 * 19 + 1):,}"
    else:
        mean = truth["labels"].map(len).mean()
        assert rows["passes that judge maps, about"] == f"{2 * sampled * 71 * (3 * mean + 1):,.0f}"


def test_reliability_reads_every_map_once_and_those_of_validation_thrice(archive: Path) -> None:
    splits = of_splits(archive)["split"].value_counts()
    n, validation = splits.sum(), splits["validation"]
    rows = with_section(archive, {"method": "grad_cam"})
    assert rows["reliability, decisions to assign"] == f"{2 * 19 * n:,}"
    assert rows["reliability, decisions to fit on, at most"] == f"{2 * 19 * validation:,}"
    n_bytes = 2 * (16 + 225) * 19 * (n + 2 * validation)
    assert rows["reliability, maps to read, before compression"] == f"{n_bytes / 1000:.3g} kB"
    # Maps of a sample of two a split; then one map for all labels.
    rows = with_section(archive, {"method": "rise"}, sample=2)
    sampled = sum(min(2, count) for count in splits)
    assert rows["reliability, decisions to assign"] == f"{2 * 19 * sampled:,}"
    assert rows["reliability, decisions to fit on, at most"] == f"{2 * 19 * min(2, validation):,}"
    n_bytes = 2 * 2 * 120 * 120 * 19 * (sampled + 2 * min(2, validation))
    assert rows["reliability, maps to read, before compression"] == f"{n_bytes / 1e6:.3g} MB"
    rows = with_section(archive, {"method": "eigen_cam"})
    assert rows["reliability, decisions to assign"] == f"{2 * 19 * n:,}"
    assert (
        rows["reliability, maps to read, before compression"]
        == f"{2 * (16 + 225) * (n + 2 * validation) / 1000:.3g} kB"
    )
    assert not [what for what in planned(archive) if "reliability" in what]


def with_section(archive: Path, section: dict[str, Any], **explain: Any) -> dict[str, str]:
    methods = ["grad_cam", "eigen_cam", "rise"]
    return planned(archive, explain={"methods": methods, **explain}, reliability=section)


def test_buckets_have_room_for_the_files_of_all_archives(archive: Path, tmp_path: Path) -> None:
    """Twelve bands, a pair, a map: 304,000 bytes of pixels in 15 files, a kilobyte of headers each."""
    n = len(of_splits(archive))
    root = pack(archive, tmp_path / "packed", ".tar.zst")
    rows = planned(root)
    assert rows["work/buckets, until ingested"] == f"{n * (304_000 + 15 * 1024) / 1e6:.3g} MB"
    assert rows["patches"] == planned(archive)["patches"]
    assert "work/buckets, until ingested" not in planned(archive)


def test_a_network_of_one_label_has_one_map(archive: Path) -> None:
    n = len(of_splits(archive))
    rows = planned(archive, train={"backbone": "random", "one_against_rest": "Pastures"})
    assert rows["maps, before compression"] == f"{2 * n * (16 + 225) * 2 / 1000:.3g} kB"


def test_without_methods_nothing_is_said_of_maps(archive: Path) -> None:
    assert not [what for what in planned(archive, explain={"methods": []}) if "maps" in what or "passes" in what]
