"""Schema of how well SR models restore pixels."""

import pyarrow as pa

from infra.tables.columns import optional, required
from infra.tables.predictions import PATCH_ID, SR

_OPENSR = "Aybar et al. 2024, doi:10.1109/LGRS.2024.3401394 (opensr-test)"
_SHIFT = "Lucas and Kanade 1981, after reduction to the input's grid"

SR_QUALITY = pa.schema(
    [
        PATCH_ID,
        SR,
        required("config", pa.string(), "Config of the SR pixels", "tables/configs"),
        optional(
            "psnr_db",
            pa.float32(),
            "Wald's protocol: PSNR, dB, peak 1 after the stretch, at most 100",
            "10 log10(1 / MSE), protocol of Wald et al. 1997",
            "dB",
        ),
        optional(
            "ssim",
            pa.float32(),
            "Wald's protocol: structural similarity",
            "Wang et al. 2004, doi:10.1109/TIP.2003.819861: window 11, sigma 1.5",
            "1",
        ),
        optional(
            "sam_deg",
            pa.float32(),
            "Wald's protocol: mean spectral angle, degrees",
            "Kruse et al. 1993, doi:10.1016/0034-4257(93)90013-N",
            "degree",
        ),
        optional("ergas", pa.float32(), "Wald's protocol: ERGAS, ratio 1/4", "Wald 2000", "1"),
        optional(
            "improvement_share",
            pa.float32(),
            "Wald's protocol: share of pixels with detail near to the original",
            _OPENSR,
            "share",
        ),
        optional(
            "omission_share",
            pa.float32(),
            "Wald's protocol: share of pixels with detail near to the input",
            _OPENSR,
            "share",
        ),
        optional(
            "hallucination_share",
            pa.float32(),
            "Wald's protocol: share of pixels with detail far from both",
            _OPENSR,
            "share",
        ),
        optional(
            "reflectance_mae",
            pa.float32(),
            "Consistency: mean absolute error of the reduced output, reflectance",
            "mean over bands and pixels of |mean over 4 x 4 SR pixels - input|",
            "reflectance",
        ),
        optional(
            "consistency_sam_deg",
            pa.float32(),
            "Consistency: mean spectral angle, degrees",
            "Kruse et al. 1993, of the reduced output and the input",
            "degree",
        ),
        optional(
            "shift_row_px", pa.float32(), "Consistency: how far the output lies too low, 10 m pixels", _SHIFT, "px 10 m"
        ),
        optional(
            "shift_col_px",
            pa.float32(),
            "Consistency: how far it lies too far to the right, 10 m pixels",
            _SHIFT,
            "px 10 m",
        ),
        required(
            "clipped_share",
            pa.float32(),
            "Share of input pixels with a band above sr_input_max_dn",
            "the input's DN",
            "share",
        ),
    ]
)
