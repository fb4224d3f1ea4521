"""How fast super-resolution is: our engine against RealESRGANer and against spandrel in a loop.

    python benchmarks/sr_throughput.py [--models srresnet realesrgan_general …] [--dtypes float32 bfloat16]
                                       [--device cpu] [--patches 2] [--repeats 3] [--steps 1]
                                       [--out benchmarks/results/sr_throughput.json]

Every row enlarges the same patches of 120 x 120 pixels, 16 bits a band, from host memory to host memory, with the same
random weights (speed does not depend on them), in turn within each repeat; the median repeat counts. Outputs are
compared with ours in float32. RealESRGANer and spandrel take one image at a time, as they are made to. A peer that
cannot be had is written down as not measured.

SeeSR runs in its official sizes, with its options as they are by default but for `--steps`, of which a CPU takes one in
half a minute. Beside it stand the same networks one patch at a time and not compiled, as its authors' script has them.

The share of the peak is what the network's multiply-adds (two operations each) make of the rate of the best large
matrix product of that dtype on the same device. The roofline says what the device allows at most: the lesser of that
rate and of the memory's, if every layer reads its input and its parameters and writes its output once.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sr_models
from sr_models.seesr.full_size import full_size
from sr_models.seesr.options import SeesrOptions
from sr_models.stretch import MAX_MAX_DN

SIZE = 120
PATCHES = {"cpu": 2, "cuda": 256}
ON_A_CPU = ("bicubic", "srresnet", "realesrgan_general", "realesrgan", "hat_s")
"""The larger HATs and SeeSR take a CPU minutes; they can be named."""
HALF = {"cpu": torch.float32, "cuda": torch.float16}
"""What RealESRGANer runs in: half precision is an option of its for GPUs."""

type Run = Callable[[], NDArray[np.uint16]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    model: str
    engine: str
    dtype: str
    patches_per_second: float | None
    """Median of the repeats; None: not measured."""
    over_ours: float | None
    """Our rate in the same dtype over this one's."""
    share_of_peak: float | None
    psnr_db: float | None
    """Against our pixels in float32, peak 65,535; 100 where they are the same."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Roofline:
    """What bounds one network in one dtype."""

    model: str
    dtype: str
    gflop_per_patch: float
    megabytes_per_patch: float
    peak_gflops: float
    """Of the best large matrix product, measured."""
    gigabytes_per_second: float
    """Of a large copy, measured."""
    bound: str
    limit_patches_per_second: float
    reached_share_of_limit: float


def patches(n: int) -> NDArray[np.uint16]:
    """Return smooth noise, (N, 3, 120, 120), 16 bits used in full."""
    coarse = torch.rand(n, 3, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    smooth[..., 0, 0] = 1  # RealESRGANer takes an image for 8 bits unless it holds more than 256
    return smooth.mul(MAX_MAX_DN).round().to(torch.int32).numpy().astype(np.uint16)


def random_weights(name: str, folder: Path) -> Path:
    """Write weights that give pictures in range, in the official format."""
    generator = torch.Generator().manual_seed(0)
    network = sr_models.spec(name).build().eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) * (0.5 / value[0].numel()) ** 0.5)
        last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        x = torch.rand(1, 3, 32, 32, generator=generator)
        assert last.bias is not None
        last.weight.mul_(0.1 / network(x).std())
        last.bias.add_(0.5 - network(x).mean())
    path = folder / f"{name}.pth"
    torch.save({"params_ema": network.state_dict()}, path)
    return path


def our_run(name: str, weights: Path | None, device: str, dtype: str, dn: NDArray[np.uint16]) -> Run:
    """Return the engine over all patches, host to host."""
    engine = sr_models.SrEngine(sr_models.load(name, weights, device, dtype))
    blocks = np.array_split(dn, max(1, len(dn) // 64))
    return lambda: np.concatenate([item.dn for item in engine.stream(blocks, MAX_MAX_DN)])


def realesrganer_run(name: str, weights: Path, device: str, dn: NDArray[np.uint16]) -> Run:
    """Return RealESRGANer in a loop, 16-bit images in and out."""
    network = sr_models.spec(name).build()  # imports basicsr in a way that works
    from realesrgan import RealESRGANer

    half = HALF[device] == torch.float16
    peer = RealESRGANer(4, str(weights), model=network, tile=0, pre_pad=0, half=half, device=torch.device(device))

    def run() -> NDArray[np.uint16]:
        with redirect_stdout(StringIO()):  # it prints a line an image
            images = [peer.enhance(np.ascontiguousarray(x.transpose(1, 2, 0)[:, :, ::-1]))[0] for x in dn]
        return np.stack([image[:, :, ::-1].transpose(2, 0, 1) for image in images])

    return run


def spandrel_run(weights: Path, device: str, dtype: torch.dtype, dn: NDArray[np.uint16]) -> Run:
    """Return spandrel in a loop, one image a call."""
    import spandrel

    model = spandrel.ModelLoader(device).load_from_file(weights)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    model.to(device, dtype).eval()

    def one(x: NDArray[np.uint16]) -> NDArray[np.uint16]:
        unit = torch.from_numpy(x.astype(np.float32) / MAX_MAX_DN)[None].to(device, dtype)
        result: Tensor = model(unit)[0].float().mul(MAX_MAX_DN).round()
        return result.cpu().numpy().astype(np.uint16)

    def run() -> NDArray[np.uint16]:
        with torch.inference_mode():
            return np.stack([one(x) for x in dn])

    return run


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def best_seconds(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Return the fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Return the operations a second of the best large matrix product."""
    rates = []
    for n in (2048, 4096) if device == "cpu" else (4096, 8192, 16384):
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        rates.append(2 * n**3 / best_seconds(partial(torch.matmul, a, b), device, 3))
    return max(rates)


