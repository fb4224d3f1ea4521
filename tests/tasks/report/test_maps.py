"""The report's section on activation maps, on the page and as Markdown, against numbers put into its table by hand."""

import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from classifiers import explain_methods
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, publish, read_table
from tasks.last_run import last_run
from tasks.paper_tables import publish_paper_tables
from tasks.report.cells import NULL
from tasks.report.map_tables import METHOD_NAMES, Maps
from tasks.report.maps import maps_of_run
from tasks.report.page import write_report
from tests.tasks.report.report_store import (
    CLASSIFIERS,
    JUDD,
    MAP_METHODS,
    MAP_WIDTH,
    POINTING,
    QUARTER_AREAS,
    SAMPLE_JUDD,
    SR,
    Made,
    Page,
    TableCell,
    Wanted,
    make_store,
)
from tests.tasks.report.test_page import plain

RANKED = ("layer_cam", "grad_cam", "grad_cam_pp", "eigen_cam", "smooth_grad_cam_pp")
"""By Judd AUC, HiResCAM being Grad-CAM; Score-CAM saw the sample alone."""
RANKED_ON_SAMPLE = ("eigen_cam", "score_cam", "grad_cam", "grad_cam_pp", "layer_cam", "smooth_grad_cam_pp")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of judged maps with its page; read only."""
    made = make_store(tmp_path_factory.mktemp("maps") / "store", Wanted(judged="located"))
    write_report(made.paths)
    return made


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return Page(made.paths.report.read_text(encoding="utf-8"))


def section(page: Page) -> str:
    return page.text.split(" Where the network looks ")[1].split(" Gallery ")[0]


def maps_of(paths: StorePaths) -> Maps:
    run = last_run(paths)
    maps = maps_of_run(paths, run.configs, run.sr, run.classifiers, run.settings["explain"]["methods"], "test")
    assert maps is not None
    return maps


def by_title(page: Page, name: str) -> dict[str, dict[str, TableCell]]:
    """Cells of a table by the first cell of their row, and by title."""
    head, *rows = page.tables[name]
    return {row[0].text: dict(zip([cell.text.rstrip(" ↑↓") for cell in head], row, strict=True)) for row in rows}


def rewritten(made: Made, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> StorePaths:
    """A copy of the store with other rows of the maps' means; None leaves a row out."""
    paths = StorePaths(folder / "store")
    shutil.copytree(made.paths.root, paths.root)
    rows = read_table(paths.table("explanation_metrics")).to_pylist()
    kept = [new for row in rows if (new := change(row)) is not None]
    shutil.rmtree(paths.table("explanation_metrics"))
    schema = pa.schema([pa.field(field.name, field.type) for field in EXPLANATION_METRICS])
    publish(paths.table("explanation_metrics"), pa.Table.from_pylist(kept, schema), schema, [])
    return paths


def test_methods_are_ranked_by_what_the_table_says(page: Page) -> None:
    assert sorted(RANKED, key=lambda method: -JUDD[method]) == list(RANKED)
    for classifier in CLASSIFIERS:
        for shift, sr in enumerate(SR):
            rows = by_title(page, f"maps-{classifier}-{sr}")
            names = [METHOD_NAMES[method] for method in RANKED]
            names[1] = "Grad-CAM = HiResCAM"
            assert list(rows) == [*names, "uniform floor", "random floor"]
            for place, (method, name) in enumerate(zip(RANKED, names, strict=True), start=1):
                row, auc = rows[name], JUDD[method] + shift / 32
                assert row["Judd AUC"].value == auc
                assert row["Judd AUC"].text == f"#{place} {auc:.3f} {auc - MAP_WIDTH:.3f} to {auc + MAP_WIDTH:.3f}"
                assert row["Pointing \N{MINUS SIGN} area"].value == POINTING[method]
                better = sum(POINTING[other] > POINTING[method] for other in RANKED)
                assert row["Pointing \N{MINUS SIGN} area"].text.startswith(f"#{better + 1} ")
                assert row["Coverage"].value == 0.5 + shift / 32


