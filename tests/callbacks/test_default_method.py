"""Monitors without a method: by the default, or by what the model permits; said once, kept in the state, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_attngrad as attngrad
from tests.callbacks.rewriting_runs import WatchedAudit, records, saving, state_of
from tests.callbacks.small_runs import (
    SCALARS,
    Classifier,
    Run,
    WatchedMonitor,
    captured_figures,
    events,
    fit,
    names_of,
    scalar_points,
    tensorboard,
    words,
)
from tests.other_models import ViTBesideColours, tiny_resnet
from tests.probe_options import with_probe

GIVEN: dict[str, Any] = {"num_images": 3, "mean": 0.0, "std": 1.0, "scalars": "all", "on_error": "raise"}
KINDS: dict[str, Callable[..., Any]] = {
    "maps": lambda **options: attngrad.AttentionMapMonitor(**with_probe({**GIVEN, **options})),
    "drift": lambda **options: attngrad.AttentionDriftMonitor(**with_probe({**GIVEN, **options})),
    "faithfulness": lambda **options: attngrad.FaithfulnessMonitor(
        **with_probe({**GIVEN, "steps": 2, "every_n_epochs": 1, **options})
    ),
}
STANDS_IN = "stands in for the default 'guided_relevance'"


def beside_colours() -> Classifier:
    """No embedding at which relevance could be measured: attention is followed by its gradient."""
    return Classifier(ViTBesideColours())


def lines(run: Run) -> list[str]:
    return [message for message in run.messages if STANDS_IN in message]


def everyone() -> list[Any]:
    rewriting = {**GIVEN, "steps": 2, "long_every": None}
    return [make() for make in KINDS.values()] + [attngrad.RewriteRobustnessMonitor(**with_probe(rewriting))]


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> tuple[Run, Path]:
    """All monitors and an audit, one epoch, everything drawn."""
    folder = tmp_path_factory.mktemp("standing_in")
    callbacks = [*everyone(), WatchedAudit(), saving(folder / "saved")]
    options = {"logger": tensorboard(folder), "default_root_dir": folder, "enable_checkpointing": True}
    return fit(*callbacks, module=beside_colours, max_epochs=1, **options), folder


def test_one_line_for_all_monitors_of_a_run_says_what_stands_in_and_why(written: tuple[Run, Path]) -> None:
    (line,) = lines(written[0])
    for part in ("Classifier: maps are by 'gradient_guided'", "method='gradient_guided' asks for it", "embedding"):
        assert part in line
    assert len(written[0].complaints) == 0, "nobody was switched off"


def test_every_scalar_is_there_but_what_only_relevance_has(written: tuple[Run, Path]) -> None:
    accumulator = events(written[1])
    logged = {tag.removeprefix("attngrad/maps/") for tag in accumulator.Tags()["scalars"] if "/maps/" in tag}
    heads = {f"head_{kind}/net.encoder.layers.{n}.self_attn" for kind in ("entropy", "distance") for n in (0, 1)}
    plain = {name for name in SCALARS if not name.startswith("head_")}
    assert logged == plain - {"completeness_error"} | heads
    for name in ("maps/entropy", "drift/spearman", "faithfulness/srg", "rewrite/map_shift"):
        values = [value for _, value in scalar_points(accumulator, f"attngrad/{name}")]
        assert len(values) == 2
        assert all(torch.tensor(values).isfinite())


def test_the_numbers_are_those_of_the_method_that_stands_in() -> None:
    standing_in, named = WatchedMonitor(), WatchedMonitor(method="gradient_guided")
    runs = [fit(monitor, module=beside_colours, max_epochs=1) for monitor in (standing_in, named)]
    for (_, one), (_, other) in zip(standing_in.evaluations, named.evaluations, strict=True):
        assert one.scalars == other.scalars
    assert [len(lines(run)) for run in runs] == [1, 0]
    assert runs[0].losses == runs[1].losses == fit(module=beside_colours, max_epochs=1).losses


def test_the_record_of_an_audit_names_the_method(written: tuple[Run, Path]) -> None:
    record = records(written[1] / "saved")["step=3"]
    assert record["settings"]["method"] == "gradient_guided"
    assert "maps/entropy" in record["figures"]
    assert "maps/completeness_error" not in record["figures"]
    assert state_of(written[1] / "saved" / "step=3.ckpt")["record"]["settings"]["method"] == "gradient_guided"


def test_figures_are_titled_by_the_method_that_made_them(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    fit(*everyone(), module=beside_colours, max_epochs=1)
    titles = {
        name: " ".join(words(figure)[:4])  # on a narrow page a head goes on in a second line
        for _, figures in drawn
        for name, figure in figures.items()
        if name.split("/")[1] != "rewrite"
    }
    assert {"overlay", "film", "classes", "curves"} <= names_of(list(titles))
    assert not any("guided relevance" in title for title in titles.values())
    for name in ("maps/overlay", "maps/film", "drift/curves", "faithfulness/curves"):
        assert "gradient guided" in titles[f"attngrad/{name}"]


def test_a_model_that_permits_the_default_has_its_completeness_error_and_no_line(tmp_path: Path) -> None:
    audit, monitor = WatchedAudit(), WatchedMonitor(num_images=3)
    run = fit(monitor, audit, saving(tmp_path), max_epochs=1, enable_checkpointing=True, logger=tensorboard(tmp_path))
    assert lines(run) == []
    evaluation, findings = monitor.evaluations[-1]
    found = attngrad.explain(run.module, evaluation.images, evaluation.targets)
    assert found.completeness_error is not None
    expected = float(found.completeness_error.mean())
    assert findings.scalars["completeness_error"] == pytest.approx(expected, rel=1e-4)
    assert scalar_points(events(tmp_path), "attngrad/maps/completeness_error")[-1][1] == pytest.approx(
        expected, rel=1e-4
    )
    record = records(tmp_path)["step=3"]
    assert record["settings"]["method"] == "guided_relevance"
    assert float(record["figures"]["maps/completeness_error"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_is_named_is_not_replaced(kind: str) -> None:
    run = fit(KINDS[kind](method="guided_relevance", on_error="log"), module=beside_colours, max_epochs=1)
    assert lines(run) == []
    (complaint,) = run.complaints
    assert "NoEmbeddingError" in complaint
    assert "is switched off" in complaint


# Resuming -------------------------------------------------------------------------------------------------------


def resumed(folder: Path, before: Any, after: Any) -> Run:
    fit(before, ModelCheckpoint(folder, filename="saved"), module=beside_colours, enable_checkpointing=True)
    return fit(after, module=beside_colours, ckpt_path=folder / "saved.ckpt", max_epochs=3)


@pytest.mark.parametrize("now", [{}, {"method": "gradient_guided"}], ids=["default", "named"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_history_of_the_method_that_stands_in_goes_on(tmp_path: Path, kind: str, now: dict[str, Any]) -> None:
    before, after = KINDS[kind](), KINDS[kind](**now)
    run = resumed(tmp_path, before, after)
    assert not [message for message in run.messages if "a new history begins" in message]
    assert (before.story.evaluations, after.story.evaluations) == (3, 4)
    assert len(lines(run)) == (0 if now else 1)
    states = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if "Monitor" in key)
    assert state["conditions"]["method"] == "gradient_guided"
    assert state["conditions"]["options"] == {"correction": "positive"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_of_another_method_does_not_go_on_under_the_one_that_stands_in(tmp_path: Path, kind: str) -> None:
    after = KINDS[kind]()
    run = resumed(tmp_path, KINDS[kind](method="rollout"), after)
    (told,) = [message for message in run.messages if "a new history begins" in message]
    assert "method: 'rollout' then, 'gradient_guided' now" in told
    assert after.story.evaluations == 1
    assert after.story.since == "epoch 3"


# Without attention ----------------------------------------------------------------------------------------------


def resnet() -> Classifier:
    return Classifier(tiny_resnet())


@pytest.fixture(scope="module")
def without_attention(tmp_path_factory: Any) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("without_attention")
    callbacks = [*everyone(), WatchedAudit(), saving(folder / "saved")]
    options = {"logger": tensorboard(folder), "default_root_dir": folder, "enable_checkpointing": True}
    return fit(*callbacks, module=resnet, max_epochs=1, **options), folder


def test_a_resnet_is_shown_by_its_relevance_and_two_lines_say_so(without_attention: tuple[Run, Path]) -> None:
    run, _ = without_attention
    (line,) = lines(run)
    assert "Classifier: maps are by 'attn_lrp'" in line
    assert sum("head_entropy and head_distance are left out" in message for message in run.messages) == 1
    assert run.complaints == []
    assert run.losses == fit(module=resnet, max_epochs=1).losses


def test_of_a_resnet_every_number_is_there_but_those_of_heads(without_attention: tuple[Run, Path]) -> None:
    accumulator = events(without_attention[1])
    scalars, images = (accumulator.Tags()[kind] for kind in ("scalars", "images"))
    logged = {tag.removeprefix("attngrad/maps/") for tag in scalars if "/maps/" in tag}
    assert logged == {name for name in SCALARS if not name.startswith("head_")}
    for name in (
        *("maps/entropy", "maps/completeness_error", "drift/spearman", "faithfulness/srg"),
        *("faithfulness/class_sensitivity", "rewrite/median_linf", "rewrite/map_shift"),
    ):
        values = [value for _, value in scalar_points(accumulator, f"attngrad/{name}")]
        assert len(values) == 2, name
        assert not torch.tensor(values).isnan().any(), name  # two steps do not rewrite every image: ∞
    drawn = {tag.removeprefix("attngrad/") for tag in images}
    assert {"maps/overlay", "maps/film", "maps/classes", "drift/curves", "drift/moved"} <= drawn
    assert {"faithfulness/curves", "rewrite/rewrites", "rewrite/success"} <= drawn
    assert not {"maps/layers", "drift/layers"} & drawn, "no part of such a map is a layer's"


def test_the_record_of_a_resnet_names_the_method(without_attention: tuple[Run, Path]) -> None:
    record = records(without_attention[1] / "saved")["step=3"]
    assert record["settings"]["method"] == "attn_lrp"
    assert {"maps/entropy", "maps/completeness_error", "rewrite/map_shift"} <= record["figures"].keys()