def copy_rate(device: str) -> float:
    """Return the bytes a second of a large copy, read and write counted."""
    n = (1 << 28) if device == "cpu" else (1 << 32)
    a = torch.empty(n, dtype=torch.uint8, device=device).fill_(1)
    b = torch.empty_like(a)
    return 2 * n / best_seconds(partial(b.copy_, a), device)


def operations(network: nn.Module, call: Callable[[], object]) -> tuple[float, float]:
    """Return the operations of a network's call, and the values its layers read and write, each once."""
    values = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal values
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        values += sum(t.numel() for t in tensors) + sum(p.numel() for p in module.parameters())

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        call()
    for hook in hooks:
        hook.remove()
    return float(flops.get_total_flops()), float(values)


def operations_of_seesr(steps: int) -> tuple[float, float]:
    """Return what `operations` does for a patch of SeeSR, guided; the prompts' embeddings are kept, and not counted."""
    with torch.device("meta"):  # where nothing is computed
        network = full_size(SeesrOptions(steps=steps))
        latents, time = torch.zeros(2, 4, 64, 64), torch.zeros(())
        text, image, picture = torch.zeros(2, 77, 1024), torch.zeros(2, 145, 512), torch.zeros(2, 3, 512, 512)
        patch = torch.zeros(1, 3, SIZE, SIZE)
    residuals = network.controlnet(latents, time, text, image, picture)
    once = (
        operations(network.dape, lambda: network.dape(patch)),
        operations(network.vae.encoder, lambda: network.vae.encoder(picture[:1])),
        operations(network.vae.decoder, lambda: network.vae.decoder(latents[:1])),
    )
    each = (
        operations(network.controlnet, lambda: network.controlnet(latents, time, text, image, picture)),
        operations(network.unet, lambda: network.unet(latents, time, text, image, *residuals)),
    )
    counts = [sum(part[i] for part in once) + steps * sum(part[i] for part in each) for i in (0, 1)]
    return counts[0], counts[1]