def test_floors_stand_beside_and_are_never_ranked(page: Page) -> None:
    """random would be the last, and uniform the last but one."""
    for name in [name for name in page.tables if re.fullmatch(r"maps-resnet\d+-(none|bicubic|srresnet)", name)]:
        rows = by_title(page, name)
        for floor in ("uniform floor", "random floor"):
            assert not any(cell.bold or "#" in cell.text for cell in rows[floor].values())
        assert rows["uniform floor"]["Judd AUC"].value == 0.5
        assert rows["uniform floor"]["IoU 75 %"].value == 0.25
        assert rows["uniform floor"]["Coverage"].text == NULL
    assert by_title(page, "maps-resnet18-none")["random floor"]["Judd AUC"].value == JUDD["random"]


def test_a_floor_above_all_methods_is_not_ranked_either(made: Made, tmp_path: Path) -> None:
    best = ("random", "judd_auc")
    paths = rewritten(
        made, tmp_path, lambda row: row | {"value": 0.99} if (row["method"], row["metric"]) == best else row
    )
    for table in maps_of(paths).classifiers[0].tables:
        assert [line.rank for line in table.lines] == list(range(1, len(table.lines) + 1))
        assert table.floors[-1].cells["judd_auc"].cell.value == 0.99
        assert table.floors[-1].rank is None


def test_one_map_is_one_line_where_its_numbers_are_the_same(made: Made, page: Page) -> None:
    """Grad-CAM++ and SmoothGrad-CAM++ differ here, as on a head that is not linear."""
    assert "Grad-CAM = HiResCAM: one and the same map, but for its unit, on networks whose heads see" in section(page)
    assert "Each such line is one vote, not several." in section(page)
    assert "SmoothGrad-CAM++ =" not in page.text
    assert "= SmoothGrad-CAM++" not in page.text
    lines = [line for table in maps_of(made.paths).classifiers[0].tables for line in table.lines]
    assert {line.methods for line in lines if len(line.methods) > 1} == {("grad_cam", "hires_cam")}
    assert "EigenCAM: one map of a patch, the same for all of its labels." in section(page)


def test_all_methods_are_ranked_on_the_patches_of_the_sample(page: Page) -> None:
    """Score-CAM's 0.875 would be the best of all patches, but it is of the sample, where EigenCAM has 0.9375."""
    assert sorted(RANKED_ON_SAMPLE, key=lambda method: -SAMPLE_JUDD[method]) == list(RANKED_ON_SAMPLE)
    for shift, sr in enumerate(SR):
        rows = by_title(page, f"maps-resnet50-{sr}-sample")
        names = [METHOD_NAMES[method] for method in RANKED_ON_SAMPLE]
        names[2] = "Grad-CAM = HiResCAM"
        assert list(rows) == [*names, "uniform floor", "random floor"]
        for place, (method, name) in enumerate(zip(RANKED_ON_SAMPLE, names, strict=True), start=1):
            auc, row = SAMPLE_JUDD[method] + shift / 32, rows[name]
            assert row["Judd AUC"].value == auc
            assert row["Judd AUC"].text == f"#{place} {auc:.3f} {auc - MAP_WIDTH:.3f} to {auc + MAP_WIDTH:.3f}"
            better = sum(POINTING[other] > POINTING[method] for other in RANKED_ON_SAMPLE)
            assert row["Pointing \N{MINUS SIGN} area"].text.startswith(f"#{better + 1} ")
        assert rows["random floor"]["Judd AUC"].value == SAMPLE_JUDD["random"] + shift / 32
        assert rows["uniform floor"]["IoU 75 %"].value == 0.125
    assert rows["Score-CAM"]["Zero maps"].text == "0 of 20"
    assert rows["EigenCAM"]["Zero maps"].text == "5 of 20"
    assert "Score-CAM" not in by_title(page, "maps-resnet50-srresnet")
    assert page.text.count(" on the sample alone") == (len(SR) + 1) * len(
        CLASSIFIERS
    )  # a branch each, and the differences
    assert "Tables of the sample are of the patches of explain.sample alone, and rank all methods on them" in page.text
    assert page.text.count("Rare labels are over-represented in the sample on purpose") == 1
    assert "its numbers compare methods, and are no estimates for the archive." in page.text


