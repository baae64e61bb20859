"""Clips of frames as images: maps of each frame, of models that take (B, T, C, H, W)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClipStrip:
    """Lays the frames of a clip side by side in one image, and a map of that image apart into frames again.

    Everything here explains images (B, C, H, W). A clip is one where its frames stand in a row: the model is given the
    clip back, and where each of its tokens lies on the strip is traced as on any image. TimeSformer, VideoMAE and
    ViViT can be followed; a model whose tokens read several frames that overlap is refused by name. The default method
    averages over neighbouring patches once, at the seam of two frames over patches of both; ``combine="sum"`` and the
    other methods do not.

    Args:
        frames: T, frames of a clip.
        tubelet: how many frames one token covers: 1 for TimeSformer, ``config.tubelet_size`` for VideoMAE and ViViT (2
            as a rule). These frames share one place of the strip, as further channels; a figure shows the first.

    Raises:
        ValueError: for numbers that do not fit.

    Example:
        >>> import torch
        >>> strip = ClipStrip(frames=8, tubelet=2)
        >>> clips = torch.rand(1, 8, 3, 32, 32)
        >>> images = strip.images(clips)
        >>> images.shape, torch.equal(strip.clips(images), clips)
        (torch.Size([1, 6, 32, 128]), True)
        >>> strip.maps(torch.rand(1, 4, 16)).shape
        torch.Size([1, 4, 4, 4])
        >>> # explanation = attngrad.explain(
        >>> #     model, strip.images(clips), forward=lambda images: model(pixel_values=strip.clips(images)))
        >>> # strip.maps(explanation.heatmap)  # (B, 4, h, w): one map of every two frames
    """

    frames: int
    tubelet: int = 1

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("tubelet", self.tubelet)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}; expected an int of at least 1")
        if self.frames % self.tubelet:
            raise ValueError(
                f"tubelet: got {self.tubelet}; expected a number of frames that divides frames={self.frames}"
            )

    @property
    def places(self) -> int:
        """How many maps a clip has, T / tubelet."""
        return self.frames // self.tubelet

    def images(self, clips: Tensor) -> Tensor:
        """Clips (B, T, C, H, W) as images (B, tubelet·C, H, T/tubelet·W).

        Raises:
            ValueError: for another shape.
        """
        if clips.dim() != 5 or clips.shape[1] != self.frames:
            raise ValueError(
                f"clips: got {tuple(clips.shape)}; expected (B, {self.frames}, C, H, W). Where time is behind the "
                "channels, clips.transpose(1, 2)"
            )
        by_place: Tensor = clips.unflatten(1, (self.places, self.tubelet)).flatten(2, 3)  # (B, places, tubelet·C, H, W)
        return by_place.permute(0, 2, 3, 1, 4).flatten(3)

    def clips(self, images: Tensor) -> Tensor:
        """The clips again, (B, T, C, H, W), as the model takes them.

        Raises:
            ValueError: for images that are no such strips.
        """
        if images.dim() != 4 or images.shape[1] % self.tubelet or images.shape[3] % self.places:
            raise ValueError(
                f"images: got {tuple(images.shape)}; expected strips (B, {self.tubelet}·C, H, {self.places}·W), as "
                "images() gives them"
            )
        by_place: Tensor = images.unflatten(3, (self.places, -1)).permute(0, 3, 1, 2, 4)  # (B, places, tubelet·C, H, W)
        clips: Tensor = by_place.unflatten(2, (self.tubelet, -1)).flatten(1, 2)
        return clips

    def maps(self, strips: Tensor) -> Tensor:
        """Maps of strips (…, h, places·w) apart: (…, places, h, w), in the order of time.

        Raises:
            ValueError: for a map whose columns the frames do not share evenly.
        """
        if strips.dim() < 2 or strips.shape[-1] % self.places:
            raise ValueError(
                f"maps: got {tuple(strips.shape)}; expected (…, h, columns) with columns for each of {self.places} "
                "frames"
            )
        by_place: Tensor = strips.unflatten(-1, (self.places, -1)).movedim(-2, -3)
        return by_place
