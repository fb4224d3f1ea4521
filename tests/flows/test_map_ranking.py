"""The report's ranking of methods on the synthetic archive, whose land cover is known, against pandas over the maps."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.stores import Inputs
from tests.tasks.report.report_store import Page, TableCell

NAMES = {"grad_cam": "Grad-CAM"}
"""Methods of the reference store but for the floor; the ranks of many are tested in tests/tasks/report/test_maps.py."""
EXCESS = "Pointing \N{MINUS SIGN} area"
COLUMNS = {"Judd AUC": "judd_auc", "IoU 75 %": "iou_75", "Correlation": "correlation", "Coverage": "coverage"}


@pytest.fixture(scope="module")
def store(inputs: Inputs) -> Path:
    """The reference store; read only."""
    return inputs.reference


@pytest.fixture(scope="module")
def page(store: Path) -> Page:
    return Page((store / "report" / "index.html").read_text(encoding="utf-8"))


def last_run(store: Path) -> set[str]:
    return set(pd.read_parquet(store / "tables" / "runs").sort_values("run_id")["configs"].iloc[-1])


def maps_of(store: Path, sr: str) -> pd.DataFrame:
    """Maps of the run on the test patches without snow or cloud."""
    rows = pd.read_parquet(store / "tables" / "explanations")
    rows = rows[rows["config"].astype(str).isin(last_run(store)) & (rows["sr"] == sr) & (rows["split"] == "test")]
    patches = pd.read_parquet(store / "tables" / "patches").set_index("patch_id")
    flagged = patches["has_snow"].fillna(value=False) | patches["has_cloud"].fillna(value=False)
    return rows[~rows["patch_id"].map(flagged)]


def by_title(page: Page, table: str) -> dict[str, dict[str, TableCell]]:
    head, *rows = page.tables[table]
    titles = [cell.text.rstrip(" ↑↓") for cell in head]
    return {row[0].text: dict(zip(titles, row, strict=True)) for row in rows}


def interval(cell: TableCell) -> tuple[float, float]:
    found = re.search(r"(\S+) to (\S+)$", cell.text)
    assert found is not None, cell.text
    low, high = (float(end.replace("\N{MINUS SIGN}", "-")) for end in found.groups())
    return low, high


@pytest.mark.parametrize("sr", ["none", "bicubic"])
def test_numbers_are_means_over_the_maps_and_ranks_follow(store: Path, page: Page, sr: str) -> None:
    maps = maps_of(store, sr)
    maps = maps.assign(excess=maps["pointing"] - maps["area_share"])
    rows = by_title(page, f"maps-resnet18-{sr}")
    means = maps.groupby("method", observed=True)[[*COLUMNS.values(), "excess"]].mean(numeric_only=True)
    expected = means.loc[list(NAMES)]
    order = expected["judd_auc"].sort_values(ascending=False).index
    assert list(rows) == [*(NAMES[method] for method in order), "uniform floor", "random floor"]
    pointing = expected["excess"].round(12).rank(ascending=False, method="min").astype(int)
    for place, method in enumerate(order, start=1):
        row = rows[NAMES[method]]
        assert row["Judd AUC"].text.startswith(f"#{place} {expected['judd_auc'][method]:.3f} ")
        assert row[EXCESS].text.startswith(f"#{pointing[method]} ")
    for method, name in {**NAMES, "random": "random floor"}.items():
        for title, column in {**COLUMNS, EXCESS: "excess"}.items():
            assert rows[name][title].value == pytest.approx(means[column][method], abs=1e-6)
        value, (low, high) = rows[name]["Judd AUC"].value, interval(rows[name]["Judd AUC"])
        assert value is not None
        assert low <= value <= high
        assert low < high


@pytest.mark.parametrize("sr", ["none", "bicubic"])
def test_floors_stand_beside_the_methods_and_noise_is_noise(store: Path, page: Page, sr: str) -> None:
    """A uniform map scores as chance says, of a label's share a of the patch IoU 0.75 a / (0.75 + 0.25 a)."""
    rows = by_title(page, f"maps-resnet18-{sr}")
    low, high = interval(rows["random floor"]["Judd AUC"])
    assert low <= 0.5 <= high
    uniform = rows["uniform floor"]
    assert (uniform["Judd AUC"].value, uniform[EXCESS].value) == (0.5, 0.0)
    maps = maps_of(store, sr)
    a = maps[(maps["method"] == "random") & maps["area_share"].notna()]["area_share"]
    assert uniform["IoU 75 %"].value == pytest.approx((0.75 * a / (0.75 + a - 0.75 * a)).mean(), abs=1e-4)
    assert not any("#" in cell.text for name in ("uniform floor", "random floor") for cell in rows[name].values())
