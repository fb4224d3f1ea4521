"""Links to what a run wrote."""

from pathlib import Path

import pytest

from flows.progress import link_to
from infra.storage import location


@pytest.mark.parametrize(
    ("place", "link"),
    [
        ("/data/superscene", "file:///data/superscene"),
        ("/data/my store/report/index.html", "file:///data/my%20store/report/index.html"),
        ("file:///data/superscene", "file:///data/superscene"),
        ("s3://bucket/a b/report/index.html", "s3://bucket/a%20b/report/index.html"),
        ("gs://bucket/sr=none", "gs://bucket/sr=none"),
    ],
)
def test_a_link_is_a_url(place: str, link: str) -> None:
    assert link_to(location(place)) == link


def test_a_relative_folder_is_linked_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert link_to(Path("store")) == f"file://{tmp_path.resolve()}/store"
