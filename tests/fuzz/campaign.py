"""A fuzzing campaign: mutated inputs of every kind, examined in a child process that may die of them.

    python -m tests.fuzz.campaign                 # the whole campaign, some minutes
    python -m tests.fuzz.campaign --only tar:17   # one example again, in this process

A child that crashes, hangs or runs out of memory is a finding like any other; the next child goes on behind it.
"""

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.memory import TUNABLES

COUNTS: Mapping[str, int] = {"tiff": 4000, "picture": 1000, "tar": 2000, "json": 2000, "parquet": 2000}
"""Examples of each kind in a whole campaign."""

SECONDS = 60
"""After which an example hangs; a busy machine is slow, and a hang takes for ever."""

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


def run_campaign(counts: Mapping[str, int] = COUNTS, seconds: float = SECONDS) -> Campaign:
    """Examine that many examples of each kind.

    Args:
        counts: Examples by kind.
        seconds: After which an example hangs.
    """
    campaign = Campaign()
    started = time.monotonic()
    examples = _examples(counts)
    at = 0
    while at < len(examples):
        at = _run_child(campaign, counts, examples, at, seconds)
    campaign.seconds = time.monotonic() - started
    return campaign


def _examples(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(kind, number) for kind, count in counts.items() for number in range(count)]


def _run_child(
    campaign: Campaign, counts: Mapping[str, int], examples: Sequence[tuple[str, int]], at: int, seconds: float
) -> int:
    """Run examples in a new process and return which one comes next."""
    command = [sys.executable, "-m", "tests.fuzz.campaign", "--child", json.dumps(counts), str(at), str(seconds)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **TUNABLES, "TMPDIR": folder}  # what a child that dies leaves is removed with it
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=Path(__file__).parents[2], env=environment
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                (kind, number), told = examples[at], json.loads(line)
                if "outcome" in told:
                    campaign.outcomes[kind, told["outcome"]] += 1
                else:
                    campaign.findings.append(f"{kind}:{number} {told['finding']}")
                at += 1
        code = child.returncode
        if code or at < len(examples):
            said.seek(0)
            kind, number = examples[min(at, len(examples) - 1)]
            campaign.findings.append(f"{kind}:{number} ended the process ({code}): {said.read()[-3000:]}")
            at += 1
    return at


def _be_child(counts: Mapping[str, int], start: int, seconds: float) -> None:
    from tests.fuzz.examiner import Examiner

    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        examiner = Examiner(Path(folder))
        for kind, number in _examples(counts)[start:]:
            faulthandler.dump_traceback_later(seconds, exit=True)
            told: dict[str, str] = {}
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
    parser.add_argument("--child", nargs=3, metavar=("COUNTS", "START", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        counts, start, seconds = arguments.child
        _be_child(json.loads(counts), int(start), float(seconds))
    elif arguments.only:
        _again(arguments.only)
    else:
        campaign = run_campaign({kind: max(1, round(count * arguments.share)) for kind, count in COUNTS.items()})
        print(campaign)
        sys.exit(bool(campaign.findings))


if __name__ == "__main__":
    main()