def test_a_sample_of_all_patches_is_one_table(made: Made, tmp_path: Path) -> None:
    paths = rewritten(made, tmp_path, lambda row: row | {"n": 40})
    (first, *_) = maps_of(paths).classifiers
    assert [(table.sr, table.sampled) for table in first.tables] == [(sr, False) for sr in SR]
    assert [line.methods[0] for line in first.tables[0].lines] == list(RANKED_ON_SAMPLE)
    assert "average_drop" in {column.name for column in first.tables[0].columns}
    assert [table.sampled for table in first.minus] == [False]
    assert not maps_of(paths).sampled
    assert not any("over-represented" in note for note in maps_of(paths).notes)


def test_a_sample_that_lacks_maps_of_one_branch_is_a_table_of_its_own(made: Made, tmp_path: Path) -> None:
    paths = rewritten(made, tmp_path, lambda row: row | {"n": 40 if row["sr"] == "bicubic" else row["n"]})
    (first, *_) = maps_of(paths).classifiers
    assert [(t.sr, t.sampled) for t in first.tables] == [(sr, of_sample) for sr in SR for of_sample in (False, True)]


def test_floors_alone_are_no_table_beside_methods(made: Made, tmp_path: Path) -> None:
    """Where every method is costly, random alone has maps of all patches."""
    paths = rewritten(
        made, tmp_path, lambda row: row if row["method"] in {"random", "uniform"} or row["subset"] == "sample" else None
    )
    (first, *_) = maps_of(paths).classifiers
    assert [(table.sr, table.sampled) for table in first.tables] == [(sr, True) for sr in SR]
    only = rewritten(made, tmp_path / "only", lambda row: row if row["method"] in {"random", "uniform"} else None)
    (first, *_) = maps_of(only).classifiers
    assert [[line.methods for line in table.floors] for table in first.tables[:2]] == [[("uniform",), ("random",)]] * 2


def test_one_map_alone_and_none_that_is_zero(made: Made, tmp_path: Path) -> None:
    paths = rewritten(made, tmp_path, lambda row: None if row["metric"] == "zero_share" else row | {"n": 1})
    write_report(paths)
    text = section(Page(paths.report.read_text(encoding="utf-8")))
    assert "Localisation is of the one map whose label the reference map has." in text
    assert "A zero map" not in text


def test_rows_of_an_earlier_version_do_not_say_what_they_are_over_and_are_left_out(made: Made, tmp_path: Path) -> None:
    paths = rewritten(made, tmp_path, lambda row: row | {"subset": None})
    run = last_run(paths)
    assert maps_of_run(paths, run.configs, run.sr, run.classifiers, MAP_METHODS) is None


def test_uniform_is_of_the_maps_of_the_method_that_has_the_most(made: Made, tmp_path: Path) -> None:
    """Not of Grad-CAM's, the first one, of whose maps half are zero here."""
    rows = read_table(made.paths.table("explanation_metrics")).to_pylist()
    configs = {row["config"] for row in rows if row["method"] == "grad_cam"}
    fewer = {"value": 0.9, "n": 5}
    paths = rewritten(
        made, tmp_path, lambda row: row | fewer if row["config"] in configs and row["method"] == "uniform" else row
    )
    for table in maps_of(paths).classifiers[0].tables:
        uniform = table.floors[0].cells["iou_75"]
        assert (uniform.cell.value, uniform.n) == ((0.125, 10) if table.sampled else (0.25, 20))


def test_a_costly_method_alone_is_told_to_have_seen_the_sample(made: Made, tmp_path: Path) -> None:
    paths = StorePaths(tmp_path / "store")
    shutil.copytree(made.paths.root, paths.root)
    for file in paths.table("explanation_metrics").glob("*.parquet"):
        if "-score_cam-" not in file.name:
            file.unlink()
    (first, *_) = maps_of(paths).classifiers
    assert [(table.sr, table.sampled) for table in first.tables] == [(sr, True) for sr in SR]
    assert [[line.methods for line in (*t.lines, *t.floors)] for t in first.tables] == [
        [("score_cam",), ("uniform",)]
    ] * 3


