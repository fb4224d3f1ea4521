"""Super-resolution models: one table of them, one way to load and run them, and measures of what they return."""

from infra.weights_store import OfficialFile
from sr_models.condition import Condition
from sr_models.contract import check_sr_model
from sr_models.engine import SrEngine
from sr_models.registry import SR_MODELS, ShippedWeights, SrSpec, WeightsFolder, names, spec
from sr_models.stretch import clipped_share, to_dn, to_unit
from sr_models.super_resolver import SuperResolver, check_weights, fingerprint, load
from sr_models.weights import weights_file

__all__ = [
    "SR_MODELS",
    "Condition",
    "OfficialFile",
    "ShippedWeights",
    "SrEngine",
    "SrSpec",
    "SuperResolver",
    "WeightsFolder",
    "check_sr_model",
    "check_weights",
    "clipped_share",
    "fingerprint",
    "load",
    "names",
    "spec",
    "to_dn",
    "to_unit",
    "weights_file",
]
