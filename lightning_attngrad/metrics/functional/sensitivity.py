"""Whether a map tells one class from another, and a trained model from one that is not."""

from __future__ import annotations

from torch import Tensor

from lightning_attngrad.metrics.functional.localisation import positive_mass
from lightning_attngrad.metrics.functional.similarity import map_spearman


def class_sensitivity(predicted_maps: Tensor, runner_up_maps: Tensor) -> Tensor:
    """1 − rank correlation between the maps of the predicted class and of the runner-up, on the same image.

    A map that hardly depends on the class, however well it lies on the object, has a value near 0.

    Args:
        predicted_maps: (B, h, w), maps of the class with the largest logit.
        runner_up_maps: (B, h, w), maps of the class with the second largest.

    Returns:
        (B,), between 0 (the same order) and 2 (the reverse); NaN where one of the two maps is constant or not finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> class_sensitivity(maps, maps**2), class_sensitivity(maps, -maps)
        (tensor([0.]), tensor([2.]))
    """
    return 1 - map_spearman(predicted_maps, runner_up_maps)


def two_object_share(heatmap: Tensor, mask_right: Tensor, mask_wrong: Tensor) -> Tensor:
    """Of what a map puts on two objects in one image, the share on the object of the class that it explains.

    ``r / (r + w)`` with the positive part of the map inside either mask; patches count by the part that is covered.
    A map that lies on both alike, whatever the class, has one half on average over both classes.

    Args:
        heatmap: (B, h, w), maps of the class of the right object.
        mask_right: (B, H, W), bool or in [0, 1], of any size.
        mask_wrong: (B, H, W), of the object of the other class.

    Returns:
        (B,), between 0 and 1; NaN where the map is not finite or has no positive patch on either object.

    Raises:
        ValueError: for shapes that do not fit, or values of a mask outside [0, 1].

    Example:
        >>> import torch
        >>> left, right = torch.tensor([[[True, False, False]]]), torch.tensor([[[False, False, True]]])
        >>> two_object_share(torch.tensor([[[3.0, 5.0, 1.0]]]), left, right)
        tensor([0.7500])
    """
    on_right, on_wrong = positive_mass(heatmap, mask_right), positive_mass(heatmap, mask_wrong)
    return on_right / (on_right + on_wrong)


def sanity_correlation(maps: Tensor, maps_of_redrawn: Tensor) -> Tensor:
    """Rank correlation between maps of a model and of one whose weights are redrawn (Adebayo et al., arXiv 1810.03292).

    **Near 0 is good**: a map that stays as it is when the weights are gone shows the image and not what was learnt.

    Args:
        maps: (B, h, w), maps of the trained model.
        maps_of_redrawn: (B, h, w), maps of the same images and classes with :func:`~.redrawn_state`.

    Returns:
        (B,), between −1 and 1; NaN where one of the two maps is constant or not finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> sanity_correlation(maps, maps.flip(-1))
        tensor([0.6000])
    """
    return map_spearman(maps, maps_of_redrawn)
