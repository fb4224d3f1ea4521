"""A run under chaos: killed, starved and cut off, started again until it is done, then compared row for row.

    python -m benchmarks.chaos [--patches 2000] [--shard-size 64] [--minutes 3 | --hours N] [--seed N] [--folder FOLDER]
                               [--out benchmarks/results/chaos.json]

The run reads a synthetic archive of tar.zst files and writes to an S3 server (moto, a process of its own); four
actors work on three Ray nodes; whatever is written to this machine goes to a small disk. First it is left alone: this
is the reference. Then, in a new store, actors, raylets and the driver are killed by SIGKILL, the disk is filled, and
the server answers 500 and 503 and cuts connections, all at moments drawn from a seed; a driver that ended is started
again until one is done. Rounds with the next seeds follow until the time is over; then the last one is left to end. A
round is right when every row, value and name of object is the reference's and nothing temporary is left. Exit code 1:
one is not.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import classifiers
from benchmarks.chaos.report import Round, show, total
from benchmarks.chaos.rounds import Inputs, Rounds
from benchmarks.chaos.schedule import schedule
from benchmarks.chaos.world import world
from infra.archives.synthetic import write_synthetic_archive
from tests.infra.archives.tar_files import pack

_ROUND_SECONDS = 180.0
"""Time over which the faults of one round are spread, at most."""

_DISK_BYTES_PER_PATCH = 400_000
"""Of the small disk: more than the files of a patch, which all lie there at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one call found."""

    undisturbed_seconds: float
    rounds: list[Round]
    faults: list[str]
    """What is wrong beside the rounds."""


def make_inputs(folder: Path, patches: int, shard_size: int) -> Inputs:
    """Return the archive and the backbone, written to a folder unless they lie there already."""
    write_synthetic_archive(folder / "archive", patches)
    packed = folder / f"packed-{patches}"
    tar = packed / "BigEarthNet-S2.tar.zst"
    if not (packed / "made").exists():
        pack(folder / "archive", packed, ".tar.zst")
        (packed / "made").touch()
    backbone = folder / "resnet18.pth"
    if not backbone.exists():
        torch.manual_seed(0)
        torch.save(classifiers.build("resnet18", 1).backbone.state_dict(), backbone)
    return Inputs(tar, backbone, shard_size)


def chaos(inputs: Inputs, patches: int, seed: int, seconds: float, logs: Path) -> Found:
    """Run the reference and then rounds until the time is over."""
    with world(512 + patches * _DISK_BYTES_PER_PATCH // 2**20) as around:
        rounds = Rounds(around, inputs, logs)
        wrong = rounds.undisturbed()
        if not around.disk.limited:
            print("no small file system may be mounted here: the disk is never filled")
        began = time.monotonic()
        while not wrong and (left := seconds - (time.monotonic() - began)) > 0:
            span = min(left, _ROUND_SECONDS)
            found = rounds.disturbed(seed + len(rounds.done), schedule(seed + len(rounds.done), span), span)
            if found.faults:
                break  # its store and logs are what is wanted now
    deadline = time.monotonic() + 60
    while (strays := around.marked()) and time.monotonic() < deadline:
        time.sleep(0.2)
    wrong += [f"still running: {process.pid} {' '.join(process.cmdline())[:120]}" for process in strays]
    for process in strays:
        process.kill()
    return Found(rounds.undisturbed_seconds, rounds.done, wrong)


def main(arguments: list[str] | None = None) -> int:
    """Make chaos, print what happened, and return 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults, over all rounds")
    parser.add_argument("--hours", type=float, help="the same, for soaks")
    parser.add_argument("--seed", type=int, help="of the first round; else by chance")
    parser.add_argument("--folder", type=Path, help="keep the archive and the logs there; else they are removed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever was started is ended
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    seconds = 60 * args.minutes if args.hours is None else 3600 * args.hours
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-inputs-") as temporary:
        folder = args.folder or Path(temporary)
        logs = folder / f"logs-{seed}"
        logs.mkdir(parents=True, exist_ok=True)
        found = chaos(make_inputs(folder, args.patches, args.shard_size), args.patches, seed, seconds, logs)
        console = Console(width=None if sys.stdout.isatty() else 160)
        show(found.rounds, console)
        for fault in found.faults:
            console.print(f"WRONG: {fault}", markup=False, highlight=False, soft_wrap=True)
    if args.out:
        about = {
            "patches": args.patches,
            "shard_size": args.shard_size,
            "minutes": seconds / 60,
            "seed": seed,
            "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
            "date": time.strftime("%Y-%m-%d"),
        }
        result = {
            "about": about,
            "undisturbed_seconds": found.undisturbed_seconds,
            "total": total(found.rounds),
            "rounds": [item.as_json() for item in found.rounds],
            "faults": found.faults,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(bool(found.faults or not found.rounds or any(item.faults for item in found.rounds)))


if __name__ == "__main__":
    sys.exit(main())
