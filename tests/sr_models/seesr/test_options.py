"""SeeSR's options: the official script's defaults, and what is refused."""

import pytest

from infra.errors import ConfigError
from sr_models import spec
from sr_models.seesr.options import SeesrOptions


def test_defaults_are_those_of_the_official_script() -> None:
    """Arguments of test_seesr.py, written out by hand; what it has no argument for is not changed by default."""
    assert SeesrOptions().model_dump() == {
        "steps": 50,
        "guidance": 5.5,
        "conditioning_scale": 1.0,
        "start": "lr",
        "scheduler": "ddpm",
        "base": "stable-diffusion-2-base",
        "alignment": "adain",
        "positive_prompt": "clean, high-resolution, 8k",
        "negative_prompt": "dotted, noise, blur, lowres, smooth",
        "land_cover": "none",
        "seed": 0,
    }


def test_what_is_given_is_taken() -> None:
    assert spec("seesr").chosen("seesr", {"steps": 2, "base": "sd-turbo", "guidance": 1}) == SeesrOptions(
        steps=2, base="sd-turbo", guidance=1.0
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 0}, "steps: input should be greater than or equal to 1, not 0"),
        ({"steps": 1000}, "steps: input should be less than or equal to 999, not 1000"),
        ({"guidance": 0.5}, "guidance: input should be greater than or equal to 1, not 0.5"),
        ({"guidance": float("nan")}, "guidance: input should be a finite number, not nan"),
        ({"start": "zero"}, "start: input should be 'lr' or 'noise', not 'zero'"),
        ({"step": 3}, "there is no option 'step': did you mean 'steps'? there are steps, guidance, conditioning_scale"),
    ],
)
def test_what_cannot_be_is_told(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec("seesr").chosen("seesr", given)
    assert told in str(caught.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError, match=r"steps: .*; seed: "):
        spec("seesr").chosen("seesr", {"steps": 0, "seed": "x"})
