"""Methods as their table has them: what is needed to name one costs no import of torch."""

from typing import TYPE_CHECKING

from classifiers.cam.options import (
    GradPlusPlusScoreCamOptions,
    LimeOptions,
    OcclusionOptions,
    RandomOptions,
    RiseOptions,
    ScoreCamOptions,
    SmoothOptions,
)

if TYPE_CHECKING:
    from torch import Tensor

    from classifiers.cam.target import Target


def cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.cam`."""
    from classifiers.cam.gradient_family import cam

    return cam(target)


def grad_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.grad_cam`."""
    from classifiers.cam.gradient_family import grad_cam

    return grad_cam(target)


def hires_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.hires_cam`."""
    from classifiers.cam.gradient_family import hires_cam

    return hires_cam(target)


def x_grad_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.x_grad_cam`."""
    from classifiers.cam.gradient_family import x_grad_cam

    return x_grad_cam(target)


def grad_cam_pp(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.grad_cam_pp`."""
    from classifiers.cam.gradient_family import grad_cam_pp

    return grad_cam_pp(target)


def layer_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.gradient_family.layer_cam`."""
    from classifiers.cam.gradient_family import layer_cam

    return layer_cam(target)


def ablation_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.ablation_cam.ablation_cam`."""
    from classifiers.cam.ablation_cam import ablation_cam

    return ablation_cam(target)


def eigen_cam(target: "Target") -> "Tensor":
    """See `classifiers.cam.eigen_cam.eigen_cam`."""
    from classifiers.cam.eigen_cam import eigen_cam

    return eigen_cam(target)


def hessian_ciam(target: "Target") -> "Tensor":
    """See `classifiers.cam.hessian_ciam.hessian_ciam`."""
    from classifiers.cam.hessian_ciam import hessian_ciam

    return hessian_ciam(target)


def smooth_grad_cam_pp(target: "Target", options: SmoothOptions) -> "Tensor":
    """See `classifiers.cam.smooth_grad_cam_pp.smooth_grad_cam_pp`."""
    from classifiers.cam.smooth_grad_cam_pp import smooth_grad_cam_pp

    return smooth_grad_cam_pp(target, options)


def random_map(target: "Target", options: RandomOptions) -> "Tensor":
    """See `classifiers.cam.random_map.random_map`."""
    from classifiers.cam.random_map import random_map

    return random_map(target, options)


def score_cam(target: "Target", options: ScoreCamOptions) -> "Tensor":
    """See `classifiers.cam.score_cam.score_cam`."""
    from classifiers.cam.score_cam import score_cam

    return score_cam(target, options)


def grad_plus_plus_score_cam(target: "Target", options: GradPlusPlusScoreCamOptions) -> "Tensor":
    """See `classifiers.cam.score_cam.grad_plus_plus_score_cam`."""
    from classifiers.cam.score_cam import grad_plus_plus_score_cam

    return grad_plus_plus_score_cam(target, options)


def rise(target: "Target", options: RiseOptions) -> "Tensor":
    """See `classifiers.cam.rise.rise`."""
    from classifiers.cam.rise import rise

    return rise(target, options)


def occlusion(target: "Target", options: OcclusionOptions) -> "Tensor":
    """See `classifiers.cam.occlusion.occlusion`."""
    from classifiers.cam.occlusion import occlusion

    return occlusion(target, options)


def lime(target: "Target", options: LimeOptions) -> "Tensor":
    """See `classifiers.cam.lime.lime`."""
    from classifiers.cam.lime import lime

    return lime(target, options)
