"""From a run to the charts and the summary that each logger holds afterwards; TensorBoard is asked itself."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.rewriting_runs import Bright
from tests.callbacks.small_runs import Classifier, WatchedMonitor, events, fit, listening, tensorboard
from tests.probe_options import with_probe

CORE = ("entropy", "border_mass", "corner_mass", "top_decile_mass")


class Counter(Monitor):
    """Its number is how often it has evaluated."""

    main_scalars = {"count": "of evaluations", "late": "a number that comes later"}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 2, "name": "counter", "on_error": "raise", **options}))
        self.count = 0

    def charts(self) -> dict[str, tuple[str, ...]]:
        return {"counts": ("count", "late")}

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.count += 1
        return Findings(
            {"count": float(self.count), "late": float(self.count) if self.count > 1 else float("nan")}, dict
        )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What Lightning logs, whose logger hands nothing on by itself."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        yield caplog


def summaries(said: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in said.records if record.getMessage().startswith("attngrad: what")]


def text_in(directory: str | Path, tag: str = "attngrad/summary") -> list[tuple[int, str]]:
    """Steps and texts, without the indentation that keeps columns in Markdown."""
    found = events(directory).Tensors(f"{tag}/text_summary")
    texts = [event.tensor_proto.string_val[0].decode() for event in found]
    return [(event.step, _plain(text)) for event, text in zip(found, texts, strict=True)]


def _plain(markdown: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in markdown.rstrip("\n").split("\n"))


@pytest.mark.parametrize("which", ["main", "all"])
@pytest.mark.parametrize("kind", [attngrad.AttentionDriftMonitor, attngrad.FaithfulnessMonitor])
def test_every_chart_has_its_curves(tmp_path: Path, kind: Any, which: Any) -> None:
    monitor = kind(num_images=3, scalars=which, figures=[], on_error="raise")
    fit(monitor, logger=tensorboard(tmp_path), max_epochs=1)
    logged = [tag.removeprefix(f"attngrad/{monitor.name}/") for tag in events(tmp_path).Tags()["scalars"]]
    assert monitor.charts_shown()
    for title, names in monitor.charts_shown().items():
        assert isinstance(names, tuple)
        for name in names:
            assert any(tag.startswith(name) if name.endswith("/") else tag == name for tag in logged), title
    assert set(monitor.main_scalars) <= set(logged)


@contextmanager
def served(directory: Path) -> Iterator[Any]:
    """A function that asks a TensorBoard of this directory."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--host", "127.0.0.1"]
    options = ["--port", "0", "--load_fast", "false", "--reload_interval", "1"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))

        def ask(path: str, **query: str) -> Any:
            url = f"{address}/data/{path}?{urllib.parse.urlencode(query)}"
            until = time.monotonic() + 60
            while True:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    found = json.load(answer)
                if found or time.monotonic() > until:
                    return found
                time.sleep(0.2)  # it is still reading

        yield ask
    finally:
        process.kill()
        process.communicate()


def test_tensorboard_draws_related_curves_in_one_chart(tmp_path: Path) -> None:
    board = tensorboard(tmp_path / "run", prefix="a.b")
    board.experiment.add_custom_scalars({"mine": {"losses": ["Multiline", ["a.b-train_loss", "a.b-val_loss"]]}})
    images = attngrad.ProbeImages(num_images=2, mean=0.0, std=1.0)
    rewrites = attngrad.RewriteRobustnessMonitor(probe=images, long_every=None, scalars="all", on_error="raise")
    fit(WatchedMonitor(on_error="raise"), rewrites, logger=board, max_epochs=1)
    with served(tmp_path) as ask:
        categories = ask("plugin/custom_scalars/layout")["category"]
        charts = {chart["title"]: chart for category in categories for chart in category["chart"]}

        def curves(title: str) -> dict[str, list[Any]]:
            (tag,) = [f"({'|'.join(charts[title]['multiline']['tag'])})"]
            answer = ask("plugin/custom_scalars/scalars", run="run", tag=tag)
            assert answer["regex_valid"]
            return dict(answer["tag_to_events"])

        assert [category["title"] for category in categories] == [
            "mine",
            "a.b-attngrad/maps",
            "a.b-attngrad/rewrite",
            "a.b-attngrad",
        ]
        assert set(curves("losses")) == {"a.b-train_loss", "a.b-val_loss"}
        spread = curves("how spread out, and where")
        assert set(spread) == {f"a.b-attngrad_maps/{name}" for name in CORE}
        assert [step for _, step, _ in spread["a.b-attngrad_maps/entropy"]] == [0, 2]
        assert len(curves("entropy of the heads, by layer")) == len(curves("distance of the heads, by layer")) == 2
        assert len(curves("success within each radius")) == len(curves("robust accuracy at each radius")) == 5
        assert len(curves("health of the search")) == 4  # short_over_long is never measured here
        monitors = ("maps", "rewrite")
        for title, of, name in (
            ("seconds taken", (*monitors, "probe"), "seconds"),
            ("share of the time of the fit", monitors, "overhead"),
        ):
            assert set(curves(title)) == {f"a.b-attngrad_time/{name}/{one}" for one in of}
        logged = ask("plugin/scalars/tags")["run"]
        bands = [chart["margin"]["series"][0] for chart in charts.values() if "margin" in chart]
        assert len(bands) == 2
        for band in bands:
            assert {band["value"], band["lower"], band["upper"]} <= set(logged)


