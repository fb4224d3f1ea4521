"""What the processes of the tests of training run: fits of one small network, alone or with others."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classifiers.training import ClassifierTrainer, FitResult, TensorBatches, TrainingBatch, TrainSettings, run_to_end
from infra.errors import TrainingError

LABELS, CHANNELS, EDGE = 3, 2, 6


class SmallNetwork(nn.Module):
    """Every kind of layer that matters to the loop: a kernel, a normalisation, dropout, a matrix."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.conv(x)).relu().mean(dim=(2, 3))))  # type: ignore[no-any-return]


def small_network(dropout: float = 0.0, seed: int = 5) -> SmallNetwork:
    torch.manual_seed(seed)
    return SmallNetwork(dropout)


def images(n: int, seed: int, *, one_label: bool = False) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    truth = np.eye(LABELS)[rng.integers(LABELS, size=n)] if one_label else rng.integers(0, 2, (n, LABELS))
    x = rng.normal(size=(n, CHANNELS, EDGE, EDGE)) + truth[:, :CHANNELS, None, None] * np.linspace(0, 1, EDGE)
    return torch.from_numpy(x).float(), torch.from_numpy(truth).float()


@dataclass(frozen=True)
class SharedImages:
    """Samples whose batches are shared unevenly: by a sequence of first workers' shares, repeated step after step."""

    x: Tensor
    y: Tensor
    batch_size: int
    shares: tuple[float, ...]
    """Share of each step's samples that worker 0 has, the last places of the batch; worker 1 has the rest."""
    rank: int = 0
    workers: int = 1

    @property
    def samples(self) -> int:
        return len(self.x)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        for step in range(self.steps_per_epoch):
            whole = np.arange(step * self.batch_size, min(len(self.x), (step + 1) * self.batch_size))
            places = np.arange(len(whole))
            if self.workers == 2:
                firsts = round(self.shares[step % len(self.shares)] * len(whole))
                places = places[len(whole) - firsts :] if self.rank == 0 else places[: len(whole) - firsts]
            index = torch.from_numpy(whole[places])
            yield TrainingBatch(self.x[index], self.y[index], places, len(whole))

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        first = step * self.batch_size
        return [f"P{i}" for i in range(first, min(len(self.x), first + self.batch_size))]


SETTINGS = TrainSettings(
    epochs=3,
    batch_size=8,
    lr=0.05,
    optimizer="sgd",
    warmup=0.2,
    ema=0.9,
    freeze_norm=True,
    class_weights=True,
    thresholds="tuned",
)
EVEN, UNEVEN = (0.5,), (0.3, 0.0, 1.0, 0.9)
SHARED: dict[str, tuple[TrainSettings, tuple[float, ...], torch.dtype]] = {
    "float32, even": (SETTINGS, EVEN, torch.float32),
    "float32, uneven": (SETTINGS, UNEVEN, torch.float32),
    "float64, uneven, adamw": (replace(SETTINGS, optimizer="adamw"), UNEVEN, torch.float64),
    "float64, even, softmax": (replace(SETTINGS, loss="softmax", thresholds="half"), EVEN, torch.float64),
}
"""Fits that one worker and two must end alike: settings, shares, dtype of the network."""


def shared_fit(name: str, rank: int, workers: int) -> dict[str, object]:
    """Return rows, weights and result of a fit of `SHARED`."""
    settings, shares, dtype = SHARED[name]
    one_label = settings.loss == "softmax"
    x, y = images(29, 1, one_label=one_label)
    sets = [
        SharedImages(*samples, settings.batch_size, shares, rank, workers)
        for samples in ((x, y), images(13, 2, one_label=one_label))
    ]
    network = small_network().to(dtype)
    trainer = ClassifierTrainer(
        network,
        sets[0],
        sets[1],
        settings,
        rank=rank,
        workers=workers,
        parallel=DistributedDataParallel if workers > 1 else lambda alone: alone,
        label_counts=y.sum(dim=0),
    )
    return outcome(run_to_end(trainer), network)


def outcome(result: FitResult, network: nn.Module) -> dict[str, object]:
    """Return all that a fit gave but for times, as what torch can save."""
    rows = [{k: v for k, v in asdict(row).items() if k not in {"seconds", "wait_share"}} for row in result.rows]
    return {
        "rows": rows,
        "weights": network.state_dict(),
        "thresholds": list(result.thresholds),
        "absent": list(result.absent_labels),
    }


def free_norm_fit(rank: int, workers: int) -> dict[str, object]:
    """Return a fit whose batch normalisations see other samples on each worker."""
    settings = replace(SETTINGS, freeze_norm=False)
    x, y = images(24, 1)
    network = small_network(dropout=0.3)
    trainer = ClassifierTrainer(
        network,
        SharedImages(x, y, 8, EVEN, rank, workers),
        SharedImages(*images(13, 2), 8, EVEN, rank, workers),
        settings,
        rank=rank,
        workers=workers,
        parallel=DistributedDataParallel,
        label_counts=y.sum(dim=0),
    )
    return outcome(run_to_end(trainer), network)


def failure(rank: int, workers: int, *, softmax: bool) -> str:
    """Return the message of a fit that fails for a sample of worker 1 in step 2, place 1."""
    x, y = images(32, 1, one_label=softmax)
    if softmax:
        y[17] = 1
    else:
        x[17] = torch.nan
    settings = replace(SETTINGS, class_weights=False, loss="softmax" if softmax else "bce", thresholds="half")
    trainer = ClassifierTrainer(
        small_network(),
        SharedImages(x, y, 8, EVEN, rank, workers),
        SharedImages(*images(4, 2, one_label=softmax), 8, EVEN, rank, workers),
        settings,
        rank=rank,
        workers=workers,
        parallel=DistributedDataParallel,
    )
    try:
        trainer.advance()
    except TrainingError as error:
        return str(error)
    return "none"


def work(rank: int, folder: Path) -> None:
    """Run all of the above as one of two workers; leave the outcomes in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        found: dict[str, object] = {name: shared_fit(name, rank, 2) for name in SHARED}
        found["free norm"] = free_norm_fit(rank, 2)
        found["loss"], found["labels"] = (failure(rank, 2, softmax=softmax) for softmax in (False, True))
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


RESUMED = TrainSettings(
    epochs=4, batch_size=8, lr=0.05, ema=0.9, mixup=0.4, class_weights=True, patience=3, thresholds="tuned"
)


def resumable(seed: int = 5) -> ClassifierTrainer:
    """Return a fit in which everything draws: dropout, mixup, turns and the order of the samples."""
    x, y = images(29, 1)
    train = TensorBatches(x, y, RESUMED.batch_size, shuffle_seed=RESUMED.seed)
    validation = TensorBatches(*images(13, 2), RESUMED.batch_size)
    return ClassifierTrainer(small_network(0.3, seed), train, validation, RESUMED, label_counts=y.sum(dim=0))


def resume(rank: int, folder: Path, threads: int) -> None:
    """Go on in a new process from the state in a file; leave the outcome in another."""
    torch.set_num_threads(threads)
    trainer = resumable(seed=77 + rank)  # other first weights, and another stream of torch
    trainer.restore((folder / "state").read_bytes())
    torch.save(outcome(run_to_end(trainer), trainer.network), folder / "resumed.pt")
