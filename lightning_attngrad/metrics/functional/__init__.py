"""Pure functions from maps, attention and rewrites to numbers. Need torch only, but for those with SSIM."""

from lightning_attngrad.metrics.functional.drift import (
    DRIFT_MEASURES,
    centroid_shift,
    drift_ratio,
    jensen_shannon,
    map_drift,
    spearman_drift,
)
from lightning_attngrad.metrics.functional.faithfulness import (
    Faithfulness,
    area_under_curve,
    faithfulness_curves,
    replaced_shares,
)
from lightning_attngrad.metrics.functional.heads import HeadStatistics, head_statistics
from lightning_attngrad.metrics.functional.localisation import (
    energy_in_mask,
    mask_average_precision,
    mask_on_grid,
    pointing_game,
)
from lightning_attngrad.metrics.functional.maps import (
    border_mass,
    corner_mass,
    map_centroid,
    map_density,
    map_entropy,
    map_statistics,
    times_uniform_share,
    top_decile_mass,
)
from lightning_attngrad.metrics.functional.rewrite import (
    ImageQuality,
    LogRatio,
    area_under_success,
    distance_quantiles,
    image_quality,
    median_matrix,
    paired_log_ratio,
    robust_accuracy,
    share_surviving,
    success_at,
)
from lightning_attngrad.metrics.functional.saco import GroupDrops, group_drops, saco
from lightning_attngrad.metrics.functional.sanity import redrawn_state, sanity_check
from lightning_attngrad.metrics.functional.sensitivity import (
    class_sensitivity,
    sanity_correlation,
    two_object_share,
)
from lightning_attngrad.metrics.functional.similarity import map_cosine, map_spearman, map_ssim, top_share_iou

__all__ = [
    "DRIFT_MEASURES",
    "Faithfulness",
    "GroupDrops",
    "HeadStatistics",
    "ImageQuality",
    "LogRatio",
    "area_under_curve",
    "area_under_success",
    "border_mass",
    "centroid_shift",
    "class_sensitivity",
    "corner_mass",
    "distance_quantiles",
    "drift_ratio",
    "energy_in_mask",
    "faithfulness_curves",
    "group_drops",
    "head_statistics",
    "image_quality",
    "jensen_shannon",
    "map_centroid",
    "map_cosine",
    "map_density",
    "map_drift",
    "map_entropy",
    "map_spearman",
    "map_ssim",
    "map_statistics",
    "mask_average_precision",
    "mask_on_grid",
    "median_matrix",
    "paired_log_ratio",
    "pointing_game",
    "redrawn_state",
    "replaced_shares",
    "robust_accuracy",
    "saco",
    "sanity_check",
    "sanity_correlation",
    "share_surviving",
    "spearman_drift",
    "success_at",
    "times_uniform_share",
    "top_decile_mass",
    "top_share_iou",
    "two_object_share",
]
