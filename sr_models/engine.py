"""The engine: DN in, super-resolved DN out, in batches that fit the device, the same pixels for every batch size.

`SuperResolver` is the model; this is what makes it fast and safe over an archive. The stretch, the network, the clamp
and the rounding all run on the device, so that uint16 crosses the bus and nothing else does. A batch that does not fit
the memory is halved and done again from its input; a patch is handed out only once its own batch has succeeded.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ConfigError, DeviceMemoryError, ShapeError
from sr_models.condition import Condition
from sr_models.stretch import MaxDn, as_tensor, to_dn, to_unit
from sr_models.super_resolver import SuperResolver

MAX_BATCH = 64
"""Patches in a batch at most: beyond, the kernels of every network here fill a large GPU."""

_CPU_BATCH = 4  # one patch keeps a core as busy as four do; more only takes memory
_FREE_SHARE = 0.8  # of the free memory, for one batch; the rest is for fragmentation and cuDNN's workspaces

_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")

_Work = Callable[[SuperResolver, Tensor, Sequence[Condition]], Tensor]
"""What is done to one batch on the device."""

Columns = Callable[[Tensor, Tensor], Tensor]
"""What else is made of a batch on the device: (lr, sr), both uint16 DN, to (K, N) float32."""


@dataclass(frozen=True, slots=True)
class Enlarged:
    """One batch on the host."""

    dn: NDArray[np.uint16]
    """SR pixels, (N, C, scale*H, scale*W), DN."""
    columns: NDArray[np.float32] | None
    """What `columns` made of the batch, (K, N); None without."""


class SrEngine:
    """Super-resolves any number of patches of one shape on one device.

    On CUDA the network is compiled for the patch shape (`torch.compile`), and the last batch is filled up, so that one
    shape is all it ever sees.
    """

    def __init__(self, resolver: SuperResolver, batch_size: int | None = None, *, compiled: bool | None = None) -> None:
        """Make an engine.

        Args:
            resolver: The model, on its device.
            batch_size: Patches that go through the network at once; None: as many as the free memory takes, at most
                `MAX_BATCH`, measured on the first batch; 4 on the CPU.
            compiled: Whether the network is compiled; None: on CUDA, for networks that have weights.

        Raises:
            ConfigError: batch_size is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"{resolver.name}: batch_size is {batch_size}: it needs to be at least 1")
        on_gpu = resolver.device.type == "cuda"
        self._compiled = on_gpu and resolver.weights_sha256 is not None if compiled is None else compiled
        self._eager = resolver
        self._resolver = resolver.compiled() if self._compiled else resolver
        self._asked = batch_size
        self._fits: dict[tuple[int, ...], int] = {}  # largest batch known to fit, by the shape of a patch
        self._came: dict[tuple[int, ...], int] = {}  # most images that came at once, likewise

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        return self._resolver.scale

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its output lies."""
        return self._resolver.device

    def __call__(self, x: Tensor, conditions: Sequence[Condition] = ()) -> Tensor:
        """Return images in [0, 1] enlarged: the model's own call, in batches that fit.

        Args:
            x: (N, C, H, W), floating point, in [0, 1]; N may be any number.
            conditions: What a conditioned model is told of each image.

        Returns:
            (N, C, scale*H, scale*W), float32, in [0, 1], on the device.

        Raises:
            ShapeError: x is not a floating-point (N, C, H, W), or conditions are not as many as the model needs.
            DeviceMemoryError: Not even one image fits.
        """
        return self._in_batches(x.to(self._resolver.device), conditions, lambda model, part, told: model(part, told))

    def told(self, conditions: Sequence[Condition]) -> "Told":
        """Return the engine as a function of images alone, of which it is told these conditions."""
        return Told(self, conditions)

    def super_resolve(
        self, dn: NDArray[np.uint16] | Tensor, max_dn: MaxDn, conditions: Sequence[Condition] = ()
    ) -> Tensor:
        """Return patches enlarged, as DN, on the device.

        Args:
            dn: (N, C, H, W), DN, integer, in host memory or on the device; N may be any number.
            max_dn: DN that becomes 1 in the stretch (`sr_input_max_dn`), one or one a band.
            conditions: What a conditioned model is told of each patch.

        Returns:
            (N, C, scale*H, scale*W), torch.uint16, DN, 0..max_dn.

        Raises:
            ShapeError: dn is not an integer (N, C, H, W), or conditions are not as many as the model needs.
            DeviceMemoryError: Not even one patch fits.
        """
        lr = as_tensor(dn, self._resolver.device)
        return self._in_batches(lr, conditions, lambda model, x, told: to_dn(model(to_unit(x, max_dn), told), max_dn))

    def stream(
        self,
        batches: Iterable[NDArray[np.uint16]],
        max_dn: MaxDn,
        columns: Columns | None = None,
        conditions: Iterable[Sequence[Condition]] | None = None,
    ) -> Iterator[Enlarged]:
        """Yield each batch enlarged, on the host, one behind the device.

        While the caller compresses and writes one batch, the device works on the next: its upload, its kernels and its
        download are queued on their own streams over pinned memory. On the CPU it is a plain loop.

        Args:
            batches: (N, C, H, W) each, DN, uint16.
            max_dn: See `super_resolve`.
            columns: Further numbers to compute of every batch, on the device.
            conditions: Of every batch, what a conditioned model is told of its patches; None for any other model. Each
                is asked for after its batch, and a generator of them may be endless.

        Raises:
            ShapeError, DeviceMemoryError: As `super_resolve` does.
            ShapeError: There are conditions of fewer batches, or, where they have a length, of more.
        """
        transfer = _Transfer(self._resolver.device)
        pending: _Pending | None = None
        telling = iter(repeat(()) if conditions is None else conditions)
        done = 0
        for done, batch in enumerate(batches, start=1):
            told = next(telling, None)
            if told is None:
                raise ShapeError(f"{self._resolver.name}: there are conditions of {done - 1} batches, and more came")
            lr = transfer.upload(batch)
            sr = self.super_resolve(lr, max_dn, told)
            launched = transfer.download(sr, columns(lr, sr) if columns is not None else None)
            if pending is not None:
                yield pending.wait()
            pending = launched
        if pending is not None:
            yield pending.wait()
        if isinstance(conditions, Collection) and len(conditions) != done:
            name = self._resolver.name
            raise ShapeError(f"{name}: there are conditions of {len(conditions)} batches, and {done} came")

    def _in_batches(self, x: Tensor, conditions: Sequence[Condition], work: _Work) -> Tensor:
        """Return work on x, batch by batch; a batch that does not fit is halved and begun again."""
        shape, start = tuple(x.shape[1:]), 0
        whole: Tensor | None = None
        while whole is None or start < len(x):
            size = self._batch_size(x, conditions, work)
            batch, told = x[start : start + size], conditions[start : start + size]
            result = self._attempt(batch, told, size, work)
            if result is None:
                self._shrink(shape, size if self._compiled else len(batch))
                continue
            if len(result) == len(x):
                return result
            if whole is None:
                whole = result.new_empty((len(x), *result.shape[1:]))
            whole[start : start + len(batch)].copy_(result)  # CUDA knows little more of uint16 than to copy it
            start += len(batch)
        return whole

    def _attempt(self, batch: Tensor, told: Sequence[Condition], size: int, work: _Work) -> Tensor | None:
        """Return work on one batch, or None where it does not fit the memory."""
        n = len(batch)
        try:
            if self._compiled and 0 < n < size:
                full = batch.new_empty((size, *batch.shape[1:]))
                full[:n].copy_(batch)
                full[n:].copy_(batch[-1:].expand(size - n, *batch.shape[1:]))
                batch, told = full, [*told, *(size - n) * list(told[-1:])]
            return work(self._resolver, batch, told)[:n]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        return None  # out here the error, and the tensors its frames hold, are gone

    def _batch_size(self, x: Tensor, conditions: Sequence[Condition], work: _Work) -> int:
        """Return how many images go through at once: what fits, but no more than have ever come at once."""
        shape = tuple(x.shape[1:])
        if shape not in self._fits:
            if self._asked is None and self._resolver.device.type == "cuda" and len(x) < 2:
                return 1  # of one image nothing can be learnt
            self._fits[shape] = self._asked or self._measured(x, conditions, work)
        self._came[shape] = max(self._came.get(shape, 1), len(x))
        return min(self._fits[shape], self._came[shape])

    def _measured(self, x: Tensor, conditions: Sequence[Condition], work: _Work) -> int:
        """Return how many images fit the free memory, from what one and two of them take."""
        device = self._resolver.device
        if device.type != "cuda":
            return _CPU_BATCH
        peaks = []
        for n in (1, 2):
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            try:
                work(self._eager, x[:n], conditions[:n])  # a compiled network would be compiled anew for each size
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                return 1
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
        each = max(peaks[1] - peaks[0], 1)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own free blocks
        free = torch.cuda.mem_get_info(device)[0] + held
        return batch_that_fits(int(_FREE_SHARE * free), peaks[0] - each, each)

    def _shrink(self, shape: tuple[int, ...], size: int) -> None:
        if self._resolver.device.type == "cuda":
            torch.cuda.empty_cache()
        if size <= 1:
            raise DeviceMemoryError(
                f"{self._resolver.name}: one image of {' x '.join(map(str, shape))} does not fit the memory of "
                f"{self._resolver.device}: choose a larger device, a smaller window, another SR model or dtype"
            )
        self._fits[shape] = size // 2


@dataclass(frozen=True, slots=True)
class Told:
    """An engine, and what it is told of the images it will be called with."""

    engine: SrEngine
    conditions: Sequence[Condition]

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        return self.engine.scale

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its output lies."""
        return self.engine.device

    def __call__(self, x: Tensor) -> Tensor:
        """Return images in [0, 1] enlarged: see `SrEngine.__call__`."""
        return self.engine(x, self.conditions)


