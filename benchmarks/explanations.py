"""What activation maps of all labels cost: time and peak memory of each method, ours and the usual libraries'.

    python benchmarks/explanations.py [--images 8] [--size 120] [--labels 19] [--costly-images 1] [--masks 500]
                                      [--repeats 21] [--device cpu] [--out benchmarks/results/explanations.json]

A ResNet-50 with random weights and a linear head; random images; the last stage as target. Cheap methods see `--images`
at once, costly ones `--costly-images`, RISE and LIME with `--masks` perturbations. Every method runs in a process of
its own, so that its peak memory is its own: what it takes beyond the model, the images and a bare forward pass of them,
on the CPU by the resident set, on a GPU by what was allocated. A bare forward pass is timed in turn with each method,
so that what else the machine does weighs on both. Times are the best of the repeats after an untimed call, three of the
peers'; costly methods run once, ours and theirs.

The peers make one label's maps at a time. pytorch-grad-cam goes through the network for each: it runs for one label and
is scaled to all, and so is torch-cam's Score-CAM; torch-cam's others get one image, one forward pass and all labels.

Two single steps: EigenCAM's map from activations at hand against NumPy's full decomposition, which pytorch-grad-cam
calls; and the memory of Score-CAM at 480 x 480 with 64 channels alive (dead ones are skipped; memory does not depend
on how many there are).
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import classifiers
from classifiers.cam.eigen_cam import eigen_cam
from classifiers.cam.methods import METHODS, explain_methods, method_and_options
from classifiers.cam.target import Target
from classifiers.network import Classifier

FORWARD, SVD, LARGE = "forward pass", "full SVD", "score_cam at 480"
PEERS = {
    "pytorch-grad-cam": {
        "grad_cam": "GradCAM",
        "hires_cam": "HiResCAM",
        "x_grad_cam": "XGradCAM",
        "grad_cam_pp": "GradCAMPlusPlus",
        "layer_cam": "LayerCAM",
        "eigen_cam": "EigenCAM",
        "ablation_cam": "AblationCAM",
        "score_cam": "ScoreCAM",
    },
    "torch-cam": {
        "cam": "CAM",
        "grad_cam": "GradCAM",
        "x_grad_cam": "XGradCAM",
        "grad_cam_pp": "GradCAMpp",
        "layer_cam": "LayerCAM",
        "smooth_grad_cam_pp": "SmoothGradCAMpp",
        "score_cam": "ScoreCAM",
    },
}
"""Names of the methods in the peers."""

COSTLY_FOR_PEERS = frozenset({"score_cam", "ablation_cam"})


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured."""

    method: str
    who: str
    images: int
    size: int
    labels: int
    masks: int
    labels_run: int
    """Labels that a peer runs for; its time is scaled to all."""
    repeats: int
    device: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process found."""

    seconds: float
    forward_seconds: float
    """Of a bare forward pass of the same images, timed in turn."""
    peak_mb: float
    total_mb: float
    """Most memory of the process, libraries and model included."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    method: str
    who: str
    images: int
    seconds_per_image: float
    """For all labels."""
    times_forward: float
    """Over a bare forward pass of as many images."""
    peak_mb: float
    """Memory beyond the model, the images and a bare forward pass of them."""
    total_mb: float
    """Most memory of the process, libraries and model included."""


def network(case: Case) -> Classifier:
    """Return a ResNet-50 with random weights."""
    torch.manual_seed(0)
    return classifiers.build("resnet50", case.labels).eval().to(case.device).requires_grad_(requires_grad=False)


def images(case: Case) -> Tensor:
    """Return random images, (N, 3, H, W)."""
    shape = (case.images, 3, case.size, case.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(case.device)


def options_of(method: str, masks: int) -> dict[str, Any]:
    """Return the options with which a costly method is measured."""
    return {"rise": {"masks": masks}, "lime": {"samples": masks}}.get(method, {})


def ours(case: Case) -> Callable[[], object]:
    """Return what runs one of our methods, or a bare forward pass, on all labels."""
    model, x = network(case), images(case)
    if case.method == FORWARD:
        return torch.no_grad()(lambda: model(x))
    if case.method == LARGE:
        with torch.no_grad():
            activations = model.features(x)
        activations[:, 64:] = 0
        target = Target(model, x, tuple(range(case.labels)), activations=activations)
        entry, options = method_and_options("score_cam", {})
        return torch.no_grad()(lambda: entry.run(target, options))
    options = options_of(case.method, case.masks)
    return lambda: classifiers.explain(model, x, case.method, **options)


def peer(case: Case) -> Callable[[], object]:
    """Return what runs a peer's method: pytorch-grad-cam for one label, torch-cam for `case.labels_run` of them."""
    model, x = network(case).requires_grad_(), images(case)
    name = PEERS[case.who][case.method]
    if case.who == "pytorch-grad-cam":
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        extractor = getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.backbone.layer4])
        targets = [ClassifierOutputTarget(0)] * case.images
        return lambda: extractor(input_tensor=x, targets=targets)
    from torchcam import methods

    head = {"fc_layer": "head"} if name == "CAM" else {}
    extractor = getattr(methods, name)(model, "backbone.layer4", **head)

    through_graph = name not in {"CAM", "ScoreCAM"}
    more = {"retain_graph": True} if through_graph else {}

    def run() -> object:
        scores = model(x)
        return [extractor(label, scores, **more) for label in range(case.labels_run)]

    return run if through_graph else torch.no_grad()(run)


