"""The reference run again, its archive packed and its store on object storage."""

import subprocess
from pathlib import Path

import pytest

from infra.object_store import ObjectPath
from infra.storage import StorePaths, write_bytes
from tests.flows.stores import Inputs, assert_same_tables, superscene
from tests.infra.archives.tar_files import pack
from tests.infra.s3_server import ACCESS_KEY, SECRET, TOKEN, Fault, S3Server


def copied(store: ObjectPath, folder: Path) -> Path:
    """Fetch a store's tables and report, to be read by libraries that know nothing of it."""
    for path in store.rglob("*"):
        part = path.relative_to(store)
        if part.parts[0] != "archive.zarr":
            write_bytes(folder / Path(*part.parts), path.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_on_object_storage_holds_what_a_local_one_does(
    inputs: Inputs, s3: S3Server, s3_folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although every tenth request or so fails in one way or another."""
    archive = {"layout": "bigearthnet-v2", "root": str(pack(inputs.archive, tmp_path / "packed", ".tar.zst"))}
    section = {"pooled": True, "clusters": 3}
    run_yaml = inputs.config(s3_folder, tmp_path / "RUN.yaml", archive=archive, reliability=section)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("SUPERSCENE_SCRATCH", str(scratch))
    s3.faults += [Fault("status", status, times=25, every=every) for status, every in ((503, 23), (500, 29), (429, 31))]
    s3.faults += [Fault("cut", method="PUT", key="part-", times=5, every=7), Fault("lost", method="PUT", every=41)]
    s3.faults += [Fault("half", method="GET", key="part-", times=5, every=5), Fault("cut", method="GET", every=43)]
    said = superscene("run", run_yaml, timeout=900, alone=True)
    assert said.returncode == 0, said.stderr
    assert s3.faults[0].times < 25
    assert not s3.faults[-1].times, "no fault was injected"
    s3.faults.clear()
    assert not list(scratch.iterdir())
    local = copied(s3_folder, tmp_path / "copy")
    assert_same_tables(local, inputs.reference)
    assert not [path for path in s3_folder.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    contents = b"".join(path.read_bytes() for path in local.rglob("*") if path.is_file())
    for secret in (ACCESS_KEY, SECRET, TOKEN):
        assert secret not in said.stdout + said.stderr
        assert secret.encode() not in contents
    assert not (Path.cwd() / "s3:").exists()

    asked = _answer("sql", s3_folder, "SELECT count(*) FROM predictions")
    assert asked.splitlines()[-1] == str(2 * (24 - 1))
    asked = _answer("sql", s3_folder, "SELECT count(*), count(reliability) FROM reliability").splitlines()[-1]
    assert asked.split() == [str(19 * 2 * (24 - 1))] * 2
    assert "complete" in _answer("status", s3_folder)
    assert f"report: {StorePaths(s3_folder).report}" in _answer("report", run_yaml)


def _answer(*arguments: object) -> str:
    result: subprocess.CompletedProcess[str] = superscene(*map(str, arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", ["status", "sql"])
def test_a_url_with_a_password_is_refused_unsaid(command: str) -> None:
    arguments = [command, f"s3://{ACCESS_KEY}:{SECRET}@bucket/store", *(["SELECT 1"] if command == "sql" else [])]
    result = superscene(*arguments)
    assert result.returncode == 2
    assert "credentials come from the environment" in " ".join(result.stderr.split())
    assert SECRET not in result.stdout + result.stderr
