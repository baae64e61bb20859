"""Pure functions from maps, attention and rewrites to numbers. Need torch only, but for `image_quality`."""

from lightning_attngrad.metrics.functional.faithfulness import (
    Faithfulness,
    area_under_curve,
    faithfulness_curves,
)
from lightning_attngrad.metrics.functional.heads import HeadStatistics, head_statistics
from lightning_attngrad.metrics.functional.maps import (
    border_mass,
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
from lightning_attngrad.metrics.functional.similarity import map_cosine, map_spearman

__all__ = [
    "Faithfulness",
    "HeadStatistics",
    "ImageQuality",
    "LogRatio",
    "area_under_curve",
    "area_under_success",
    "border_mass",
    "distance_quantiles",
    "faithfulness_curves",
    "head_statistics",
    "image_quality",
    "map_cosine",
    "map_density",
    "map_entropy",
    "map_spearman",
    "map_statistics",
    "median_matrix",
    "paired_log_ratio",
    "robust_accuracy",
    "share_surviving",
    "success_at",
    "times_uniform_share",
    "top_decile_mass",
]