def measure(case: Case) -> Measured:
    """Return the best times of the repeats, and the peak memory beside what was there."""
    warnings.simplefilter("ignore")
    work = ours(case) if case.who == "superscene" else peer(case)
    forward = ours(replace(case, method=FORWARD))
    cuda = case.device.startswith("cuda")
    timed(forward, cuda=cuda)  # the first call chooses algorithms
    before = _resident(cuda=cuda)
    first = timed(work, cuda=cuda)
    peak = _resident(cuda=cuda)
    forwards = [timed(forward, cuda=cuda)]
    times = [first] if case.repeats == 1 else []  # the first call is slower, and only what is costly is not repeated
    for _ in range(case.repeats if case.repeats > 1 else 0):
        times.append(timed(work, cuda=cuda))
        forwards.append(timed(forward, cuda=cuda))
    return Measured(min(times), min(forwards), (peak - before) / 1e6, peak / 1e6)


def timed(work: Callable[[], object], *, cuda: bool) -> float:
    """Return the seconds that something takes."""
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _resident(*, cuda: bool) -> float:
    """Return the most memory so far, bytes."""
    if cuda:
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def in_a_process(case: Case) -> Measured:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def svd_seconds(args: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds an image of EigenCAM's map step and of NumPy's full decomposition, activations at hand."""
    case = Case("eigen_cam", "superscene", args.images, args.svd_size, args.labels, 0, 1, 1, "cpu")
    model, x = network(case), images(case)
    with torch.no_grad():
        target = Target(model, x, (0,))
        a = target.activations
        matrices = a.flatten(2).transpose(1, 2).numpy()
        steps = []
        for _ in range(max(3, args.repeats)):
            started = time.perf_counter()
            eigen_cam(target)
            steps.append((time.perf_counter() - started) / len(x))
        decompositions = []
        for _ in range(3):
            started = time.perf_counter()
            np.linalg.svd(matrices[0], full_matrices=True)
            decompositions.append(time.perf_counter() - started)
    return min(steps), min(decompositions)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Measure every method, ours first, then the peers' that are installed."""
    rows = []

    def add(method: str, who: str, count: int, size: int, repeats: int, labels_run: int) -> None:
        case = Case(method, who, count, size, args.labels, args.masks, labels_run, repeats, args.device)
        found = in_a_process(case)
        per_label = method not in METHODS or METHODS[method].per_label
        scale = args.labels / labels_run if per_label else 1.0
        seconds = found.seconds * scale / count
        rows.append(
            Row(method, who, count, seconds, seconds * count / found.forward_seconds, found.peak_mb, found.total_mb)
        )
        print(f"{method:24} {who:17} {seconds:10.4f} s/image", file=sys.stderr)

    add(FORWARD, "superscene", args.images, args.size, args.repeats, args.labels)
    for method in args.methods:
        cheap = METHODS[method].forwards != "many"
        count = args.images if cheap else args.costly_images
        add(method, "superscene", count, args.size, args.repeats if cheap else 1, args.labels)
    for who, methods in PEERS.items():
        if not installed(who):
            print(f"{who} is not installed: left out", file=sys.stderr)
            continue
        for method in methods:
            if method in args.methods:
                costly = method in COSTLY_FOR_PEERS
                count = args.costly_images if costly else args.images if who == "pytorch-grad-cam" else 1
                labels_run = 1 if costly or who == "pytorch-grad-cam" else args.labels
                add(method, who, count, args.size, 1 if costly else 3, labels_run)
    if args.large:
        add(LARGE, "superscene", 1, 480, 1, args.labels)
    return rows


def installed(who: str) -> bool:
    """Return whether a peer can be imported."""
    from importlib.util import find_spec

    return find_spec({"pytorch-grad-cam": "pytorch_grad_cam", "torch-cam": "torchcam"}[who]) is not None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--costly-images", type=int, default=1)
    parser.add_argument("--size", type=int, default=120)
    parser.add_argument("--svd-size", type=int, default=480)
    parser.add_argument("--labels", type=int, default=19)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", default=list(explain_methods()), choices=explain_methods())
    parser.add_argument("--no-large", dest="large", action="store_false", help="leave out 480 x 480")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(asdict(measure(Case(**json.loads(args.one))))))
        return
    rows = rows_of(args)
    step, svd = svd_seconds(args)
    about = {
        "device": torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "network": "resnet50, random weights, linear head",
        **{name: getattr(args, name) for name in ("images", "costly_images", "size", "svd_size", "labels", "masks")},
        "date": time.strftime("%Y-%m-%d"),
    }
    peers = {(row.method, row.who): row.seconds_per_image for row in rows if row.who != "superscene"}
    print(f"{'method':24}{'s/image':>10}{'x forward':>11}{'peak MB':>9}{'pytorch-grad-cam':>18}{'torch-cam':>11}")
    for row in rows:
        if row.who == "superscene":
            against = [peers.get((row.method, who)) for who in PEERS]
            told = [f"{value / row.seconds_per_image:.1f} x" if value else "" for value in against]
            print(
                f"{row.method:24}{row.seconds_per_image:10.4f}{row.times_forward:11.2f}{row.peak_mb:9.0f}"
                f"{told[0]:>18}{told[1]:>11}"
            )
    for row in rows:
        if row.method == LARGE:
            print(f"Score-CAM at 480 x 480: {row.total_mb / 1e3:.2f} GB at most, libraries and model included")
    print(
        f"EigenCAM's map step at {args.svd_size} pixels: {1e3 * step:.1f} ms an image, full SVD {1e3 * svd:.0f} ms: "
        f"{svd / step:.0f} x"
    )
    if args.out:
        found = {"about": about, "rows": [asdict(row) for row in rows]}
        found["eigen_map_step"] = {"seconds": step, "full_svd_seconds": svd, "speedup": svd / step}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
