"""A fuzzing campaign: mutated inputs of every kind, examined in a child process that may die of them.

    python -m tests.fuzz.campaign                 # the whole campaign, some minutes
    python -m tests.fuzz.campaign --only tar:17   # one example again, in this process

A child that crashes, hangs or runs out of memory is a finding like any other; the next child goes on behind it.
"""

import argparse
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COUNTS: Mapping[str, int] = {"tiff": 4000, "picture": 1000, "tar": 2000, "json": 2000, "parquet": 2000}
"""Examples of each kind in a whole campaign."""

SECONDS = 30
"""After which an example hangs."""

_ADDRESS_SPACE = 6 << 30  # so that a bomb ends this process, not the machine


@dataclass(slots=True)
class Campaign:
    """What was found."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Examples by kind and how they ended: read or quarantined."""
    findings: list[str] = field(default_factory=list)
    """Examples that did what none may do."""
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = sorted({kind for kind, _ in self.outcomes})
        lines = [f"{'':8}{'read':>8}{'quarantined':>13}"]
        lines += [f"{kind:8}{self.outcomes[kind, 'read']:8}{self.outcomes[kind, 'quarantined']:13}" for kind in kinds]
        total = self.outcomes.total() + len(self.findings)
        return "\n".join(
            [*lines, f"{total} examples, {len(self.findings)} findings, {self.seconds:.0f} s", *self.findings]
        )


def run_campaign(counts: Mapping[str, int] = COUNTS) -> Campaign:
    """Examine that many examples of each kind."""
    campaign = Campaign()
    started = time.monotonic()
    for kind, count in counts.items():
        at = 0
        while at < count:
            at = _run_child(campaign, kind, at, count)
    campaign.seconds = time.monotonic() - started
    return campaign


def _run_child(campaign: Campaign, kind: str, start: int, stop: int) -> int:
    """Run examples in a new process and return which one comes next."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--child", kind, str(start), str(stop)]
    at = start
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=Path(__file__).parents[2])
        assert child.stdout is not None
        for line in child.stdout:
            told = json.loads(line)
            at = told["number"] + 1
            if "outcome" in told:
                campaign.outcomes[kind, told["outcome"]] += 1
            else:
                campaign.findings.append(f"{kind}:{told['number']} {told['finding']}")
        code = child.wait()
        if code or at < stop:
            said.seek(0)
            campaign.findings.append(f"{kind}:{at} ended the process ({code}): {said.read()[-3000:]}")
            at += 1
    return at


def _be_child(kind: str, start: int, stop: int) -> None:
    from tests.fuzz.examiner import Examiner

    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        examiner = Examiner(Path(folder))
        for number in range(start, stop):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            told: dict[str, object] = {"number": number}
            try:
                told["outcome"] = examiner.examine(kind, number)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is none of the project's
                told["finding"] = f"{type(error).__name__}: {str(error)[:500]}"
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(told), flush=True)


def _again(name: str) -> None:
    from tests.fuzz.examiner import Examiner

    kind, _, number = name.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        print(Examiner(Path(folder)).examine(kind, int(number)))


def main() -> None:
    """Run what the command line asks for."""
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="KIND:NUMBER", help="examine one example, in this process")
    parser.add_argument("--share", type=float, default=1.0, help="of the whole campaign")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "START", "STOP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, start, stop = arguments.child
        _be_child(kind, int(start), int(stop))
    elif arguments.only:
        _again(arguments.only)
    else:
        campaign = run_campaign({kind: max(1, round(count * arguments.share)) for kind, count in COUNTS.items()})
        print(campaign)
        sys.exit(bool(campaign.findings))


if __name__ == "__main__":
    main()
