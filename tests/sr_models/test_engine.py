"""The engine against one patch at a time through the model, and against devices that run out of memory."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.errors import ConfigError, DeviceMemoryError, ShapeError
from sr_models import Condition, SrEngine, SuperResolver
from sr_models.basicsr_archs import srvgg_compact
from sr_models.engine import MAX_BATCH, batch_that_fits

MAX_DN = 3000


def patches(n: int, size: int = 6, seed: int = 0) -> NDArray[np.uint16]:
    """DN up to 4,000: some lie above the stretch."""
    return np.random.default_rng(seed).integers(0, 4001, (n, 3, size, size), dtype=np.uint16)


@pytest.fixture(scope="module")
def tiny() -> SuperResolver:
    torch.manual_seed(0)
    network = srvgg_compact(num_feat=8, num_conv=2).eval().requires_grad_(requires_grad=False)
    return SuperResolver("tiny", 4, network, torch.device("cpu"))


def one_by_one(resolver: SuperResolver, dn: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The stretch, the model and the rounding of METHODS in NumPy, patch by patch."""
    unit = np.minimum(dn, MAX_DN).astype(np.float32) / np.float32(MAX_DN)
    enlarged = [resolver(torch.from_numpy(x[None])).numpy()[0] for x in unit]
    return np.rint(np.clip(np.array(enlarged) * np.float32(MAX_DN), 0, MAX_DN)).astype(np.uint16)


