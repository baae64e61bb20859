"""A monitor that compares what the package finds with what a module's own step says of one sample alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.explain import Question
from lightning_attngrad.measure.faithfulness import curves_of
from lightning_attngrad.measure.maps import explain_images
from lightning_attngrad.metrics.functional import faithfulness_curves
from lightning_attngrad.rewrite import rewrite
from tests.integration.input_kinds import Kind

NUM_IMAGES = 3
METHOD = "gradient_guided"


class Reference(attngrad.Monitor):
    """Finds numbers again in another way: one sample at a time, run as the module's own step runs it."""

    def __init__(self, kind: Kind, *, thorough: bool = False) -> None:
        probe = attngrad.ProbeImages(num_images=NUM_IMAGES, **kind.options, **kind.pixels)
        super().__init__(name="reference", probe=probe, on_error="raise")
        self.kind, self.thorough = kind, thorough
        self.labels: list[str] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.module = pl_module
        self.shared._sharing.at_once = 2  # so that parts begin at another sample than the first

    def step_of(self, index: int, images: Tensor) -> Any:
        """The output of the module's own step for changed images of one item."""
        return self.module.run(self.kind.with_images(self.kind.batch([index] * len(images)), images))

    def evaluate(self, evaluation: attngrad.Evaluation) -> attngrad.Findings:
        indices = self.probe_set.indices or list(range(NUM_IMAGES))
        scores, classes = evaluation.scores(), evaluation.classes()
        maps = explain_images(evaluation, Question(METHOD))
        for place, index in enumerate(indices):
            image, target = evaluation.images[place : place + 1], classes[place : place + 1]

            def forward(images: Tensor, index: int = index) -> Any:
                return self.step_of(index, images)

            with torch.no_grad():
                torch.testing.assert_close(scores[place : place + 1], forward(image), rtol=1e-4, atol=1e-5)
            own = attngrad.explain(evaluation.model, image, target, method=METHOD, forward=forward)
            torch.testing.assert_close(maps.heatmap[place], own.heatmap[0], rtol=1e-3, atol=1e-6)
            if self.thorough:
                self.compare_more(evaluation, maps, place, forward)
        self.labels.append(evaluation.label)
        return attngrad.Findings({"seen": float(len(self.labels))})

    def compare_more(self, evaluation: attngrad.Evaluation, maps: Any, place: int, forward: Any) -> None:
        """What runs more images than there are samples, or others than theirs."""
        image, target = evaluation.images[place : place + 1], evaluation.classes()[place : place + 1]
        jittered = explain_images(evaluation, Question(METHOD), evaluation.images + 0.1)
        own = attngrad.explain(evaluation.model, image + 0.1, target, method=METHOD, forward=forward)
        torch.testing.assert_close(jittered.heatmap[place], own.heatmap[0], rtol=1e-3, atol=1e-6)
        curves = curves_of(evaluation, maps, 3, "mean")
        heatmap = maps.heatmap[place : place + 1]
        curve = faithfulness_curves(evaluation.model, image, heatmap, target, steps=3, forward=forward)
        torch.testing.assert_close(curves.morf[place], curve.morf[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(curves.lerf[place], curve.lerf[0], rtol=1e-4, atol=1e-6)
        rows = torch.tensor([2, place])
        options: dict[str, Any] = {"steps": 2, **self.kind.pixels}
        both = rewrite(evaluation.model, evaluation.images[rows], "all", forward=evaluation.forward_of(rows), **options)
        alone = rewrite(evaluation.model, image, "all", forward=forward, **options)
        own_rows = both.index == 1
        torch.testing.assert_close(both.logits_before[own_rows], alone.logits_before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both.distance[own_rows], alone.distance, rtol=1e-2, atol=1e-4)