def test_faithfulness_is_shown_where_it_is_known(page: Page) -> None:
    assert "Drop, %" not in by_title(page, "maps-resnet18-none")["LayerCAM"]  # of all patches
    rows = by_title(page, "maps-resnet18-none-sample")
    assert rows["LayerCAM"]["Drop, %"].text == "12.5 12.5 to 12.5"  # an interval of 0.015625
    assert rows["LayerCAM"]["Deletion"].value == 0.125
    assert rows["EigenCAM"]["Drop, %"].text == NULL
    assert [rows["LayerCAM"][title].value for title in ("Increase, %", "Insertion")] == [25.0, 0.375]
    assert "were not asked for" not in section(page)


def test_zero_and_quarantined_maps_are_counted(page: Page) -> None:
    rows = by_title(page, "maps-resnet18-none")
    assert rows["EigenCAM"]["Zero maps"].text == "10 of 40"  # a quarter
    assert rows["LayerCAM"]["Zero maps"].text == "0 of 40"
    for n in (20, 10):  # of all patches, and of the sample
        assert section(page).count(f"Localisation is of the {n} maps whose label") == len(SR) * len(CLASSIFIERS)
    assert section(page).count("A zero map, nowhere above 0, has no other number") == 1
    assert (
        "4 maps are not finite and so quarantined, over all splits: 2 of LayerCAM on srresnet with resnet18, "
        "2 of LayerCAM on srresnet with resnet50." in section(page)
    )


def test_differences_are_to_bicubic_and_never_to_none(page: Page) -> None:
    of_all = ["Grad-CAM = HiResCAM", "EigenCAM", "LayerCAM", "Grad-CAM++", "SmoothGrad-CAM++"]
    shown = {"": (of_all, "+0.031 +0.016 to +0.047"), "-sample": ([*of_all, "Score-CAM"], "+0.062 +0.047 to +0.078")}
    for classifier, (subset, (names, text)) in product(CLASSIFIERS, shown.items()):
        head, *rows = page.tables[f"maps-minus-{classifier}{subset}"]
        assert [cell.text for cell in head] == ["Method", "SR model", "Judd AUC", "Coverage"]
        assert {row[1].text for row in rows} == {"srresnet"}
        assert [row[0].text for row in rows] == names
        assert {plain(cell) for row in rows for cell in row[2:]} == {text}
    assert "0.777" not in page.text
    assert "no significance is claimed" in section(page)
    assert "those of none are smaller, so nothing is compared with none" in section(page)


def test_iou_by_area_is_of_the_first_method_beside_the_floors(page: Page) -> None:
    _, *rows = page.tables["maps-area-resnet18"]
    assert [row[0].text.split()[0] for row in rows] == [sr for sr in SR for _ in range(4)]
    assert [row[1].text for row in rows] == ["Grad-CAM", "uniform floor", "random floor", "area share"] * 3
    for row, add, part in zip(rows, (0.125, 0.0, 0.0625, 0.0) * 3, (1, 1, 1, 2) * 3, strict=True):
        assert [cell.value for cell in row[2:]] == [area / part + add for area in QUARTER_AREAS]


def test_iou_by_area_of_a_costly_method_is_of_the_sample_as_are_its_floors(made: Made) -> None:
    run = last_run(made.paths)
    maps = maps_of_run(made.paths, run.configs, run.sr, run.classifiers, ("score_cam", *MAP_METHODS), "test")
    assert maps is not None
    lines = maps.classifiers[0].areas[:4]
    assert [line.method for line in lines] == ["score_cam", "uniform", "random", "area"]
    for line, add, part in zip(lines, (1 / 32, 0, 1 / 32, 0), (1, 1, 1, 2), strict=True):
        values = [None if cell is None else cell.cell.value for cell in line.cells]
        assert values == [area / part + add for area in QUARTER_AREAS]