class Cramped(nn.Module):
    """A network on a device with room for so many images: a larger batch dies half-way, as on a GPU."""

    def __init__(self, room: Sequence[int], error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.room, self.calls, self.error = list(room), list[int](), error
        self.scratch = torch.full((64, 3, 24, 24), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        room = self.room[0] if len(self.room) == 1 else self.room.pop(0)
        result = self.scratch[: len(x)]  # what was begun stays behind, for whoever would hand it out
        for i, image in enumerate(x):
            if i >= room:
                raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            result[i] = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return result.clone()


def cramped(*room: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> SuperResolver:
    return SuperResolver("cramped", 4, Cramped(room, error), torch.device("cpu"))


def nearest(dn: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.minimum(dn, MAX_DN).repeat(4, 2).repeat(4, 3)


class TestEngine:
    @pytest.mark.parametrize("batch_size", [None, 1, 3, 64])
    def test_is_the_model_patch_by_patch(self, tiny: SuperResolver, batch_size: int | None) -> None:
        dn = patches(7)
        result = SrEngine(tiny, batch_size).super_resolve(dn, MAX_DN)
        assert result.dtype == torch.uint16
        difference = result.numpy().astype(int) - one_by_one(tiny, dn)
        assert np.abs(difference).max() <= 1  # a half may round either way
        assert (difference != 0).mean() < 1e-3

    def test_a_call_is_the_model_in_batches(self, tiny: SuperResolver) -> None:
        x = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(SrEngine(tiny, 2)(x), tiny(x), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1 / 512), ("bfloat16", 1 / 64)])
    def test_batch_size_does_not_matter(self, tiny: SuperResolver, dtype: str, tolerance: float) -> None:
        precision = getattr(torch, dtype)
        network = srvgg_compact(num_feat=8, num_conv=2).eval().requires_grad_(requires_grad=False)
        network.load_state_dict(tiny.network.state_dict())
        resolver = dataclasses.replace(tiny, network=network.to(precision), dtype=precision)
        x = torch.rand(9, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        alone = torch.cat([resolver(image[None]) for image in x])
        for batch_size in (2, 9):
            torch.testing.assert_close(SrEngine(resolver, batch_size)(x), alone, atol=tolerance, rtol=0)

    def test_no_patches(self, tiny: SuperResolver) -> None:
        assert SrEngine(tiny).super_resolve(patches(0), MAX_DN).shape == (0, 3, 24, 24)

    def test_a_compiled_network_sees_one_shape(self, tiny: SuperResolver) -> None:
        engine, spy = SrEngine(tiny, 4), cramped(64)
        engine._compiled, engine._resolver = True, spy  # the filling up, without the minutes of a compiler
        dn = patches(6)
        assert np.array_equal(engine.super_resolve(dn, MAX_DN).numpy(), nearest(dn))
        assert isinstance(spy.network, Cramped)
        assert set(spy.network.calls) == {4}

    def test_a_compiled_network_is_filled_up_to_what_came_at_once_alone(self) -> None:
        """64 would fit, and 16 come: 48 more would be work for nothing. Of the last batch the shape stays the same."""
        engine, spy = SrEngine(cramped(64), 64), cramped(64)
        engine._compiled, engine._resolver = True, spy
        for n in (16, 16, 5):
            assert np.array_equal(engine.super_resolve(patches(n), MAX_DN).numpy(), nearest(patches(n)))
        assert isinstance(spy.network, Cramped)
        assert spy.network.calls == [16, 16, 16]

    def test_rejects_floats_and_a_batch_of_none(self, tiny: SuperResolver) -> None:
        with pytest.raises(ShapeError, match="integer"):
            SrEngine(tiny).super_resolve(patches(1).astype(np.float32), MAX_DN)
        with pytest.raises(ConfigError, match="at least 1"):
            SrEngine(tiny, 0)


class Named(nn.Module):
    """Makes each image as bright as its condition's name says, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told = list[list[str]]()

    def forward(self, x: Tensor, conditions: Sequence[Condition]) -> Tensor:
        assert x.dtype == torch.float32
        self.told.append([condition.patch_id for condition in conditions])
        brightness = torch.tensor([int(condition.patch_id) / MAX_DN for condition in conditions])
        return brightness[:, None, None, None].expand(-1, 3, 4 * x.shape[2], 4 * x.shape[3])


def named() -> tuple[SuperResolver, Named]:
    network = Named()
    return SuperResolver("named", 4, network, torch.device("cpu"), torch.bfloat16, conditioned=True), network


class TestConditions:
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
    def test_each_image_keeps_its_own(self, batch_size: int) -> None:
        numbers = [7, 3000, 12, 0, 999]
        sr = SrEngine(named()[0], batch_size).super_resolve(patches(5), MAX_DN, [Condition(str(n)) for n in numbers])
        assert [set(image.ravel().tolist()) for image in sr.numpy()] == [{n} for n in numbers]

    def test_in_a_stream_and_as_a_function(self) -> None:
        engine = SrEngine(named()[0], 2)
        told = [[Condition("1"), Condition("2")], [Condition("3")]]
        blocks = [patches(2), patches(1)]
        assert [item.dn.ravel()[-1] for item in engine.stream(blocks, MAX_DN, conditions=told)] == [2, 3]
        y = engine.told(told[0])(torch.zeros(2, 3, 4, 4))
        torch.testing.assert_close(y[:, 0, 0, 0] * MAX_DN, torch.tensor([1.0, 2.0]))
        assert (engine.told(()).scale, engine.told(()).device) == (4, torch.device("cpu"))

    @pytest.mark.parametrize("ending", [list, iter])
    def test_batches_that_nothing_is_told_of_are_not_dropped(self, ending: Callable[..., Any]) -> None:
        told, blocks = [[Condition("1")], [Condition("2")]], [patches(1)] * 3
        stream = SrEngine(named()[0], 2).stream(blocks, MAX_DN, conditions=ending(told))
        with pytest.raises(ShapeError, match="named: there are conditions of 2 batches, and more came"):
            list(stream)
        stream = SrEngine(named()[0], 2).stream(blocks[:1], MAX_DN, conditions=told)
        with pytest.raises(ShapeError, match="named: there are conditions of 2 batches, and 1 came"):
            list(stream)

    def test_an_endless_generator_tells_of_each_batch_when_it_was_made(self) -> None:
        made: list[int] = []

        def blocks() -> Iterator[NDArray[np.uint16]]:
            for number in (1, 2):
                made.append(number)
                yield patches(1)

        def told() -> Iterator[list[Condition]]:
            while True:
                yield [Condition(str(made[-1]))]

        found = SrEngine(named()[0], 2).stream(blocks(), MAX_DN, conditions=told())
        assert [item.dn.ravel()[0] for item in found] == [1, 2]

    def test_a_batch_filled_up_tells_of_its_last_image(self) -> None:
        resolver, network = named()
        engine = SrEngine(resolver, 4)
        engine._compiled = True  # the filling up, without the minutes of a compiler
        engine.super_resolve(patches(5), MAX_DN, [Condition(str(n)) for n in range(5)])
        assert network.told == [["0", "1", "2", "3"], ["4", "4", "4", "4"]]

    def test_further_bands_are_told_as_their_patch(self) -> None:
        resolver, network = named()
        both = dataclasses.replace(resolver, bands=("B04", "B03", "B02", "B08"))
        both(torch.rand(2, 4, 8, 8), [Condition("5"), Condition("6")])
        assert network.told == [["5", "6", "5", "6"]]

    def test_as_many_as_there_are_images(self, tiny: SuperResolver) -> None:
        x = torch.zeros(2, 3, 4, 4)
        with pytest.raises(ShapeError, match="named needs one condition for each of 2 images, got 1"):
            named()[0](x, [Condition("1")])
        with pytest.raises(ShapeError, match="tiny needs no conditions, got 2"):
            tiny(x, [Condition("1"), Condition("2")])


class TestOutOfMemory:
    @settings(deadline=None, max_examples=60)
    @given(n=st.integers(1, 20), room=st.integers(1, 9), batch_size=st.integers(1, 20))
    def test_every_patch_comes_out_right_and_in_order(self, n: int, room: int, batch_size: int) -> None:
        dn = patches(n, seed=n)
        resolver = cramped(room)
        assert np.array_equal(SrEngine(resolver, batch_size).super_resolve(dn, MAX_DN).numpy(), nearest(dn))

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
    def test_the_batch_is_halved_and_stays_so(self, error: type[RuntimeError]) -> None:
        resolver = cramped(3, error=error)
        engine = SrEngine(resolver, 16)
        dn = patches(16)
        assert np.array_equal(engine.super_resolve(dn, MAX_DN).numpy(), nearest(dn))
        assert isinstance(resolver.network, Cramped)
        assert resolver.network.calls == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
        engine.super_resolve(dn[:4], MAX_DN)
        assert resolver.network.calls[-2:] == [2, 2]  # nothing is tried that has failed before

    def test_memory_that_goes_in_the_middle(self) -> None:
        """Another process takes memory between two batches."""
        dn = patches(8)
        assert np.array_equal(SrEngine(cramped(4, 1, 4, 1), 4).super_resolve(dn, MAX_DN).numpy(), nearest(dn))

    def test_stream_hands_out_nothing_of_a_failed_batch(self) -> None:
        blocks = [patches(5, seed=1), patches(3, seed=2), patches(8, seed=3)]
        results = [item.dn for item in SrEngine(cramped(2), 8).stream(blocks, MAX_DN)]
        for block, result in zip(blocks, results, strict=True):
            assert np.array_equal(result, nearest(block))

    def test_not_even_one_fits(self) -> None:
        with pytest.raises(DeviceMemoryError, match=r"one image of 3 x 6 x 6 does not fit the memory of cpu"):
            SrEngine(cramped(0), 8).super_resolve(patches(2), MAX_DN)

    def test_other_errors_pass(self) -> None:
        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1"):
            SrEngine(SuperResolver("broken", 4, Broken(), torch.device("cpu"))).super_resolve(patches(2), MAX_DN)


class TestStream:
    def test_columns_are_of_their_batch(self, tiny: SuperResolver) -> None:
        blocks = [patches(n, seed=n) for n in (3, 1, 4)]

        def columns(lr: Tensor, sr: Tensor) -> Tensor:
            return torch.stack([t.float().mean(dim=(1, 2, 3)) for t in (lr, sr)])

        found = list(SrEngine(tiny).stream(blocks, MAX_DN, columns))
        for block, item in zip(blocks, found, strict=True):
            assert item.columns is not None
            np.testing.assert_allclose(item.columns[0], block.mean(axis=(1, 2, 3)), rtol=1e-5)
            np.testing.assert_allclose(item.columns[1], item.dn.mean(axis=(1, 2, 3)), rtol=1e-5)
            assert np.abs(item.dn.astype(int) - one_by_one(tiny, block)).max() <= 1

    def test_the_next_batch_is_begun_before_one_is_handed_over(self) -> None:
        resolver = cramped(64)
        stream = SrEngine(resolver, 8).stream([patches(1), patches(2), patches(3)], MAX_DN)
        next(stream)
        assert isinstance(resolver.network, Cramped)
        assert resolver.network.calls == [1, 2]


@pytest.mark.parametrize(
    ("free", "once", "each", "expected"),
    [(1000, 0, 100, 8), (799, 0, 100, 4), (1000, 650, 100, 2), (50, 0, 100, 1), (10**9, 0, 1, MAX_BATCH)],
)
def test_batch_that_fits_is_a_power_of_two_within_memory(free: int, once: int, each: int, expected: int) -> None:
    assert batch_that_fits(free, once, each) == expected


def test_compiling_without_a_compiler_is_one_sentence(tiny: SuperResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match="install gcc"):
        tiny.compiled()


@pytest.mark.slow
def test_compiled_equals_eager(tiny: SuperResolver) -> None:
    dn = patches(6, 24)
    compiled = SrEngine(tiny, 4, compiled=True).super_resolve(dn, MAX_DN).numpy().astype(int)
    assert np.abs(compiled - SrEngine(tiny, 4).super_resolve(dn, MAX_DN).numpy()).max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gpu_gives_the_pixels_of_the_cpu(tiny: SuperResolver, dtype: str) -> None:
    precision, tolerance = getattr(torch, dtype), {"float32": 1, "float16": 8, "bfloat16": 60}[dtype]
    network = srvgg_compact(num_feat=8, num_conv=2).eval().requires_grad_(requires_grad=False)
    network.load_state_dict(tiny.network.state_dict())
    network = network.to("cuda", precision).to(memory_format=torch.channels_last)
    there = SuperResolver("tiny", 4, network, torch.device("cuda"), precision, memory_format=torch.channels_last)
    blocks = [patches(n, 120, seed=n) for n in (5, 64, 1)]
    engine = SrEngine(there)
    for block, item in zip(blocks, engine.stream(blocks, MAX_DN), strict=True):
        assert np.abs(item.dn.astype(int) - one_by_one(tiny, block)).max() <= tolerance
