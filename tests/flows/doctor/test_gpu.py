"""GPU checks on systems that are made of files, and a torch of which only what is asked is another."""

from pathlib import Path

import pytest
import torch

from flows.doctor import gpu
from flows.doctor.case import Case
from tests.flows.doctor.system import CLOSED_DRIVER, OPEN_DRIVER, with_card, with_driver


def test_a_machine_without_a_card_is_fine(tmp_path: Path) -> None:
    finding = gpu.driver(Case(system=tmp_path))
    assert (finding.state, finding.found) == ("ok", "no NVIDIA card: runs go on the CPU")
    asked = gpu.driver(Case(system=tmp_path, gpus=1.0))
    assert (asked.state, "gpus_per_actor: 1" in asked.found) == ("fail", True)


@pytest.mark.parametrize(("vendor", "kind"), [("0x8086", "0x030000"), ("0x10de", "0x040300")])
def test_only_nvidia_displays_are_cards(tmp_path: Path, vendor: str, kind: str) -> None:
    """Intel's graphics, and the sound device of an NVIDIA card."""
    assert gpu.driver(Case(system=with_card(tmp_path, vendor, kind))).state == "ok"


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    system = with_card(tmp_path)
    assert gpu.driver(Case(system=system)).state == "warn"
    assert gpu.driver(Case(system=system, gpus=1.0)).state == "fail"


def test_gpus_of_a_cluster_s_workers_need_not_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = Case(system=tmp_path, gpus=1.0)
    assert gpu.driver(wanted).state == "fail"
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert gpu.driver(wanted).state == "ok"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as in a Linux within Windows
    assert gpu.driver(wanted).state == "ok"


@pytest.mark.parametrize("text", [OPEN_DRIVER, CLOSED_DRIVER])
def test_the_version_of_both_kinds_of_driver(tmp_path: Path, text: str) -> None:
    case = Case(system=with_driver(with_card(tmp_path), "535.129.03", text))
    assert gpu.driver_version(case) == "535.129.03"
    assert gpu.driver(case).state == "ok"


def test_torch_for_cpus_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert gpu.build(Case(system=tmp_path)).state == "ok"
    system = with_driver(tmp_path, "535.129.03")
    finding = gpu.build(Case(system=system))
    assert (finding.state, "CPUs only" in finding.found) == ("warn", True)
    assert gpu.build(Case(system=system, gpus=1.0)).state == "fail"


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        ("13.2", "535.129.03", "too old: CUDA 13.2 of torch needs 580.0"),
        ("12.8", "470.57.02", "too old: CUDA 12.8 of torch needs 525.60"),
        ("12.8", "535.129.03", "finds no GPU that it can use"),
    ],
)
def test_a_driver_that_torch_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str, driver: str, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = gpu.cuda(Case(system=with_driver(tmp_path, driver)))
    assert finding is not None
    assert (finding.state, words in finding.found) == ("fail", True), finding


def test_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = [3_900_000_000, 30_000_000_000]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (free[n], 40_000_000_000))
    finding = gpu.memory(Case())
    assert finding is not None
    assert (finding.state, "cuda:0: 3.9 GB of 40.0 GB free" in finding.found) == ("warn", True)
    free[0] = 4_100_000_000
    again = gpu.memory(Case())
    assert again is not None
    assert again.state == "ok"