def test_rows_of_labels_splits_and_other_runs_stay_out(made: Made, page: Page, tmp_path: Path) -> None:
    assert "0.999" not in section(page)
    paths = StorePaths(tmp_path / "store")
    shutil.copytree(made.paths.root, paths.root)
    rows = [row | {"config": "a0000000"} for row in read_table(paths.table("explanation_metrics")).to_pylist()]
    table = pa.Table.from_pylist(rows, EXPLANATION_METRICS)
    publish(paths.table("explanation_metrics"), table, EXPLANATION_METRICS, [], file_stem="other")
    write_report(paths)
    assert paths.report.read_bytes() == made.paths.report.read_bytes()


def test_without_reference_maps_coverage_stands_alone(tmp_path: Path) -> None:
    paths = make_store(tmp_path, Wanted(judged="coverage")).paths
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert "No map was compared with land cover" in section(page)
    head, *rows = page.tables["maps-resnet18-srresnet"]
    assert [cell.text for cell in head] == ["Method", "Coverage", "Zero maps"]
    head_of_sample, *_ = page.tables["maps-resnet18-srresnet-sample"]
    assert [cell.text for cell in head_of_sample] == [
        "Method",
        "Coverage",
        "Drop, % ↓",
        "Increase, % ↑",
        "Deletion ↓",
        "Insertion ↑",
        "Zero maps",
    ]
    assert "Grad-CAM++ = SmoothGrad-CAM++: one and the same map, but for its unit, on networks whose linear heads" in (
        section(page)
    )
    names = ["Grad-CAM = HiResCAM", "EigenCAM", "LayerCAM", "Grad-CAM++ = SmoothGrad-CAM++", "random floor"]
    assert [row[0].text for row in rows] == names  # as RUN.yaml has them
    assert {row[1].value for row in rows} == {0.5625}
    assert "maps-area-resnet18" not in page.tables
    assert [cell.text for cell in page.tables["maps-minus-resnet18"][0]] == ["Method", "SR model", "Coverage"]


def test_without_bicubic_nothing_is_compared_and_that_is_said(tmp_path: Path) -> None:
    paths = make_store(tmp_path, Wanted(judged="located", sr=("none", "srresnet"))).paths
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert "Without bicubic, the control, no branch is compared" in section(page)
    assert not [name for name in page.tables if name.startswith("maps-minus")]


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    paths = make_store(tmp_path, Wanted()).paths
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert "How well maps point is not known: tables/explanation_metrics has no rows of this run." in section(page)
    publish_paper_tables(paths, last_run(paths).configs, SR, CLASSIFIERS)
    assert "Where the network looks" not in paths.report.with_name("tables.md").read_text(encoding="utf-8")


def test_markdown_has_the_numbers_of_the_page(made: Made, page: Page, tmp_path: Path) -> None:
    paths = StorePaths(tmp_path / "store")
    shutil.copytree(made.paths.root, paths.root)
    publish_paper_tables(paths, last_run(paths).configs, SR, CLASSIFIERS, MAP_METHODS)
    text = paths.report.with_name("tables.md").read_text(encoding="utf-8")
    assert text.startswith("# The paper's tables\n")
    of_maps = text.split("## Where the network looks\n")[1]
    numbers = re.compile(r"[+\N{MINUS SIGN}]?\d+\.\d+")
    shown = [cell.text for name in page.tables if name.startswith("maps-") for row in page.tables[name] for cell in row]
    assert sorted(numbers.findall(of_maps)) == sorted(number for cell in shown for number in numbers.findall(cell))
    for line in of_maps.splitlines():
        if line.startswith(("| uniform", "| random")):
            assert line.count("floor |") == 2
    assert "- No map is quarantined" not in of_maps
    assert of_maps.count("| Grad-CAM = HiResCAM |") == 2 * 2 * (3 + 1)  # a branch each, and the differences
    assert of_maps.count("#### Maps minus bicubic on the sample alone\n") == 2
    assert re.search(r"\| Grad-CAM = HiResCAM +\| +2 \| +2 \| +0\.750 \(0\.734 to 0\.766\)", of_maps)


def test_every_method_has_a_name() -> None:
    assert set(METHOD_NAMES) == {*explain_methods(), "uniform"}
    assert len(set(METHOD_NAMES.values())) == len(METHOD_NAMES)