def psnr(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> float:
    mse = float(np.mean((a.astype(np.float64) - b) ** 2)) / MAX_MAX_DN**2
    return 100.0 if mse <= 1e-10 else -10 * float(np.log10(mse))


def measure(name: str, options: argparse.Namespace, folder: Path) -> tuple[list[Row], list[Roofline]]:
    """Measure one model in every dtype, and its peers."""
    spec, device = sr_models.spec(name), options.device
    weights = random_weights(name, folder) if spec.needs_weights else None
    dn = patches(options.patches)
    dtypes = [dtype for dtype in options.dtypes if dtype in spec.dtypes]
    runs: dict[tuple[str, str], Run] = {
        ("superscene", dtype): our_run(name, weights, device, dtype, dn)
        for dtype in dict.fromkeys(["float32", *dtypes])
    }
    absent: dict[tuple[str, str], str] = {}
    half = str(HALF[device]).removeprefix("torch.")
    if weights is not None and name.startswith("realesrgan"):
        if find_spec("realesrgan"):
            runs["RealESRGANer", half] = realesrganer_run(name, weights, device, dn)
        else:
            absent["RealESRGANer", half] = "realesrgan is not installed"
    if weights is not None and name != "srresnet":  # which spandrel does not know
        for dtype in dtypes:
            if find_spec("spandrel"):
                runs["spandrel", dtype] = spandrel_run(weights, device, getattr(torch, dtype), dn)
            else:
                absent["spandrel", dtype] = "spandrel is not installed"
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    outputs = {key: run() for key, run in runs.items()}  # warms up, and compiles
    for _ in range(options.repeats):
        for key, run in runs.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - started)
    rates = {key: len(dn) / statistics.median(times) for key, times in seconds.items()}
    network = spec.build().eval()
    work = operations(network, lambda: network(torch.zeros(1, 3, SIZE, SIZE)))
    rows, rooflines = compared(name, rates, outputs, work, device)
    rows += [Row(name, engine, dtype, None, None, None, None, why) for (engine, dtype), why in absent.items()]
    return rows, rooflines


def measure_seesr(options: argparse.Namespace) -> tuple[list[Row], list[Roofline]]:
    """Measure SeeSR of official sizes in every dtype, and one patch at a time without a compiler."""
    name, device = f"seesr, {options.steps} step{'s' * (options.steps > 1)}", options.device
    dn = patches(min(options.patches, sr_models.spec("seesr").sr_shard or options.patches))
    told = [sr_models.Condition(str(i)) for i in range(len(dn))]
    rates: dict[tuple[str, str], float] = {}
    outputs: dict[tuple[str, str], NDArray[np.uint16]] = {}
    for dtype in dict.fromkeys(["float32", *(dtype for dtype in options.dtypes if dtype != "float16")]):
        precision = getattr(torch, dtype)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = full_size(SeesrOptions(steps=options.steps)).to(device, precision)
        network = network.to(memory_format=torch.channels_last)
        resolver = sr_models.SuperResolver(
            name, 4, network, torch.device(device), precision, "random", conditioned=True
        )
        engines = {"superscene": sr_models.SrEngine(resolver)}
        if device == "cuda":  # on a CPU it would be the same
            engines["one at a time"] = sr_models.SrEngine(resolver, 1, compiled=False)
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        for repeat in range(options.repeats + 1):
            for engine, run in engines.items():
                synchronise(device)
                started = time.perf_counter()
                (result,) = run.stream([dn], MAX_MAX_DN, conditions=[told])
                outputs[engine, dtype] = result.dn
                if repeat:  # the first one warms up, and compiles
                    seconds[engine].append(time.perf_counter() - started)
        rates |= {(engine, dtype): len(dn) / statistics.median(times) for engine, times in seconds.items()}
    return compared(name, rates, outputs, operations_of_seesr(options.steps), device)


