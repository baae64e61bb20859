"""Monitors written in YAML, as LightningCLI reads them: all that ``explain`` accepts, and what it prints again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

import lightning_attngrad as attngrad
from tests.callbacks.small_runs import Classifier, Squares, fit, loader
from tests.probe_options import with_probe

MONITORS = (
    "AttentionMapMonitor",
    "AttentionDriftMonitor",
    "FaithfulnessMonitor",
    "RewriteRobustnessMonitor",
    "CheckpointAudit",
)


class Module(Classifier):
    """Its network is its own."""

    def __init__(self) -> None:
        super().__init__()


def mean_of_output(output: torch.Tensor) -> torch.Tensor:
    return output.mean(dim=1)


def parsed(tmp_path: Path, *entries: dict[str, Any]) -> list[Any]:
    """The callbacks that LightningCLI makes of these entries."""
    config = tmp_path / "config.yaml"
    trainer = {"accelerator": "cpu", "logger": False, "callbacks": list(entries)}
    config.write_text(yaml.safe_dump({"trainer": trainer}))
    cli = LightningCLI(Module, run=False, args=["--config", str(config)], save_config_callback=None)
    return [
        callback for callback in cli.trainer.callbacks if type(callback).__module__.startswith("lightning_attngrad")
    ]


def entry(kind: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_attngrad.{kind}", "init_args": options}


QUESTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "option of a method": ({"method_options": {"combine": "product"}}, {"method_options": {"combine": "product"}}),
    "several corrections": (
        {"method": "gradient_guided", "method_options": {"correction": ["positive", "negative"]}},
        {"method": "gradient_guided", "method_options": {"correction": ["positive", "negative"]}},
    ),
    "contrast": (
        {"objective": {"class_path": "lightning_attngrad.Contrast", "init_args": {"against": 1}}},
        {"objective": attngrad.Contrast(1)},
    ),
    "mixture": (
        {"objective": {"class_path": "lightning_attngrad.Mixture", "init_args": {"weights": [0.5, 0.5, 0.0]}}},
        {"objective": attngrad.Mixture([0.5, 0.5, 0.0])},
    ),
    "region": (
        {
            "method": "gradient_guided",
            "objective": {"class_path": "lightning_attngrad.Region"},
            "probe": {"num_images": 3, "mask": "tests.callbacks.test_from_yaml:left_half"},
        },
        {
            "method": "gradient_guided",
            "objective": attngrad.Region(),
            "mask": "tests.callbacks.test_from_yaml:left_half",
        },
    ),
    "start": ({"objective": "start"}, {"objective": "start"}),
    "a function": (
        {"objective": "tests.callbacks.test_from_yaml.mean_of_output"},
        {"objective": mean_of_output},
    ),
}


def left_half(batch: Any) -> torch.Tensor:
    mask = torch.zeros(len(batch[0]), 32, 32)
    mask[:, :, :16] = 1
    return mask


@pytest.mark.parametrize("kind", ["AttentionMapMonitor", "AttentionDriftMonitor"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_whatever_explain_accepts_gives_the_numbers_of_the_same_in_python(
    tmp_path: Path, kind: str, question: str
) -> None:
    written, meant = QUESTIONS[question]
    common = {"every_n_epochs": 1, "on_error": "raise"}
    probe = {"num_images": 3} | dict(written.get("probe", {}))
    (from_yaml,) = parsed(tmp_path, entry(kind, **{**common, **written, "probe": probe}))
    in_python = getattr(attngrad, kind)(**with_probe({**common, "num_images": 3, **meant}))
    assert from_yaml.question.plain() == in_python.question.plain()
    for monitor in (from_yaml, in_python):
        fit(monitor, max_epochs=1)
    costs = {"seconds", "overhead"}
    one, other = ({n: v for n, v in m.scalars.items() if n not in costs} for m in (from_yaml, in_python))
    assert one == pytest.approx(other, nan_ok=True)
    if question == "several corrections":
        assert any(name.endswith("/negative") for name in one)


PLACES: dict[str, tuple[dict[str, Any], Any]] = {
    "PixelClass": ({"target": 3, "where": [40, 60]}, attngrad.PixelClass(3, (40, 60))),
    "PixelValue": ({}, attngrad.PixelValue()),
    "QueryClass": ({"target": 2, "query": 7}, attngrad.QueryClass(2, query=7)),
    "QueryBox": ({"coordinate": 1, "target": 2}, attngrad.QueryBox(1, target=2)),
}


@pytest.mark.parametrize("kind", ["AttentionMapMonitor", "AttentionDriftMonitor"])
@pytest.mark.parametrize("objective", PLACES)
def test_places_and_queries_are_asked_for(tmp_path: Path, kind: str, objective: str) -> None:
    options, meant = PLACES[objective]
    (monitor,) = parsed(tmp_path, entry(kind, objective=entry(objective, **options)))
    assert monitor.question == getattr(attngrad, kind)(objective=meant).question


def test_a_class_over_the_masks_of_the_images(tmp_path: Path) -> None:
    inside = entry("PixelClass", target=3, where="mask")
    probe = {"mask": "tests.callbacks.test_from_yaml:left_half"}
    (monitor,) = parsed(tmp_path, entry("AttentionMapMonitor", objective=inside, probe=probe))
    assert monitor.question.lacks == "masks"
    with pytest.raises(Exception, match=r"give probe=ProbeImages\(mask=…\)"):
        parsed(tmp_path, entry("AttentionMapMonitor", objective=inside))


def test_equal_settings_in_yaml_share_one_probe(tmp_path: Path) -> None:
    probe = {"num_images": 3, "image_key": [0], "mean": [0.0], "std": [1.0]}
    callbacks = parsed(tmp_path, *(entry(kind, probe=probe) for kind in MONITORS))
    assert [type(callback).__name__ for callback in callbacks] == list(MONITORS)
    assert len({callback.probe for callback in callbacks}) == 1
    fit(*callbacks[:2], max_epochs=1)
    assert callbacks[0].shared is callbacks[1].shared


def test_what_is_printed_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [
        entry(kind, name=f"number{index}", probe={"num_images": 5, "image_key": "a.b", "class_names": ["x", "y", "z"]})
        for index, kind in enumerate(MONITORS)
    ]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"accelerator": "cpu", "logger": False, "callbacks": written}}))
    with pytest.raises(SystemExit):
        LightningCLI(Module, run=False, args=["--config", str(config), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    first, again = parsed(tmp_path, *written), parsed(tmp_path, *printed)
    assert [callback.probe for callback in first] == [callback.probe for callback in again]
    assert [callback.name for callback in again] == [f"number{index}" for index in range(len(MONITORS))]


def test_what_is_no_option_of_the_method_is_said_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"correction is an option of method='gradient_guided'"):
        parsed(tmp_path, entry("AttentionMapMonitor", method_options={"correction": "negative"}))


def test_a_region_takes_the_masks_of_the_images() -> None:
    with pytest.raises(
        ValueError, match=r"Region\(\) takes its masks from the images; give probe=ProbeImages\(mask=…\)"
    ):
        attngrad.AttentionMapMonitor(method="gradient_guided", objective=attngrad.Region())
    images = attngrad.ProbeImages(num_images=3, mask=left_half)
    monitor = attngrad.AttentionMapMonitor(
        probe=images, method="gradient_guided", objective=attngrad.Region(), on_error="raise"
    )
    run = fit(monitor, val=loader(Squares(9, seed=1)), max_epochs=1)
    chosen = torch.stack([image for image, _ in Squares(9, seed=1)])[monitor.probe_set.indices]
    expected = attngrad.explain(
        run.module,
        chosen,
        monitor.shared.classes,
        method="gradient_guided",
        objective=attngrad.Region(left_half([chosen])),
    )
    from lightning_attngrad.metrics.functional import map_statistics

    entropy = map_statistics(expected.heatmap)["entropy"]
    assert monitor.scalars["entropy"] == pytest.approx(entropy, rel=1e-5)
