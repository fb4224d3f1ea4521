"""The examples are told apart by kind and number: `python -m tests.fuzz.campaign --only tar:17` shows one again."""

import pytest

from tests.fuzz.campaign import COUNTS, run_campaign
from tests.fuzz.examiner import EXAMINED, TRAPS


def test_some_of_every_kind_read_alike_or_are_quarantined() -> None:
    counts = {kind: count // 40 for kind, count in COUNTS.items()}
    campaign = run_campaign(counts)
    assert not campaign.findings, str(campaign)
    assert campaign.outcomes.total() == sum(counts.values())
    for kind in EXAMINED:
        assert campaign.outcomes[kind, "read"] >= 5, "examples too broken to be read test one line of code"
        assert campaign.outcomes[kind, "quarantined"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_inputs_read_alike_or_are_quarantined() -> None:
    campaign = run_campaign()
    print(campaign)
    assert not campaign.findings, str(campaign)
    assert campaign.outcomes.total() == sum(COUNTS.values()) >= 10_000


def test_what_must_not_pass_does_not() -> None:
    hanging = run_campaign({"hang": 1}, seconds=3)
    campaign = run_campaign({**dict.fromkeys(TRAPS.keys() - {"hang"}, 1), "json": 1})
    told = {finding.partition(":")[0]: finding for finding in [*hanging.findings, *campaign.findings]}
    assert told.keys() == TRAPS.keys()
    assert "ended the process (-11)" in told["crash"]
    assert "Timeout" in told["hang"]
    assert "KeyError" in told["error"]
    assert "it opened /etc/hostname" in told["open"]
    assert "it touched" in told["open in C"]
    assert "it called a server" in told["call"]
    assert "MB" in told["swell"]
    assert campaign.outcomes.total() == 1, "the next process goes on behind one that died"
