"""The page of a store on object storage, and of tables without pixels, written where it was asked for."""

import shutil
from pathlib import Path

from infra.object_store import ObjectPath
from infra.storage import StorePaths, write_bytes
from tasks.report.page import write_report
from tests.tasks.report.report_store import Wanted, make_store


def test_a_store_on_object_storage_gives_the_same_page(s3_folder: ObjectPath, tmp_path: Path) -> None:
    local = make_store(tmp_path / "store", Wanted(sr=("none", "bicubic"))).paths
    for file in (path for path in local.root.rglob("*") if path.is_file()):
        write_bytes(s3_folder / file.relative_to(local.root).as_posix(), file.read_bytes())
    page = write_report(StorePaths(s3_folder), tmp_path / "made" / "page.html")
    assert page == tmp_path / "made" / "page.html"
    assert not StorePaths(s3_folder).report.exists()
    assert write_report(local) == local.report
    assert page.read_bytes() == local.report.read_bytes()


def test_tables_alone_give_all_numbers_and_no_pictures(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "store").paths
    shutil.copytree(whole.tables, tmp_path / "alone" / "tables")
    with_pictures, without = (write_report(paths).read_text() for paths in (whole, StorePaths(tmp_path / "alone")))
    before = with_pictures.split('<section id="gallery">')[0]
    assert without.split('<section id="gallery">')[0] == before
    assert "There are no pictures" in without
    assert "<img" not in without
    assert 'id="faults-table"' in without