def compared(
    name: str,
    rates: Mapping[tuple[str, str], float],
    outputs: Mapping[tuple[str, str], NDArray[np.uint16]],
    work: tuple[float, float],
    device: str,
) -> tuple[list[Row], list[Roofline]]:
    """Return the rows of a model by engine and dtype, and what bounds it; work: see `operations`."""
    (flop, values), rows, rooflines = work, [], []
    for (engine, dtype), rate in rates.items():
        precision = getattr(torch, dtype)
        peak = matrix_peak(device, precision)
        ours = rates.get(("superscene", dtype))
        rows.append(
            Row(
                name,
                engine,
                dtype,
                rate,
                None if ours is None or engine == "superscene" else ours / rate,
                rate * flop / peak if flop else None,
                psnr(outputs[engine, dtype], outputs["superscene", "float32"]),
            )
        )
        if engine == "superscene" and flop:
            n_bytes = values * torch.empty(0, dtype=precision).element_size()
            bandwidth = copy_rate(device)
            by_compute, by_memory = peak / flop, bandwidth / n_bytes
            limit = min(by_compute, by_memory)
            rooflines.append(
                Roofline(
                    name,
                    dtype,
                    flop / 1e9,
                    n_bytes / 1e6,
                    peak / 1e9,
                    bandwidth / 1e9,
                    "arithmetic" if by_compute < by_memory else "memory",
                    limit,
                    rate / limit,
                )
            )
    return rows, rooflines


def show(rows: Sequence[Row], rooflines: Sequence[Roofline]) -> None:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    print(f"\n{'model':20}{'engine':14}{'dtype':10}{'patches/s':>11}{'ours over':>11}{'of peak':>9}{'PSNR dB':>9}")
    for row in rows:
        print(
            f"{row.model:20}{row.engine:14}{row.dtype:10}{number(row.patches_per_second, '.3g'):>11}"
            f"{number(row.over_ours, '.2f'):>11}{number(row.share_of_peak, '.0%'):>9}{number(row.psnr_db, '.1f'):>9}"
            f"  {row.note and 'not measured: ' + row.note}"
        )
    print(f"\n{'model':20}{'dtype':10}{'GFLOP':>8}{'MB':>8}{'bound by':>12}{'limit/s':>9}{'reached':>9}")
    for line in rooflines:
        print(
            f"{line.model:20}{line.dtype:10}{line.gflop_per_patch:8.1f}{line.megabytes_per_patch:8.0f}{line.bound:>12}"
            f"{line.limit_patches_per_second:9.3g}{line.reached_share_of_limit:9.0%}"
        )


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=sr_models.names(), default=None)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], default=None)
    parser.add_argument("--patches", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="of SeeSR; 1 on a CPU, 50 on a GPU")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.patches = options.patches or PATCHES[options.device]
    on_gpu = options.device == "cuda"
    options.steps = options.steps or (50 if on_gpu else 1)
    options.dtypes = options.dtypes or (["float32", "bfloat16", "float16"] if on_gpu else ["float32", "bfloat16"])
    every = [name for name in sr_models.names() if sr_models.spec(name).scale > 1 and name != "seesr_tiny"]
    options.models = options.models or (every if on_gpu else ON_A_CPU)
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32, for the peak too
    rows: list[Row] = []
    rooflines: list[Roofline] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            print(f"{name} …", flush=True)
            more, lines = measure_seesr(options) if name == "seesr" else measure(name, options, Path(folder))
            rows += more
            rooflines += lines
    print(f"{device_name(options.device)}, {options.patches} patches, PyTorch {torch.__version__}")
    show(rows, rooflines)
    if options.out:
        record = {
            "device": device_name(options.device),
            "date": datetime.now(UTC).date().isoformat(),
            "torch": torch.__version__,
            "patches": options.patches,
            "rows": [asdict(row) for row in rows],
            "rooflines": [asdict(line) for line in rooflines],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
