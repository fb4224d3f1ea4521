"""Weight files: the official formats load, anything else is explained."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sr_models
from infra.errors import WeightsError
from infra.weights_store import sha256
from sr_models.basicsr_archs import msrresnet, rrdbnet, srvgg_compact
from sr_models.hat import hat
from sr_models.weights import load_into, load_state, looks_like


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return srvgg_compact(num_feat=4, num_conv=2)


def like(state: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    return {key: torch.full_like(tensor, value) for key, tensor in state.items()}


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


class TestPart:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_a_checkpoint(self, zipped: bool, network: nn.Module, tmp_path: Path) -> None:
        state = network.state_dict()
        content = {"model": state, "params": like(state, 1.0), "optimizer": {"lr": 0.1}, "epoch": 3}
        torch.save(content, path := tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        torch.testing.assert_close(load_state(path, part="model"), dict(state), atol=0, rtol=0)

    def test_or_the_parameters_themselves(self, network: nn.Module, tmp_path: Path) -> None:
        state = network.state_dict()
        save_file(state, tmp_path / "w.safetensors")
        for path in (save(state, tmp_path / "w.pth"), tmp_path / "w.safetensors"):
            torch.testing.assert_close(load_state(path, part="model"), dict(state), atol=0, rtol=0)

    @pytest.mark.parametrize("content", [{"model": {}}, {}, torch.zeros(1)])
    def test_which_is_not_there(self, content: object, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"w\.pth holds \w+, where named tensors are needed"):
            load_state(save(content, tmp_path / "w.pth"), part="model")

    @pytest.mark.parametrize(
        ("content", "odd"), [({"model": {"epoch": 3}}, r"epoch \(int\)"), ({"params": {}}, r"params \(nothing\)")]
    )
    def test_with_more_than_tensors(self, content: object, odd: str, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=rf"under model, .* are no tensors: {odd}$"):
            load_state(save(content, tmp_path / "w.pth"), part="model")


class TestFormats:
    def test_params_ema_comes_before_params_before_the_file_itself(self, network: nn.Module, tmp_path: Path) -> None:
        state = network.state_dict()
        one, two = like(state, 1.0), like(state, 2.0)
        for content in ({"params": two, "params_ema": one}, {"params_ema": one}, {"params": one}, one):
            loaded = load_state(save(content, tmp_path / "w.pth"))
            assert loaded.keys() == state.keys()
            assert all(bool((tensor == 1).all()) for tensor in loaded.values())

    def test_safetensors(self, network: nn.Module, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file(network.state_dict(), path)
        torch.testing.assert_close(load_state(path), dict(network.state_dict()), atol=0, rtol=0)

    def test_the_prefix_of_data_parallel_is_taken_off(self, network: nn.Module, tmp_path: Path) -> None:
        wrapped = {f"module.{key}": value for key, value in network.state_dict().items()}
        assert load_state(save({"params": wrapped}, tmp_path / "w.pth")).keys() == network.state_dict().keys()

    def test_half_precision_becomes_float32(self, network: nn.Module, tmp_path: Path) -> None:
        state = {key: value.half() for key, value in network.state_dict().items()}
        target = srvgg_compact(num_feat=4, num_conv=2)
        load_into(target, save({"params": state}, tmp_path / "w.pth"), "realesrgan_general")
        for key, value in target.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state[key].float())

    def test_the_real_half_precision_file_loads(self, shared_data: Path) -> None:
        path = shared_data / "weights" / "realesr-general-x4v3-fp16.pth"
        resolver = sr_models.load("realesrgan_general", path)
        assert {p.dtype for p in resolver.network.parameters()} == {torch.float32}
        assert resolver.weights_sha256 == "a5d456fc16464f43f27045bd5b087974ade494d1bf2eb2fce47cec249c65eb44"

    def test_sha256(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(b"abc" * 100_000)
        assert sha256(tmp_path / "w") == hashlib.sha256(b"abc" * 100_000).hexdigest()
        with pytest.raises(WeightsError, match="no weight file"):
            sha256(tmp_path / "absent")


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("srresnet", ("does not fit srresnet (MSRResNet with 64 features and 16 blocks)", "conv_first.weight")),
            ("realesrgan", ("does not fit realesrgan (RRDBNet with 64 features and 23 blocks)", "body.0.rdb1")),
        ],
    )
    def test_another_network_is_named(
        self, name: str, words: tuple[str, ...], network: nn.Module, tmp_path: Path
    ) -> None:
        path = save({"params": network.state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            sr_models.load(name, path)
        for word in (*words, "missing", "unexpected", "looks like SRVGGNetCompact with 4 features and 2 convolutions"):
            assert word in str(caught.value)
        assert len(str(caught.value)) < 1500

    def test_another_size_is_named_by_its_shapes(self, network: nn.Module, tmp_path: Path) -> None:
        path = save({"params": network.state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            load_into(srvgg_compact(num_feat=6, num_conv=2), path, "realesrgan_general")
        message = str(caught.value)
        assert "of another shape: body.0.weight is (4, 3, 3, 3), needs (6, 3, 3, 3)" in message
        assert "10 of another shape" in message  # weights 4, biases 4 - 1 of 48 outputs, slopes 3
        assert "missing:" not in message

    def test_fewer_blocks_are_counted(self, tmp_path: Path) -> None:
        path = save({"params_ema": rrdbnet(num_feat=4, num_block=2, num_grow_ch=2).state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            load_into(rrdbnet(num_feat=4, num_block=3, num_grow_ch=2), path, "realesrgan")
        assert "30 missing: body.2.rdb1.conv1.weight" in str(caught.value)  # 3 dense blocks x 5 convolutions x 2
        assert "and 26 more" in str(caught.value)
        assert "looks like RRDBNet with 4 features and 2 blocks" in str(caught.value)

    def test_a_wrong_file_changes_no_parameter(self, network: nn.Module, tmp_path: Path) -> None:
        broken = like(network.state_dict(), 7.0)
        broken.pop("body.6.bias")
        target = srvgg_compact(num_feat=4, num_conv=2)
        with pytest.raises(WeightsError, match=r"1 missing: body\.6\.bias"):
            load_into(target, save(broken, tmp_path / "w.pth"), "realesrgan_general")
        assert not any(bool((value == 7).any()) for value in target.state_dict().values())

    def test_pickled_objects_are_refused(self, network: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="may run code"):
            load_state(save(network, tmp_path / "w.pth"))

    def test_a_training_checkpoint_is_refused(self, network: nn.Module, tmp_path: Path) -> None:
        path = save({"epoch": 3, "model": network.state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"no tensors: epoch \(int\), model \(\w*[dD]ict\)"):
            load_state(path)

    @pytest.mark.parametrize("content", [torch.zeros(3), {}, [torch.zeros(3)]])
    def test_anything_but_named_tensors_is_refused(self, content: object, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="where named tensors are needed"):
            load_state(save(content, tmp_path / "w.pth"))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("junk", [b"", b"<html>404</html>" * 20, b"\x80\x02}q\x00."])
    def test_junk_is_refused(self, suffix: str, junk: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(junk)
        with pytest.raises(WeightsError):
            load_state(path)

    @pytest.mark.parametrize("share", [0.2, 0.9])
    def test_a_download_cut_short_is_refused(self, share: float, network: nn.Module, tmp_path: Path) -> None:
        path = save({"params": network.state_dict()}, tmp_path / "w.pth")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(WeightsError, match=r"w\.pth"):
            load_state(path)

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="there is no file at"):
            sr_models.load("srresnet", tmp_path)
        with pytest.raises(WeightsError, match="no weight file at"):
            load_state(tmp_path)


def test_what_a_file_looks_like() -> None:
    assert looks_like(msrresnet(num_feat=4, num_block=2).state_dict()) == "MSRResNet with 4 features and 2 blocks"
    assert looks_like({"model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(1)}).startswith("RRDBNet under the key names")
    small = {"embed_dim": 12, "compress_ratio": 3, "squeeze_factor": 6, "window_size": 4}
    state = hat(num_groups=3, num_blocks=2, **small).state_dict()
    assert looks_like(state) == "HAT with 12 channels and 3 groups of 2 blocks"
    del state["conv_first.weight"]
    assert looks_like(state) == "a part of a HAT with 3 groups"
    assert looks_like({"layers.0.residual_group.blocks.0.norm1.weight": torch.zeros(1)}) == "SwinIR"
    resnet = {"fc.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    assert looks_like(resnet) == "a ResNet classifier"
    assert looks_like({"x": torch.zeros(1)}) == "no network known here (1 tensors: x)"
