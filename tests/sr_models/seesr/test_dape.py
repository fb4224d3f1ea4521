"""DAPE: the official names, what it does to an image, and how its two files are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import functional as tv

from infra.errors import ConfigError, ShapeError, WeightsError
from sr_models.seesr.dape import FULL, TINY, Dape, DapeConfig, DapeOutput, read_dape
from tests.sr_models.seesr.shaken import shaken
from tests.sr_models.stand_ins import picture


@pytest.fixture(scope="module")
def dape() -> Dape:
    torch.manual_seed(0)
    return shaken(Dape(TINY))


class TestNames:
    def test_all_of_the_official_ones_in_full(self, shared_data: Path) -> None:
        with torch.device("meta"):
            found = {name: list(value.shape) for name, value in Dape(FULL).state_dict().items()}
        expected = json.loads((shared_data / "seesr" / "ram_lora_keys.json").read_text())
        assert len(expected) == 457
        assert found == expected

    @pytest.mark.parametrize(("config", "masks", "downsamplings"), [(FULL, 1 + 1 + 9, 3), (TINY, 1, 1)])
    def test_their_number(self, config: DapeConfig, masks: int, downsamplings: int) -> None:
        """By hand: 16 for a block, 4 for the embedding of patches, 3 for merging them, 20 for a tagging layer."""
        with torch.device("meta"):
            state = Dape(config).state_dict()
        assert len(state) == 16 * sum(config.depths) + masks + 4 + 3 * downsamplings + 2 + 20 * 2 + 7

    def test_some_of_them(self, dape: Dape) -> None:
        shapes = {name: tuple(value.shape) for name, value in dape.state_dict().items()}
        expected = {
            "label_embed": (8, 512),
            "visual_encoder.patch_embed.proj.weight": (16, 3, 4, 4),
            "visual_encoder.layers.0.blocks.1.attn_mask": (4, 16, 16),
            "visual_encoder.layers.0.blocks.0.attn.relative_position_index": (16, 16),
            "visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table": (49, 2),
            "visual_encoder.layers.0.blocks.0.attn.qkv.lora_A": (16, 16),
            "visual_encoder.layers.0.blocks.0.attn.qkv.lora_B": (32, 8),
            "visual_encoder.layers.0.downsample.reduction.weight": (32, 64),
            "visual_encoder.layers.1.blocks.1.mlp.fc1.weight": (128, 32),
            "tagging_head.encoder.layer.1.crossattention.self.key.lora_A": (8, 512),
            "tagging_head.encoder.layer.0.crossattention.output.LayerNorm.weight": (32,),
            "tagging_head.encoder.layer.0.intermediate.dense.weight": (128, 32),
            "wordvec_proj.weight": (32, 512),
            "fc.weight": (1, 32),
            "image_proj.weight": (512, 32),
        }
        assert {name: shapes.get(name) for name in expected} == expected

    def test_the_millions_of_parameters_of_swin_l(self) -> None:
        """Swin-L at 384 has 196.74 million in timm's table, of which 1.54 are the classifier of 1000 classes."""
        with torch.device("meta"):
            encoder = Dape(FULL).visual_encoder
        tuned = sum(value.numel() for name, value in encoder.named_parameters() if ".lora_" in name)
        assert tuned == 32 * (2 * 192 + 2 * 384 + 18 * 768 + 2 * 1536)
        assert (sum(value.numel() for value in encoder.parameters()) - tuned) / 1e6 == pytest.approx(195.2, abs=0.01)


