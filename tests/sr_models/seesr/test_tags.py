"""The tag list: what is in the user's files, what is wrong with them, and the tags of logits by brute force."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from infra.errors import ShapeError, WeightsError
from sr_models.seesr.tags import TagList

NAMES = ("field", "apple tree", "river", "roof")
THRESHOLDS = (0.5, 0.65, 0.9, 1.0)


def write(
    folder: Path, names: Sequence[str] = NAMES, thresholds: Sequence[object] = THRESHOLDS, end: str = ""
) -> tuple[Path, Path]:
    paths = folder / "ram_tag_list.txt", folder / "ram_tag_list_threshold.txt"
    for path, lines in zip(paths, (names, thresholds), strict=True):
        path.write_bytes(("\n".join(str(line) for line in lines) + end).encode())
    return paths


class TestRead:
    @pytest.mark.parametrize("end", ["", "\n"])
    def test_one_in_each_line(self, end: str, tmp_path: Path) -> None:
        """The official names end without a line feed, the official thresholds with one."""
        assert TagList.read(*write(tmp_path, end=end), count=4) == TagList(NAMES, THRESHOLDS)

    def test_lines_of_other_systems(self, tmp_path: Path) -> None:
        names, thresholds = write(tmp_path, end="\n")
        for path in (names, thresholds):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert TagList.read(names, thresholds, count=4) == TagList(NAMES, THRESHOLDS)

    def test_whole_numbers_and_letters_beyond_ascii(self, tmp_path: Path) -> None:
        paths = write(tmp_path, ["café"], ["1"])
        assert TagList.read(*paths, count=1) == TagList(("café",), (1.0,))

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_missing_file(self, which: int, tmp_path: Path) -> None:
        paths = write(tmp_path)
        paths[which].unlink()
        with pytest.raises(WeightsError, match=rf"no file at .*{paths[which].name}"):
            TagList.read(*paths, count=4)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_number_of_lines(self, which: int, change: int, tmp_path: Path) -> None:
        content: list[list[object]] = [list(NAMES), list(THRESHOLDS)]
        content[which] = (content[which] * 2)[: 4 + change]
        paths = write(tmp_path, [str(name) for name in content[0]], content[1])
        with pytest.raises(WeightsError, match=rf"{paths[which].name} has {4 + change} lines, .* 4 tags"):
            TagList.read(*paths, count=4)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        names, thresholds = write(tmp_path)
        names.write_bytes(b"")
        with pytest.raises(WeightsError, match="has 1 lines"):
            TagList.read(names, thresholds, count=4)

    @pytest.mark.parametrize("name", ["", "  ", "\t"])
    def test_an_empty_name(self, name: str, tmp_path: Path) -> None:
        paths = write(tmp_path, [*NAMES[:2], name, NAMES[3]])
        with pytest.raises(WeightsError, match=r"ram_tag_list\.txt, line 3: a tag without a name"):
            TagList.read(*paths, count=4)

    @pytest.mark.parametrize("threshold", ["high", "", "0", "-0.5", "1.01", "nan", "inf", "0,65", "0.5 0.6"])
    def test_no_threshold(self, threshold: str, tmp_path: Path) -> None:
        paths = write(tmp_path, thresholds=[0.5, threshold, 0.5, 0.5])
        with pytest.raises(WeightsError, match=r"ram_tag_list_threshold\.txt, line 2: .* is no threshold") as caught:
            TagList.read(*paths, count=4)
        assert repr(threshold) in str(caught.value)

    def test_no_text(self, tmp_path: Path) -> None:
        names, thresholds = write(tmp_path)
        names.write_bytes(b"\xff\xfe\x00field")
        with pytest.raises(WeightsError, match=r"ram_tag_list\.txt cannot be read as UTF-8"):
            TagList.read(names, thresholds, count=4)
        with pytest.raises(WeightsError, match="cannot be read"):
            TagList.read(tmp_path, thresholds, count=4)


class TestTags:
    def test_brute_force(self) -> None:
        generator = torch.Generator().manual_seed(0)
        thresholds = tuple((0.05 + 0.9 * torch.rand(50, generator=generator)).tolist())
        tags = TagList(tuple(f"tag {index}" for index in range(50)), thresholds)
        logits = 3 * torch.randn((20, 50), generator=generator)
        expected = [
            tuple(f"tag {index}" for index, logit in enumerate(row) if 1 / (1 + math.exp(-logit)) > thresholds[index])
            for row in logits.tolist()
        ]
        assert 5 < sum(len(row) for row in expected) / 20 < 45
        assert tags.tags(logits) == expected

    def test_equal_is_not_above(self) -> None:
        tags = TagList(NAMES, (0.5, 0.5, 0.5, 0.5))
        tiny = 1e-3
        assert tags.tags(torch.tensor([[0.0, tiny, -tiny, 0.0]])) == [("apple tree",)]

    def test_a_threshold_of_one_is_never_passed(self) -> None:
        assert TagList(NAMES, THRESHOLDS).tags(torch.full((1, 4), 100.0)) == [NAMES[:3]]

    def test_none_at_all_and_no_image(self) -> None:
        tags = TagList(NAMES, THRESHOLDS)
        assert tags.tags(torch.full((2, 4), -5.0)) == [(), ()]
        assert tags.tags(torch.zeros((0, 4))) == []

    def test_half_precision_is_compared_in_float32(self) -> None:
        """sigmoid(1.390625) = 0.80069 is above 0.8; in bfloat16 both would be 0.80078."""
        logits = torch.tensor([[1.3828125, 1.390625]], dtype=torch.bfloat16)  # neighbours
        assert TagList(("a", "b"), (0.8, 0.8)).tags(logits) == [("b",)]
        assert not bool((logits.sigmoid() > torch.tensor(0.8, dtype=torch.bfloat16)).any())

    @pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 5), (1, 4, 1)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match=r"\(N, 4\)"):
            TagList(NAMES, THRESHOLDS).tags(torch.zeros(shape))
