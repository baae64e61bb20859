"""The command from end to end: what it finds equals what was logged, and what does not compare is refused."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from matplotlib.image import imread

from tests.audit import project
from tests.audit.runs import CODE, HERE, QUIET, Done, audit, in_checkpoint, logged, run, small_audit

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("project", None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of a run with an audit."""
    return run(tmp_path_factory.mktemp("run"), small_audit())


@pytest.fixture(scope="module")
def unaudited(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of a run without."""
    return run(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def of_the_demo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of real digits, with the demo's own module and data."""
    from lightning_attngrad.demo.data import DigitsDataModule
    from lightning_attngrad.demo.models import load_backbone
    from lightning_attngrad.demo.module import fine_tuner

    folder = tmp_path_factory.mktemp("demo")
    pl.seed_everything(0, verbose=False)
    module = fine_tuner()
    load_backbone(module.model)
    module.hparams.update(model_name="demo", class_count=10, image_size=None)  # as run_demo does
    callbacks = [small_audit(num_images=4, steps=8), ModelCheckpoint(folder, save_top_k=-1)]
    limits = {"max_epochs": 3, "limit_train_batches": 15, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    pl.Trainer(**QUIET, **limits, callbacks=callbacks).fit(module, datamodule=DigitsDataModule(batch_size=32))
    return sorted(folder.glob("*.ckpt"))


def equals_log(done: Done, saved: list[Path]) -> None:
    assert (done.code, done.error) == (0, "")
    assert len({str(found) for found in done.figures}) == len(saved)
    for found, path in zip(done.figures, saved, strict=True):
        assert found == pytest.approx(logged(path), rel=1e-6, nan_ok=True)
    assert f"{len(saved)} of {len(saved)} equal what the run logged" in done.said


def refused(done: Done, message: str) -> None:
    assert done.code == 2
    assert done.error.count("\n") == 1
    assert re.search(f"^lightning-attngrad audit: error: .*{message}", done.error), done.error


class TestTheDemo:
    def test_three_checkpoints_equal_what_the_callback_logged(
        self, of_the_demo: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert [path.name for path in of_the_demo] == [
            f"epoch={epoch}-step={15 * (epoch + 1)}.ckpt" for epoch in range(3)
        ]
        code = ("--model", "lightning_attngrad.demo.module.fine_tuner")
        code += ("--data", "lightning_attngrad.demo.data.DigitsDataModule")
        done = audit(capsys, tmp_path / "out", of_the_demo, *code, "--fail-if", "val_accuracy>=0")
        assert done.code == 1
        assert done.error == ""
        for found, row, path in zip(done.figures, done.lines, of_the_demo, strict=True):
            same = pytest.approx(found, rel=1e-6, abs=0, nan_ok=True)
            assert logged(path) == same
            assert in_checkpoint(path) == same
            assert {name: float(row[name]) for name in found} == same
            assert math.isfinite(found["rewrite/median_linf"])
            assert found["rewrite/median_linf"] > 0
            pictures = sorted(file.name for file in (tmp_path / "out" / path.stem).iterdir())
            assert pictures == ["classes.png", "rewrites.png", "success.png"]
        assert len({found["rewrite/median_linf"] for found in done.figures}) == 3  # each of its own weights
        assert [one["global_step"] for one in done.checkpoints] == [15, 30, 45]
        assert [one["equals_log"] for one in done.checkpoints] == [True] * 3
        assert imread(tmp_path / "out" / "success.png").ndim == 3
        assert "[2/3] epoch=1-step=30 … median " in done.said
        assert re.search(r"^epoch=2-step=45 +2 +45 ", done.said, re.MULTILINE)
        assert "3 of 3 equal what the run logged when they were saved" in done.said
        assert "FAILED  val_accuracy>=0: epoch=0-step=15 (" in done.said

    def test_data_know_how_they_were_made(self, of_the_demo: list[Path]) -> None:
        content = torch.load(of_the_demo[0], weights_only=True)
        expected = {"batch_size": 32, "channels": 1, "image_size": 28, "plant_shortcut": False, "contrast": 1.0}
        assert content["datamodule_hyper_parameters"] == expected


class TestCodeOfTheUser:
    def test_classes_with_saved_arguments(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        equals_log(audit(capsys, tmp_path / "out", saved, *CODE), saved)

    def test_from_a_file(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ROOT / "tests")
        code = ("--model", "audit/project.py:Classifier", "--data", "audit/project.py:SquaresData")
        equals_log(audit(capsys, tmp_path / "out", saved, *code), saved)

    def test_one_that_is_given_its_network(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = run(tmp_path / "run", small_audit(), module=project.with_network(), epochs=1)
        refused(audit(capsys, tmp_path / "out", paths, "--model", f"{HERE}.WithNetwork"), "WithNetwork needs net")
        assert not (tmp_path / "out").exists()
        code = ("--model", f"{HERE}.with_network", "--data", f"{HERE}.validation_loader")
        equals_log(audit(capsys, tmp_path / "out", paths, *code), paths)

    def test_one_that_is_built_in_setup(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = run(tmp_path / "run", small_audit(), module=project.BuiltInSetup(16), epochs=1)
        code = ("--model", f"{HERE}.BuiltInSetup", "--data", f"{HERE}.SquaresData")
        equals_log(audit(capsys, tmp_path / "out", paths, *code), paths)

    def test_one_of_the_other_lightning(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = pytest.importorskip("pytorch_lightning")
        # Its code in a file, where it derives from the other package.
        source = (ROOT / "tests" / "audit" / "project.py").read_text()
        (tmp_path / "other_audited.py").write_text(source.replace("lightning.pytorch", "pytorch_lightning"))
        sys.path.insert(0, str(tmp_path))
        import other_audited  # type: ignore[import-not-found]

        paths = run(
            tmp_path / "run",
            small_audit(),
            module=other_audited.Classifier(16),
            data=other_audited.SquaresData(),
            epochs=1,
            trainer=other.Trainer,
            checkpoint=other.callbacks.ModelCheckpoint,
        )
        code = ("--model", "other_audited.Classifier", "--data", "other_audited.SquaresData")
        equals_log(audit(capsys, tmp_path / "out", paths, *code), paths)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("--model", f"{HERE}.nothing_of_the_kind"),
                "nothing_of_the_kind makes a dict; expected a LightningModule",
            ),
            ((*CODE, "--model-arg", "width=32"), "epoch=0 could not be audited: .*size mismatch"),
            ((*CODE, "--model-path", "body"), "epoch=0 could not be audited: .*has no attribute 'body'"),
            ((*CODE, "--norm", "l2", "--steps", "0"), "steps"),
            ((*CODE, "--strategy", "no_such_strategy"), "--accelerator, --devices, --strategy.*no_such_strategy"),
            (("--model", f"{HERE}.Classifier"), "--data: where are the validation images.*file.py:Name"),
        ],
    )
    def test_what_does_not_fit(
        self,
        saved: list[Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        message: str,
    ) -> None:
        refused(audit(capsys, tmp_path / "out", saved, *arguments), message)

    def test_an_output_that_cannot_be_written(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").write_text("a file")
        refused(audit(capsys, tmp_path / "out", saved, *CODE), "--output")


def fit_from_the_command_line(folder: Path, module: str, fixed: bool) -> list[Path]:
    """A run of LightningCLI with fixed classes, or with those that its arguments name; beside it its config.yaml."""
    options = {**QUIET, "max_epochs": 1, "default_root_dir": str(folder)}
    settings = [f"--trainer.{name}={value}" for name, value in options.items()]
    classes = (getattr(project, module), project.SquaresData) if fixed else ()
    named = [] if fixed else [f"--model={HERE}.{module}", f"--data={HERE}.SquaresData"]
    LightningCLI(
        *classes,
        args=["fit", *settings, *named, "--model.width=16" if fixed else "--model.init_args.width=16"],
        trainer_defaults={"callbacks": [ModelCheckpoint(folder, filename="{epoch}"), small_audit()]},
        seed_everything_default=0,
    )
    return sorted(folder.glob("*.ckpt"))


class TestLightningCLI:
    @pytest.mark.parametrize("fixed", [True, False])
    def test_its_config_is_enough(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed: bool) -> None:
        paths = fit_from_the_command_line(tmp_path, "Configured", fixed)
        config = ("--config", str(tmp_path / "config.yaml"))
        if fixed:
            refused(audit(capsys, tmp_path / "out", paths, *config), "the config names no class_path")
            config += ("--model", f"{HERE}.Configured", "--data", f"{HERE}.SquaresData")
        equals_log(audit(capsys, tmp_path / "out", paths, *config), paths)

    @pytest.mark.parametrize("fixed", [True, False])
    def test_what_it_saved_is_enough(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed: bool) -> None:
        paths = fit_from_the_command_line(tmp_path, "Classifier", fixed)
        saved = torch.load(paths[0], weights_only=True)["hyper_parameters"]
        assert saved["_instantiator"] == "lightning.pytorch.cli.instantiate_module"
        equals_log(audit(capsys, tmp_path / "out", paths, *CODE), paths)


class Linking(LightningCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.link_arguments("data.class_count", "model.class_count", apply_on="instantiate")
        parser.link_arguments("data.contrast", "model.contrast")


class TestLinkedArguments:
    """LightningCLI leaves them out of the config that it saves, with a default or without."""

    def test_they_are_asked_for_and_never_taken_at_their_defaults(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = {**QUIET, "max_epochs": 1, "default_root_dir": str(tmp_path)}
        settings = [f"--trainer.{name}={value}" for name, value in options.items()]
        Linking(
            project.Linked,
            project.LinkedData,
            args=["fit", *settings, "--model.width=16", "--data.contrast=0.5"],
            trainer_defaults={"callbacks": [ModelCheckpoint(tmp_path, filename="{epoch}"), small_audit()]},
            seed_everything_default=0,
        )
        paths = sorted(tmp_path.glob("*.ckpt"))
        command = ("--config", str(tmp_path / "config.yaml"), "--model", f"{HERE}.Linked")
        command += ("--data", f"{HERE}.LinkedData")
        refused(
            audit(capsys, tmp_path / "out", paths, *command),
            r"Linked needs class_count, which neither .* link_arguments fills in. Give --model-arg class_count=…; and "
            r"say, .* --model-arg contrast=1.0$",
        )
        command += ("--model-arg", "class_count=3")
        refused(
            audit(capsys, tmp_path / "out", paths, *command),
            "config holds no contrast, as LightningCLI leaves out .* Say which it was: --model-arg contrast=1.0, or",
        )
        assert not (tmp_path / "out").exists()
        equals_log(audit(capsys, tmp_path / "out", paths, *command, "--model-arg", "contrast=0.5"), paths)


class TestFrozenImages:
    def test_changed_data_are_refused(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = (*CODE, "--data-arg", "seed=2")
        done = audit(capsys, tmp_path / "out", saved, *other)
        refused(done, "epoch=0: the validation images or their classes are not those that epoch=0 was audited on")
        assert not (tmp_path / "out" / "audit.json").exists()
        done = audit(capsys, tmp_path / "out", saved, *other, "--new-images")
        assert done.code == 0
        assert "equal what the run logged" not in done.said
        assert [one["equals_log"] for one in done.checkpoints] == [None, None]
        assert done.checkpoints[0]["settings"]["steps"] == 4  # those of the run

    def test_two_runs_of_other_images_are_refused_before_anything_is_computed(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        others = run(tmp_path / "other", small_audit(seed=5), epochs=1)
        both = [saved[0], others[0]]
        done = audit(capsys, tmp_path / "out", both, *CODE)
        refused(done, "/epoch=0 and other/epoch=0 were audited on other images")
        assert "[1/2]" not in done.said
        done = audit(capsys, tmp_path / "out", both, *CODE, "--new-images")
        assert done.code == 0
        assert len({one["hash"] for one in done.checkpoints}) == 1
        assert (tmp_path / "out" / "other" / "epoch=0" / "success.png").exists()

    def test_other_settings_are_used_for_all(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = audit(capsys, tmp_path / "out", saved, *CODE, "--norm", "l2", "--steps", "3")
        assert done.code == 0
        assert all("rewrite/median_l2" in figures for figures in done.figures)
        assert done.checkpoints[0]["settings"]["steps"] == 3

    def test_another_number_of_images_is_no_resumed_run(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        done = audit(capsys, tmp_path / "out", saved, *CODE, "--num-images", "5")
        assert done.code == 0
        assert [one["images"]["count"] for one in done.checkpoints] == [5, 5]
        assert "not compared with what the run logged: num_images=5 (in the run 3)\n" in done.said
        assert "resumed" not in done.said + done.error + caplog.text

    def test_an_older_audit_leaves_nothing_beside_a_newer_one(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        audit(capsys, out, saved, *CODE)
        (out / "epoch=0" / "mine.txt").write_text("a note")
        (out / "notes.png").write_text("mine too")
        audit(capsys, out, saved[1:], *CODE)
        there = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
        figures = {f"epoch=1/{name}.png" for name in ("rewrites", "success", "classes")} | {"success.png"}
        assert there == figures | {"audit.json", "audit.csv", "epoch=0/mine.txt", "notes.png"}
        (out / "epoch=0" / "mine.txt").unlink()
        (out / "epoch=0").rmdir()
        audit(capsys, out, saved[:1], *CODE)
        assert not (out / "epoch=1").exists()

    def test_a_run_without_an_audit(
        self, unaudited: list[Path], saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = audit(capsys, tmp_path / "out", unaudited, *CODE, "--num-images", "3", "--steps", "4")
        assert done.code == 0
        # The same training and the same choice of images: so the same numbers as with an audit in the run.
        assert done.figures[1] == pytest.approx(in_checkpoint(saved[1]), rel=1e-6, nan_ok=True)
        assert done.checkpoints[0]["metrics"] == {}

    def test_weights_alone_have_their_file_beside_them(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        paths = run(tmp_path / "run", small_audit(), epochs=1, save_weights_only=True)
        assert "callbacks" not in torch.load(paths[0], weights_only=True)
        done = audit(capsys, tmp_path / "out", paths, *CODE)
        equals_log(done, paths)
        assert done.checkpoints[0]["metrics"].keys() == {"val_loss"}

    @pytest.mark.parametrize("audited", [True, False])
    def test_a_stream(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], audited: bool) -> None:
        callbacks = [small_audit()] if audited else []
        paths = run(tmp_path / "run", *callbacks, data=project.SquaresData(stream=True))
        done = audit(
            capsys, tmp_path / "out", paths, *CODE, *(() if audited else ("--num-images", "3", "--steps", "4"))
        )
        assert done.code == 0
        assert [one["images"]["count"] for one in done.checkpoints] == [3, 3]  # of batches of two
        if audited:
            equals_log(done, paths)
            # The images themselves are in the checkpoint, whatever the stream gives today.
            equals_log(audit(capsys, tmp_path / "later", paths, *CODE, "--data-arg", "seed=2"), paths)

    def test_one_of_several_audits(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = run(tmp_path / "run", small_audit(), small_audit(name="wide", norm="l2"), epochs=1)
        refused(audit(capsys, tmp_path / "out", paths, *CODE), "--name: got None; the audits in epoch=0 are called")
        done = audit(capsys, tmp_path / "out", paths, *CODE, "--name", "wide")
        assert done.figures[0] == pytest.approx(in_checkpoint(paths[0], "wide"), rel=1e-6, nan_ok=True)

    def test_how_the_run_read_its_images_is_known(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        reading = {
            "model": "net",
            "image_key": 0,
            "target_key": 1,
            "mean": 127.5,
            "std": 63.75,
            "pixel_range": (0, 255),
        }
        paths = run(tmp_path / "run", small_audit(**reading), epochs=1)
        equals_log(audit(capsys, tmp_path / "out", paths, *CODE), paths)

    def test_the_precision_is_that_of_the_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = run(tmp_path / "run", small_audit(), epochs=1, training={"precision": "bf16-mixed"})
        equals_log(audit(capsys, tmp_path / "out", paths, *CODE), paths)
        done = audit(capsys, tmp_path / "out", paths, *CODE, "--precision", "32-true")
        assert done.code == 0
        assert done.checkpoints[0]["equals_log"] is None  # other numbers were asked for


class TestTasks:
    """What the output means is that of the run, or what the command says."""

    def test_labels_that_are_switched(
        self, unaudited: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved = run(tmp_path / "run", small_audit(task="multilabel"), epochs=1)
        done = audit(capsys, tmp_path / "as it was", saved, *CODE)
        equals_log(done, saved)
        assert done.checkpoints[0]["settings"]["task"] == "multilabel"
        assert "rewrite/also_changed" in done.figures[0]
        said = audit(capsys, tmp_path / "said", unaudited[:1], *CODE, "--num-images", "3", "--task", "multilabel")
        assert (said.code, said.error) == (0, "")
        assert "rewrite/also_changed" in said.figures[0]

    def test_numbers_have_maps_and_no_rewriting(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        saved = run(tmp_path / "run", small_audit(task="regression"), epochs=1)
        done = audit(capsys, tmp_path / "audit", saved, *CODE)
        equals_log(done, saved)
        assert "maps/entropy" in done.figures[0]
        assert not [name for name in done.figures[0] if name.startswith("rewrite/")]


class TestUnsafeCheckpoints:
    def test_refused_and_allowed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        module = project.Classifier(16)
        module.hparams["folder"] = Path("a path is an object")
        paths = run(tmp_path / "run", small_audit(), module=module, epochs=1)
        refused(audit(capsys, tmp_path / "out", paths, *CODE), "refused, .*pathlib.*PosixPath.*--allow-unsafe")
        done = audit(capsys, tmp_path / "out", paths, *CODE, "--allow-unsafe")
        equals_log(done, paths)


class TestThresholds:
    def test_exit_codes(self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        medians = [logged(path)["rewrite/median_linf"] for path in saved]
        between = f"rewrite/median_linf<{sum(medians) / 2}"
        done = audit(capsys, tmp_path / "out", saved, *CODE, "--fail-if", between, "--fail-if", "val_loss>100")
        worse = saved[medians.index(min(medians))].stem
        assert done.code == 1
        assert f"FAILED  {between}: {worse} (" in done.said
        assert "passed  val_loss>100" in done.said
        assert audit(capsys, tmp_path / "out", saved, *CODE, "--fail-if", "rewrite/median_linf<0").code == 0

    def test_a_misspelt_name(self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        done = audit(capsys, tmp_path / "out", saved, *CODE, "--fail-if", "rewrite/median<1")
        refused(done, "there is no 'rewrite/median'; did you mean 'rewrite/median_linf'.* there are .*val_loss")
        assert "[1/2]" not in done.said, "nothing is computed before that"

    def test_a_metric_of_a_run_without_an_audit(
        self, unaudited: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = audit(capsys, tmp_path / "out", unaudited, *CODE, "--fail-if", "val_loss>1")
        refused(done, "there is no 'val_loss'; .* Metrics are known of runs that had a CheckpointAudit")
        assert not done.said

    def test_a_name_of_another_task_is_told_after_the_first(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = audit(capsys, tmp_path / "out", saved, *CODE, "--fail-if", "rewrite/also_changed>1")
        refused(done, "there is no 'rewrite/also_changed'")
        assert "[2/2]" not in done.said

    def test_every_figure_has_a_name_that_is_known_before(self, saved: list[Path]) -> None:
        found = in_checkpoint(saved[0]).keys()
        assert found - small_audit().figure_names() == set()
        assert small_audit().figure_names() - found == {"rewrite/also_changed"}


def test_two_processes_find_the_same(saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    one = audit(capsys, tmp_path / "one", saved, *CODE)
    command: list[Any] = [sys.executable, "-m", "lightning_attngrad.cli", "audit", *saved, *CODE]
    command += ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--output", "two"]
    command += ["--fail-if", "rewrite/median_linf>=0"]
    free = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**free, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("[1/2] epoch=0") == 1  # one of them speaks
    assert done.stdout.count("2 of 2 equal what the run logged") == 1
    two = Done(done.returncode, done.stdout, done.stderr, tmp_path / "two")
    for figures, others in zip(one.figures, two.figures, strict=True):
        assert figures == pytest.approx(others, rel=1e-6, nan_ok=True)
    assert two.lines
    assert (tmp_path / "two" / "epoch=1" / "success.png").exists()