class TestForward:
    @pytest.mark.parametrize("size", [(32, 32), (120, 120), (33, 70), (7, 5), (1, 1)])
    def test_the_steps_one_by_one(self, size: tuple[int, int], dape: Dape) -> None:
        """Torchvision prepares the image, encoder and head have tests of their own, the rest is by hand."""
        x, w = picture(2, size), dape.state_dict()
        square = tv.resize(x, [32, 32], antialias=False)
        normalised = tv.normalize(square, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        embeddings = F.linear(dape.visual_encoder(normalised), w["image_proj.weight"], w["image_proj.bias"])
        labels = F.linear(w["label_embed"], w["wordvec_proj.weight"], w["wordvec_proj.bias"]).clamp(min=0)
        logits = F.linear(dape.tagging_head(labels[None], embeddings), w["fc.weight"], w["fc.bias"])[:, :, 0]
        found = dape(x)
        assert found.logits.shape == (2, 8)
        assert found.embeddings.shape == (2, 1 + 16, 512)
        assert float(found.logits.std(dim=1).min()) > 0.01
        torch.testing.assert_close(found.embeddings, embeddings, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-5)

    def test_antialiasing_is_no_question_for_smaller_images(self) -> None:
        """A patch of 120 x 120 is enlarged to 384, where antialiasing changes nothing."""
        x = picture(1, (120, 97))
        torch.testing.assert_close(
            tv.resize(x, [384, 384], antialias=True), tv.resize(x, [384, 384], antialias=False), atol=1e-5, rtol=0
        )

    def test_lora_is_what_it_is_when_merged(self, dape: Dape) -> None:
        """W + B A / 8 in the place of W and 0 in the place of B, in all layers, give the same network."""
        merged, state = Dape(TINY).eval(), {name: value.clone() for name, value in dape.state_dict().items()}
        changed = 0
        for name in list(state):
            if name.endswith(".lora_B"):
                a, b = state[name.removesuffix("B") + "A"], state[name]
                weight = state[name.removesuffix("lora_B") + "weight"]
                blocks = torch.stack(
                    [one @ other for one, other in zip(b.chunk(len(a) // 8), a.chunk(len(a) // 8), strict=True)]
                )
                rows = weight.view(-1, blocks.shape[1], weight.shape[1])  # a view: it is the weight that changes
                rows[:: 2 if len(blocks) == 2 else 1] += blocks / 8
                b.zero_()
                changed += 1
        assert changed == 4 + 2 * 2
        merged.load_state_dict(state)
        x = picture(2, 32)
        expected, before = dape(x), merged(x)
        scale = float(expected.embeddings.abs().max())
        torch.testing.assert_close(before.embeddings, expected.embeddings, atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(before.logits, expected.logits, atol=1e-5, rtol=1e-5)

    def test_each_image_alone(self, dape: Dape) -> None:
        x = picture(5, 40)
        together, alone = dape(x), [dape(one) for one in x.chunk(len(x))]
        for name in ("logits", "embeddings"):
            expected = torch.cat([getattr(one, name) for one in alone])
            torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_half_precision(self, dape: Dape) -> None:
        x = picture(2, 40)
        half = Dape(TINY).eval()
        half.load_state_dict(dape.state_dict())
        half.to(torch.bfloat16)
        exact = dape(x)
        for images in (x, x.bfloat16()):
            found = half(images)
            assert found.logits.dtype == found.embeddings.dtype == torch.bfloat16
            for name in ("logits", "embeddings"):
                expected = getattr(exact, name)
                error = (getattr(found, name).float() - expected).norm() / expected.norm()
                assert 0 < float(error) < 0.05

    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32), (1, 3, 32, 0)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...], dape: Dape) -> None:
        with pytest.raises(ShapeError, match=r"\(N, 3, H, W\)"):
            dape(torch.zeros(shape))


def tuned_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if ".lora_" in name}


def ram_content(dape: Dape) -> dict[str, object]:
    """What the official file has: RAM without LoRA and much that tagging does not need, and the optimizer's state."""
    state = {name: value for name, value in dape.state_dict().items() if ".lora_" not in name}
    state |= {
        "visual_encoder.layers.0.blocks.1.attn_mask": torch.full((4, 16, 16), 7.0),  # computed, not read
        "visual_encoder.layers.0.blocks.0.attn.relative_position_index": torch.zeros((16, 16), dtype=torch.int64),
        "tag_encoder.encoder.layer.0.attention.self.query.weight": torch.zeros(3, 3),
        "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(3, 3),
        "tagging_head.embeddings.word_embeddings.weight": torch.zeros(3, 3),
        "tagging_head.encoder.layer.1.attention.self.query.weight": torch.zeros(3, 3),
        "temperature": torch.zeros(()),
    }
    return {"model": state, "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(5)}}}, "epoch": 9}


def dape_content(dape: Dape) -> dict[str, Tensor]:
    return tuned_of(dape.state_dict()) | {
        "tag_encoder.encoder.layer.0.attention.self.query.lora_A": torch.zeros(8, 3),
        "text_decoder.bert.encoder.layer.0.attention.self.key.lora_B": torch.zeros(3, 8),
    }


@pytest.fixture
def files(dape: Dape, tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "ram_swin_large_14m.pth", tmp_path / "DAPE.pth"
    torch.save(ram_content(dape), paths[0])
    torch.save(dape_content(dape), paths[1])
    return paths


def state_of(content: object) -> dict[str, Tensor]:
    assert isinstance(content, dict)
    state = content.get("model", content)
    assert isinstance(state, dict)
    return state


class TestRead:
    def test_every_parameter_arrives(self, files: tuple[Path, Path], dape: Dape) -> None:
        read = read_dape(*files, TINY)
        assert read.state_dict().keys() == dape.state_dict().keys()
        for name, value in read.state_dict().items():
            assert torch.equal(value, dape.state_dict()[name]), name
        assert not read.training
        assert not any(parameter.requires_grad for parameter in read.parameters())
        x = picture(2, 40)
        expected, found = dape(x), read(x)
        assert isinstance(found, DapeOutput)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.embeddings, expected.embeddings)

    def test_what_was_read_does_not_depend_on_the_files_any_more(self, files: tuple[Path, Path], dape: Dape) -> None:
        read = read_dape(*files, TINY)
        for path in files:
            path.write_bytes(b"\xff" * path.stat().st_size)
        for name, value in read.state_dict().items():
            assert torch.equal(value, dape.state_dict()[name]), name

    def test_dapes_own_come_before_rams(self, files: tuple[Path, Path], dape: Dape) -> None:
        torch.save(dape_content(dape) | {"fc.bias": torch.tensor([5.0])}, files[1])
        assert read_dape(*files, TINY).fc.bias.item() == 5.0

    def test_the_old_name_of_the_tagging_head(self, files: tuple[Path, Path], dape: Dape) -> None:
        content = ram_content(dape)
        content["model"] = {n.replace("tagging_head", "vision_multi"): v for n, v in state_of(content).items()}
        torch.save(content, files[0])
        for name, value in read_dape(*files, TINY).state_dict().items():
            assert torch.equal(value, dape.state_dict()[name]), name

    def test_rams_parameters_saved_alone(self, files: tuple[Path, Path], dape: Dape) -> None:
        torch.save(state_of(ram_content(dape)), files[0])
        for name, value in read_dape(*files, TINY).state_dict().items():
            assert torch.equal(value, dape.state_dict()[name]), name

    def test_half_precision_and_old_files_of_torch(self, files: tuple[Path, Path], dape: Dape) -> None:
        content = ram_content(dape)
        content["model"] = {name: value.half() for name, value in state_of(content).items()}
        torch.save(content, files[0], _use_new_zipfile_serialization=False)
        read = read_dape(*files, TINY)
        assert read.fc.weight.dtype == torch.float32
        assert torch.equal(read.fc.weight, dape.fc.weight.half().float())

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_missing_file(self, which: int, files: tuple[Path, Path]) -> None:
        files[which].unlink()
        with pytest.raises(WeightsError, match=rf"no weight file at .*{files[which].name}"):
            read_dape(*files, TINY)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
    def test_a_file_cut_short(self, which: int, share: float, files: tuple[Path, Path]) -> None:
        whole = files[which].read_bytes()
        files[which].write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(WeightsError, match=files[which].name):
            read_dape(*files, TINY)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize(
        "content",
        [
            b"<html>404</html>",
            torch.zeros(3),
            {},
            {"model": {}},
            {"model": {"epoch": 3}},
            {"model": torch.zeros(3), "epoch": 3},
            {"model": {"fc.bias": torch.zeros(1)}, "config": Path("a pickled object")},
        ],
        ids=["junk", "tensor", "empty", "empty model", "no tensors", "no model", "objects"],
    )
    def test_no_weight_file(self, which: int, content: object, files: tuple[Path, Path]) -> None:
        if isinstance(content, bytes):
            files[which].write_bytes(content)
        else:
            torch.save(content, files[which])
        with pytest.raises(WeightsError, match=files[which].name):
            read_dape(*files, TINY)

    def test_objects_are_not_loaded(self, files: tuple[Path, Path], dape: Dape) -> None:
        torch.save({**ram_content(dape), "config": Path("a pickled object")}, files[0])
        with pytest.raises(WeightsError, match="may run code"):
            read_dape(*files, TINY)

    @pytest.mark.parametrize(
        ("which", "change", "message"),
        [
            (0, lambda state: state.pop("fc.bias"), r"RAM's .*: 1 missing: fc\.bias$"),
            (
                0,
                lambda state: state.update({"fc.bias": torch.zeros(2)}),
                r"1 .* shape: fc\.bias is \(2,\), needs \(1,\)$",
            ),
            (0, lambda state: state.update({"fc.scale": torch.zeros(2)}), r"1 unexpected: fc\.scale$"),
            (
                0,
                lambda state: state.update({"visual_encoder.layers.1.blocks.2.norm1.bias": torch.zeros(32)}),
                r"1 unexpected: visual_encoder\.layers\.1\.blocks\.2\.norm1\.bias$",
            ),
            (
                0,
                lambda state: state.update(tuned_of(Dape(TINY).state_dict())),
                r"16 unexpected: .* and 12 more$",
            ),
            (
                1,
                lambda state: state.pop("tagging_head.encoder.layer.0.crossattention.self.key.lora_B"),
                r"DAPE's .*: 1 missing: tagging_head\.encoder\.layer\.0\.crossattention\.self\.key\.lora_B$",
            ),
            (1, lambda state: state.update({"temperature": torch.zeros(2)}), r"1 unexpected: temperature$"),
            (
                1,
                lambda state: state.update({"visual_encoder.layers.0.blocks.0.attn.qkv.lora_B": torch.zeros(32, 4)}),
                r"1 of another shape: .*lora_B is \(32, 4\), needs \(32, 8\)$",
            ),
        ],
    )
    def test_parameters_that_do_not_fit(
        self,
        which: int,
        change: Callable[[dict[str, Tensor]], object],
        message: str,
        files: tuple[Path, Path],
        dape: Dape,
    ) -> None:
        content = (ram_content, dape_content)[which](dape)
        change(state_of(content))
        torch.save(content, files[which])
        with pytest.raises(WeightsError, match=message) as caught:
            read_dape(*files, TINY)
        assert str(files[which]) in str(caught.value)

    def test_the_two_files_in_each_others_place(self, files: tuple[Path, Path]) -> None:
        with pytest.raises(WeightsError, match=r"ram_swin_large_14m\.pth is no weight file .* no tensors: model"):
            read_dape(files[1], files[0], TINY)

    def test_files_of_another_size(self, files: tuple[Path, Path]) -> None:
        other = DapeConfig(8, 32, 16, (2, 2), (2, 4), 4, hidden=64, tagging_layers=2, tagging_heads=4)
        with pytest.raises(WeightsError, match=r"of another shape: .*, needs \(64"):
            read_dape(*files, other)

    def test_sizes_that_do_not_fit_each_other(self, files: tuple[Path, Path]) -> None:
        other = DapeConfig(8, 33, 16, (2, 2), (2, 4), 4, hidden=64, tagging_layers=2, tagging_heads=4)
        with pytest.raises(ConfigError, match="images of 33"):
            read_dape(*files, other)