def batch_that_fits(free: int, once: int, each: int) -> int:
    """Return the largest power of two, 1 to `MAX_BATCH`, of images that fit.

    Args:
        free: Memory that may be used, bytes.
        once: What a batch takes whatever its size, bytes.
        each: What each image takes, bytes, > 0.
    """
    fits = max(1, min(MAX_BATCH, (free - once) // each))
    return 1 << fits.bit_length() - 1


class _Transfer:
    """Copies between host and device beside the kernels: a stream for each direction, pinned memory at the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._up: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._down: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, batch: NDArray[np.uint16]) -> Tensor:
        """Return a batch on the device; kernels queued from here on wait for it."""
        host = as_tensor(batch)
        if not self._cuda:
            return host
        with torch.cuda.stream(self._up):
            there = host.pin_memory().to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._up)
        there.record_stream(now)
        return there

    def download(self, *tensors: Tensor | None) -> "_Pending":
        """Begin to copy results to the host."""
        if not self._cuda:
            return _Pending(tensors, None)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            hosts = tuple(None if tensor is None else self._begin(tensor) for tensor in tensors)
            done: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._down)
        return _Pending(hosts, done)

    def _begin(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._down)  # its memory is not given to others before the copy is through
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Pending:
    """Results on their way to the host."""

    hosts: tuple[Tensor | None, ...]
    done: torch.cuda.Event | None

    def wait(self) -> Enlarged:
        if self.done is not None:
            self.done.synchronize()
        dn, columns = self.hosts
        assert dn is not None
        return Enlarged(dn.numpy(), None if columns is None else columns.numpy())


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)
