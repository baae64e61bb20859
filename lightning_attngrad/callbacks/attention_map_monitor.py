"""AttentionMapMonitor: figures and numbers of where a Vision Transformer looks while it is being fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from lightning_attngrad.callbacks.maps_monitor import MapsMonitor, objective_and_images
from lightning_attngrad.explain import Objective, Similarity, within_area
from lightning_attngrad.measure.kept import kept_maps
from lightning_attngrad.measure.map_figures import Filmed, Frame, caption_of, map_figures
from lightning_attngrad.measure.map_scalars import completeness_scalars, head_scalars, mask_scalars
from lightning_attngrad.measure.maps import explain_best_classes, explain_images, with_panels
from lightning_attngrad.measure.questions import check_question
from lightning_attngrad.metrics.functional import map_statistics, times_uniform_share
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.reporting.style import PLAIN, FigureStyle


class AttentionMapMonitor(MapsMonitor):
    """Shows where a Vision Transformer looks, before, during and after fine-tuning.

    Every so often it explains a frozen, class-balanced set of validation images and logs, to every logger,

    - ``attngrad/maps/overlay``: image, map, predicted and true class, of the first eight images;
    - ``attngrad/maps/layers``: what each layer adds to the map (for methods that have such parts);
    - ``attngrad/maps/classes``: the most probable classes side by side on one scale;
    - ``attngrad/maps/film``: one image through training, the starting weights first;
    - scalars ``attngrad/maps/entropy``, ``border_mass``, ``corner_mass``, ``top_decile_mass`` (means over the
      images; one whose map is zero everywhere counts in none),
      ``completeness_error`` (of methods of relevance: how much of the output the map fails to account for),
      ``head_entropy/<layer>`` and ``head_distance/<layer>`` (means over heads and images; of a model without attention
      there are none), and ``seconds``.

    The map of an image is that of its true class, or, where the data has none, of the class predicted at the first
    evaluation: a class that never changes, so that the numbers of different epochs compare. Colours show each patch's
    share of its map in multiples of an equal share, on one scale for all epochs.

    With ``ProbeImages(mask=…)``, which says where the object is, also ``mass_in_mask``, ``mass_outside_mask``,
    ``pointing`` (whether the largest patch lies on the object) and ``mask_average_precision``, and the overlay draws
    its outline. An image whose mask is empty or full counts in none of them; where all are, none of them is logged.

    Where several corrections are asked for, the figures and the plain names are of the first; numbers of the others
    have the correction behind the name, as in ``entropy/negative``, and a figure ``corrections`` shows all side by
    side.

    Args:
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        every_n_epochs: evaluate in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: evaluate after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: evaluations that are due are
            skipped rather than take more, and never made with less care. None is no limit.
        scalars: ``main`` logs the numbers that the summary at the end of a fit shows, ``all`` every one; see
            :class:`Monitor`.
        figures: names of those that are drawn; None draws all, an empty list none.
        method: any that :func:`lightning_attngrad.explain` knows. None is its default, or what stands in for that where
            the model does not permit it; one line then says so.
        objective: ``logit``, ``margin``, :class:`~lightning_attngrad.Contrast`, :class:`~lightning_attngrad.Mixture`,
            :class:`~lightning_attngrad.Region` (without a mask it takes that of the images); a place of segmentation
            or depth, :class:`~lightning_attngrad.PixelClass`, :class:`~lightning_attngrad.PixelValue` (with
            ``where="mask"`` over the masks of the images); a query of a detector,
            :class:`~lightning_attngrad.QueryClass`, :class:`~lightning_attngrad.QueryBox`;
            :class:`~lightning_attngrad.Similarity`, short for ``ProbeImages(task=…)`` of the same; ``start``, what
            stays of the embedding that each image has at the first evaluation, which is kept in checkpoints; or a
            function from the model's output to one number an image.
        method_options: of the method, as ``explain`` takes them: ``{"correction": ["positive", "negative"]}`` for
            ``gradient_guided``, ``{"combine": "product"}`` for ``guided_relevance``.
        memory_budget: bytes for the temporaries of a block of attention rows; None follows the device.
        top_k: how many of the most probable classes stand side by side.
        classes: further classes that stand beside them.
        report: as for :class:`Monitor`: write the HTML report of the run when it ends.
        film_image: which image the film is of, by its place in the overlay, from 0.
        name: of this monitor, in ``attngrad/<name>/…``.
        style: how its figures look, see :class:`~lightning_attngrad.FigureStyle`.
        on_error: ``log`` reports an error inside an evaluation once and switches this monitor off; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.AttentionMapMonitor(every_n_epochs=5, num_images=12)
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    main_scalars: Mapping[str, str] = MappingProxyType(
        {
            "entropy": "0 = one patch, 1 = spread evenly",
            "border_mass": "share of the map on the border of the image",
            "corner_mass": "share of the map in the corners",
            "top_decile_mass": "share of the map on a tenth of the patches",
            "mass_in_mask": "share of the map on the object",
        }
    )

    drawable = ("overlay", "layers", "classes", "film", "corrections")

    def __init__(
        self,
        *,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        scalars: Literal["main", "all"] = "main",
        figures: Sequence[str] | None = None,
        method: str | None = None,
        objective: Literal["logit", "margin", "start"] | Objective | Similarity | Callable[[Any], Tensor] = "logit",
        method_options: dict[str, Any] | None = None,
        memory_budget: int | None = None,
        top_k: int = 3,
        classes: Sequence[int] = (),
        report: bool = False,
        film_image: int = 0,
        name: str = "maps",
        style: FigureStyle = PLAIN,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        objective, probe, num_images = objective_and_images(objective, probe, num_images)
        super().__init__(
            name=name,
            probe=probe,
            num_images=num_images,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            scalars=scalars,
            figures=figures,
            report=report,
            style=style,
            on_error=on_error,
        )
        self.question = check_question(method, objective, method_options, has_masks=self.probe.mask is not None)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k: got {top_k!r}; expected a positive int")
        if not isinstance(classes, Sequence) or any(
            isinstance(index, bool) or not isinstance(index, int) or index < 0 for index in classes
        ):
            raise ValueError(f"classes: got {classes!r}; expected a list of class numbers from 0")
        most = self.probe.num_images
        if isinstance(film_image, bool) or not isinstance(film_image, int) or not 0 <= film_image < most:
            raise ValueError(f"film_image: got {film_image!r}; expected the place of one of the {most} images, from 0")
        self.top_k = top_k
        self.film_image = film_image
        self.classes = tuple(classes)
        self.memory_budget = memory_budget
        self.film: list[Frame] = []
        self._filmed: Filmed | None = None

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """Explain the images, and the most probable classes of the first few."""
        question = self.asked(evaluation)
        maps = explain_images(evaluation, question, memory_budget=self.memory_budget)
        scalars = with_panels(maps, lambda panel: map_statistics(panel.heatmap))
        scalars |= completeness_scalars(maps) | head_scalars(evaluation)
        if (masks := evaluation.masks) is not None:
            covered = within_area(masks, maps.area)
            scalars |= with_panels(maps, lambda panel: mask_scalars(panel.heatmap, covered))
        place = min(self.film_image, len(maps.heatmap) - 1)  # a data set may have fewer images than were asked for
        frame = Frame(
            evaluation.label,
            times_uniform_share(maps.heatmap[place : place + 1])[0].clone(),
            caption_of(evaluation, question, maps, place),
        )
        film = [*self.film, frame]
        if evaluation.in_history:
            self.film = film
            self._filmed = Filmed.of(evaluation, question, maps, place)
        beside = None
        if self.is_drawn("classes"):
            beside = explain_best_classes(
                evaluation, question, maps, self.top_k, self.classes, memory_budget=self.memory_budget
            )
        return Findings(
            scalars,
            map_figures(evaluation, question, maps, film, beside, film_image=place, style=self.style),
            lambda: kept_maps(evaluation, question, maps, beside),
        )

    def save_film(self, path: str | Path, *, seconds: float = 0.6) -> Path:
        """Write the film so far as a GIF, or as an MP4 where ``imageio[ffmpeg]`` is installed.

        Args:
            path: that ends with ``.gif`` or ``.mp4``.
            seconds: that a frame stands; the last one stands longer.

        Returns:
            The path.

        Raises:
            RuntimeError: before the first evaluation of a fit, also of one that is resumed.
            ValueError: for a name that ends otherwise.
            ImportError: for an MP4, where what writes it is not installed.
        """
        if self._filmed is None:
            raise RuntimeError("save_film: nothing has been evaluated in this process yet; call it after trainer.fit")
        return self._filmed.save(path, self.film, seconds=seconds, style=self.style)

    def knows_enough(self) -> bool:
        """Not without a map: heads have an entropy also where a zero-initialised classifier gives none."""
        return math.isfinite(self.scalars.get("entropy", math.nan))

    def history(self) -> dict[str, Any]:
        """The film strip so far."""
        film = [frame.plain() for frame in self.film]
        return {**super().history(), "film": film, "film_image": self.film_image}

    def recall(self, history: Mapping[str, Any]) -> None:
        """The film strip goes on where it was."""
        super().recall(history)
        # The film of another image does not go on as that of this one.
        same = history.get("film_image", 0) == self.film_image
        self.film = [Frame.of(frame) for frame in history["film"]] if same else []

    def forget(self) -> None:
        """Drop the film of another run."""
        super().forget()
        self.film, self._filmed = [], None

    def charts(self) -> Charts:
        """How spread out the maps are and where they lie, what they account for, and the heads of each layer."""
        return {
            # Without masks the last three are not logged, and a chart of their own would be empty.
            "how spread out, and where": (
                *("entropy", "border_mass", "corner_mass", "top_decile_mass"),
                *("mass_in_mask", "pointing", "mask_average_precision"),
            ),
            **({"completeness error of the maps": ("completeness_error",)} if self.question.is_of_relevance else {}),
            "entropy of the heads, by layer": ("head_entropy/",),
            "distance of the heads, by layer": ("head_distance/",),
        }
