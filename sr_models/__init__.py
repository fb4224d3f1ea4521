"""Super-resolution models: one table of them, one way to load and run them, and measures of what they return."""

from typing import TYPE_CHECKING

from infra.on_demand import names_of

if TYPE_CHECKING:
    from infra.weights_store import OfficialFile
    from sr_models.condition import Condition
    from sr_models.contract import check_sr_model
    from sr_models.engine import SrEngine
    from sr_models.registry import SR_MODELS, ShippedWeights, SrSpec, WeightsFolder, names, spec
    from sr_models.stretch import clipped_share, to_dn, to_unit
    from sr_models.super_resolver import SuperResolver, check_weights, fingerprint, load
    from sr_models.weight_files import weights_file
else:  # torch takes 500 MB, and the table of the models needs none of it
    __getattr__ = names_of(
        __name__,
        {
            "infra.weights_store": ["OfficialFile"],
            "sr_models.condition": ["Condition"],
            "sr_models.contract": ["check_sr_model"],
            "sr_models.engine": ["SrEngine"],
            "sr_models.registry": ["SR_MODELS", "ShippedWeights", "SrSpec", "WeightsFolder", "names", "spec"],
            "sr_models.stretch": ["clipped_share", "to_dn", "to_unit"],
            "sr_models.super_resolver": ["SuperResolver", "check_weights", "fingerprint", "load"],
            "sr_models.weight_files": ["weights_file"],
        },
    )

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