def test_one_summary_of_all_monitors(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    board, lines = tensorboard(tmp_path / "board", prefix="fold0"), CSVLogger(tmp_path, name="csv")
    fit(Counter(), Counter(name="second"), logger=[board, lines], max_epochs=2)
    (text,) = summaries(said)
    assert re.findall(r"^(\w+) \(Counter\), 3 evaluations since start$", text, re.MULTILINE) == ["counter", "second"]
    assert len(re.findall(r"^    count  1 → 3  up  of evaluations$", text, re.MULTILINE)) == 2
    assert len(re.findall(r"^    late   2 → 3  up  a number", text, re.MULTILINE)) == 2
    assert len(re.findall(r"took [\d.]+ s, [\d.e-]+ % of the fit; figures: attngrad/\w+/", text)) == 2
    assert text_in(tmp_path / "board", "fold0-attngrad/summary") == [(5, text)]
    assert _plain((Path(lines.log_dir) / "attngrad" / "summary.md").read_text()) == text


def test_without_a_logger_it_is_a_file(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    fit(Counter(), logger=False, default_root_dir=tmp_path, max_epochs=1)
    (text,) = summaries(said)
    assert _plain((tmp_path / "attngrad" / "summary.md").read_text()) == text


def test_it_obeys_lightnings_logging_level(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    said.set_level(logging.WARNING, logger="lightning.pytorch")
    fit(Counter(), logger=False, default_root_dir=tmp_path, max_epochs=1)
    assert not summaries(said)
    assert (tmp_path / "attngrad" / "summary.md").exists()


@pytest.mark.parametrize("option", [{"fast_dev_run": True}, {"barebones": True}])
def test_a_trial_run_says_nothing(tmp_path: Path, said: pytest.LogCaptureFixture, option: dict[str, Any]) -> None:
    bare = {"enable_checkpointing": None, "logger": None, "log_every_n_steps": None} if "barebones" in option else {}
    fit(Counter(), default_root_dir=tmp_path, **{"logger": True, **option, **bare})
    assert not summaries(said)
    assert not list(tmp_path.rglob("*summary*"))


def test_a_monitor_that_is_switched_off_says_why(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    fit(
        WatchedMonitor(),
        Counter(),
        module=lambda: Classifier(Bright()),
        logger=False,
        default_root_dir=tmp_path,
        max_epochs=1,
    )
    (text,) = summaries(said)
    assert re.search(
        r"^maps \(WatchedMonitor\), no evaluation\n    took .*\n    switched off: in its evaluation at start: ",
        text,
        re.MULTILINE,
    )
    assert "counter (Counter), 2 evaluations since start" in text


def test_a_monitor_that_had_no_time_says_so(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    fit(Counter(max_overhead=1e-9), logger=False, default_root_dir=tmp_path, max_epochs=2)
    (text,) = summaries(said)
    assert "counter (Counter), 1 evaluation, at start" in text
    assert re.search(r"^    skipped \d evaluations that were due, to keep max_overhead=1e-09$", text, re.MULTILINE)


def test_a_resumed_run_goes_on_with_the_first_values(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(Counter(), keep, logger=tensorboard(tmp_path / "run"), max_epochs=1, **options)
    resumed = Counter()
    last = tmp_path / "kept" / "last.ckpt"
    same, other = tensorboard(tmp_path / "run"), tensorboard(tmp_path / "other")
    fit(resumed, logger=[same, other], max_epochs=2, ckpt_path=last, **options)
    text = summaries(said)[-1]
    assert "counter (Counter), 3 evaluations since start" in text
    assert resumed.count == 1
    assert re.search(r"^    count  1 → 1  same", text, re.MULTILINE)
    assert sorted(step for step, _ in text_in(tmp_path / "run")) == [2, 5]  # two files of one second
    assert text_in(tmp_path / "other") == [(5, text)]
    for directory in ("run", "other"):
        assert len(events(tmp_path / directory).Tensors("custom_scalars__config__")) == 1


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    monitor, earlier = Counter(), {"probe_set": {}, "scalars": {"count": 3.0}, "hash": None, "settings": {}}
    with listening() as messages:
        monitor.restore_state(earlier)
    assert ["a new history begins" in message for message in messages] == [True]
    assert monitor.scalars == {}
    assert monitor.story.evaluations == 0
    assert monitor.story.first == {}


def test_another_run_begins_anew(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    monitor = Counter()
    for _ in range(2):
        fit(monitor, logger=False, default_root_dir=tmp_path, max_epochs=1)
    assert re.search(r"2 evaluations since start\n    count  3 → 4  up", summaries(said)[-1])


class WritesOwnLayout(Classifier):
    def on_train_start(self) -> None:
        self.logger.experiment.add_custom_scalars({"mine": {"losses": ["Multiline", ["train_loss"]]}})


def test_a_layout_that_is_written_during_the_fit_and_ours_are_both_there_afterwards(tmp_path: Path) -> None:
    fit(Counter(), module=WritesOwnLayout, logger=tensorboard(tmp_path), max_epochs=1)
    with served(tmp_path) as ask:
        titles = [category["title"] for category in ask("plugin/custom_scalars/layout")["category"]]
    assert titles == ["mine", "attngrad/counter", "attngrad"]


@pytest.mark.parametrize("where", ["charts", "remarks"])
def test_an_error_is_reported_and_the_run_ends_as_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(Counter, where, lambda self: 1 / 0)
    with listening():
        run = fit(Counter(on_error="log"), logger=tensorboard(tmp_path), max_epochs=1)
    complaints = [message for message in run.messages if "ZeroDivisionError" in message]
    assert len(complaints) == 1
    assert "attngrad could not write the charts, the summary or the report" in complaints[0]
    assert run.trainer.state.finished
    with pytest.raises(ZeroDivisionError):
        fit(Counter(), logger=tensorboard(tmp_path / "raises"), max_epochs=1)


def test_the_audit_has_described_all_checkpoints_before_the_summary(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    images = attngrad.ProbeImages(num_images=2, mean=0.0, std=1.0)
    audit = attngrad.CheckpointAudit(probe=images, on_error="raise")
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(audit, keep, logger=False, default_root_dir=tmp_path, enable_checkpointing=True, max_epochs=1)
    (text,) = summaries(said)
    assert "audit (CheckpointAudit), 1 evaluation, at step 3" in text
    assert "rewrite/median_linf" in text
    assert (tmp_path / "last.audit.json").exists()


def test_random_numbers_and_weights_are_those_of_a_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state_after(directory: Path) -> tuple[Any, ...]:
        seen = []

        class Last(pl.Callback):
            def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
                seen.append(torch.get_rng_state())

        run = fit(Counter(), Last(), logger=tensorboard(directory), max_epochs=1)
        return seen[0], [weight.detach().clone() for weight in run.module.parameters()], run.losses

    with_them = state_after(tmp_path / "with")
    for name in ("write_layout", "write_summary"):
        monkeypatch.setattr(f"lightning_attngrad.callbacks.base.{name}", lambda *_: None)
    without = state_after(tmp_path / "without")
    assert torch.equal(with_them[0], without[0])
    assert all(torch.equal(one, other) for one, other in zip(with_them[1], without[1], strict=True))
    assert with_them[2] == without[2]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: Any, said: pytest.LogCaptureFixture) -> None:
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, prefix="fold0")
    run = fit(Counter(), logger=logger, max_epochs=1)
    logger.experiment.finish()
    wandb.teardown()
    (text,) = summaries(said)
    (table,) = tmp_path.rglob("media/table/**/*.json")
    assert json.loads(table.read_text())["data"] == [[text]]
    assert table.relative_to(tmp_path).as_posix().endswith(f"fold0-attngrad/{table.name}")
    assert not run.complaints


def test_mlflow(tmp_path: Path, monkeypatch: Any, said: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    run = fit(Counter(), logger=logger, max_epochs=1)
    (text,) = summaries(said)
    path = logger.experiment.download_artifacts(logger.run_id, "attngrad/summary.md", str(tmp_path))
    assert _plain(Path(path).read_text()) == text
    assert logger.experiment.get_run(logger.run_id).info.status == "FINISHED"
    assert not run.complaints
