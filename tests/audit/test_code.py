"""The user's code: found where it is, and called with the arguments that count."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_attngrad.audit.code import Recipe, find_recipe, import_target, read_config
from lightning_attngrad.audit.options import AuditError
from tests.audit import project

HERE = "tests.audit.project"


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.endswith("audited")]:
        del sys.modules[name]


class TestImporting:
    def test_by_its_package(self) -> None:
        assert import_target(f"{HERE}.Classifier", "--model") is project.Classifier

    def test_a_file_and_what_lies_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "beside_audited.py").write_text("WIDTH = 8\n")
        file = tmp_path / "audited.py"
        file.write_text("from beside_audited import WIDTH\nclass Outer:\n    class Inner:\n        width = WIDTH\n")
        inner = import_target(f"{file}:Outer.Inner", "--model")
        assert inner.width == 8
        assert import_target(f"{file}:Outer", "--data").Inner is inner  # a file is run once

    def test_the_working_directory_is_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "in_cwd_audited.py").write_text("def make(): pass\n")
        monkeypatch.chdir(tmp_path)
        assert import_target("in_cwd_audited.make", "--model").__name__ == "make"
        assert import_target("in_cwd_audited.py:make", "--model").__name__ == "make"

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("Classifier", "expected package.module.Name"),
            (":Classifier", "expected package.module.Name"),
            ("no_such_package.Model", "there is no module 'no_such_package'"),
            (f"{HERE}.Nothing", "there is no 'Nothing' in tests.audit.project"),
            (f"{HERE}.A_NUMBER", "is a int; expected a class or a function"),
            ("no/such/file.py:Model", "there is no file"),
        ],
    )
    def test_what_is_not_there(self, path: str, message: str) -> None:
        with pytest.raises(
            AuditError, match=re.escape(f"--model: got {path!r}") if "expected p" in message else message
        ):
            import_target(path, "--model")

    def test_a_file_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "fails_audited.py").write_text("\n\nraise OSError('no\\ndisk')\n")
        with pytest.raises(AuditError, match=r"cannot be imported: OSError: no disk \(fails_audited\.py, line 3\)"):
            import_target(f"{tmp_path}/fails_audited.py:Model", "--model")
        assert "fails_audited" not in sys.modules

    def test_a_file_of_a_taken_name(self, tmp_path: Path) -> None:
        (tmp_path / "json.py").write_text("def make(): pass\n")
        with pytest.raises(AuditError, match="a module called 'json' is loaded already"):
            import_target(f"{tmp_path}/json.py:make", "--model")


class TestArguments:
    def test_saved_ones_that_it_takes(self) -> None:
        made = Recipe("model", project.Classifier).make({"hyper_parameters": {"width": 8, "of_another": 1}})
        assert made.hparams["width"] == 8

    def test_those_of_the_command_line_win(self) -> None:
        recipe = find_recipe("model", f"{HERE}.Classifier", None, ["width=32"])
        assert recipe is not None
        assert recipe.make({"hyper_parameters": {"width": 8}}).hparams["width"] == 32

    def test_values_are_read_as_yaml(self) -> None:
        recipe = find_recipe("data", f"{HERE}.SquaresData", None, ["seed=3", "stream=true"])
        assert recipe is not None
        assert dict(recipe.given) == {"seed": 3, "stream": True}
        with pytest.raises(AuditError, match="a value of YAML"):
            find_recipe("data", f"{HERE}.SquaresData", None, ["seed=[3"])

    def test_data_have_their_own(self) -> None:
        saved = {"hyper_parameters": {"seed": 9}, "datamodule_hyper_parameters": {"seed": 4}}
        assert Recipe("data", project.SquaresData).make(saved).hparams["seed"] == 4

    def test_all_in_one(self) -> None:
        saved = {"hyper_parameters": {"width": 8}, "hparams_name": "conf"}
        assert Recipe("model", project.Conf).make(saved).hparams["width"] == 8

    def test_a_function_that_takes_any(self) -> None:
        assert Recipe("model", dict).make({"hyper_parameters": {"a": 1}}) == {"a": 1}

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(
            AuditError, match=r"WithNetwork needs net, .* --model-arg net=…, .* a function .* self.save_hyper"
        ):
            Recipe("model", project.WithNetwork).make({})
        assert isinstance(Recipe("model", project.with_network).make({}), project.WithNetwork)

    def test_code_that_fails(self) -> None:
        message = r"--model: broken could not be made: OSError: the disk is full \(project\.py, line \d+\)"
        with pytest.raises(AuditError, match=message):
            Recipe("model", project.broken).make({})

    def test_a_checkpoint_does_not_choose_what_is_run(self) -> None:
        with pytest.raises(AuditError, match=r"asks to be made by 'os.system', .* refused"):
            Recipe("model", project.Classifier).make({"hyper_parameters": {"width": 8, "_instantiator": "os.system"}})

    def test_nor_which_class(self) -> None:
        saved = {"width": 8, "_class_path": f"{HERE}.Conf", "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        assert type(Recipe("model", project.Classifier).make({"hyper_parameters": saved})) is project.Classifier


class TestConfig:
    def section(self, **changed: Any) -> dict[str, Any]:
        return {"class_path": f"{HERE}.Configured", "init_args": {"width": 8}, **changed}

    def test_it_names_class_and_arguments(self) -> None:
        recipe = find_recipe("model", None, {"model": self.section()}, [])
        assert recipe is not None
        made = recipe.make({})
        assert type(made) is project.Configured
        assert made.net.embed_dim == 8

    def test_values_are_converted_by_their_types(self) -> None:
        recipe = find_recipe("model", None, {"model": self.section(init_args={"width": "8"})}, [])
        assert recipe is not None
        assert recipe.make({}).net.embed_dim == 8
        recipe = find_recipe("model", None, {"model": self.section(init_args={"width": "wide"})}, [])
        assert recipe is not None
        with pytest.raises(AuditError, match=r"Configured could not be made.*wide"):
            recipe.make({})

    def test_nested_classes_are_made(self) -> None:
        net = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
        section = {"class_path": f"{HERE}.WithNetwork", "init_args": {"net": net}}
        recipe = find_recipe("model", None, {"model": section}, [])
        assert recipe is not None
        assert isinstance(recipe.make({}).net, nn.Linear)

    def test_it_wins_over_what_was_saved_which_fills_gaps(self) -> None:
        recipe = find_recipe("model", None, {"model": self.section(init_args={"name": "here"})}, [])
        assert recipe is not None
        made = recipe.make({"hyper_parameters": {"width": 8, "name": "there"}})
        assert made.net.embed_dim == 8

    def test_fixed_classes_have_to_be_named(self) -> None:
        config = {"model": {"width": 8}, "data": {"seed": 2}}
        with pytest.raises(AuditError, match=r"--model: the config names no class_path.*--model train\.py:Class"):
            find_recipe("model", None, config, [])
        with pytest.raises(AuditError, match=r"--data: the config names no class_path"):
            find_recipe("data", None, config, [])
        recipe = find_recipe("data", f"{HERE}.SquaresData", config, [])
        assert recipe is not None
        assert recipe.make({}).hparams["seed"] == 2

    def test_without_data(self) -> None:
        assert find_recipe("data", None, {"model": self.section()}, []) is None
        with pytest.raises(AuditError, match="--data-arg: there is no --data"):
            find_recipe("data", None, None, ["seed=2"])

    def test_a_class_alone(self) -> None:
        recipe = find_recipe("data", None, {"data": f"{HERE}.SquaresData"}, [])
        assert recipe is not None
        assert recipe.make({}).hparams["seed"] == 1

    def test_a_section_of_another_kind(self) -> None:
        with pytest.raises(AuditError, match="--config: its model is a list"):
            find_recipe("model", None, {"model": [1]}, [])


class TestReadingAConfig:
    def test_with_and_without_a_section_a_command(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("model: {width: 8}\ntrainer: {max_epochs: 1}\n")
        assert read_config(file)["model"] == {"width": 8}
        file.write_text("fit:\n  model: {width: 8}\n")
        assert read_config(file)["model"] == {"width": 8}
        assert read_config(None) is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainer: {}", "has no model and no data"),
            ("- 1", "has no model"),
            ("model: [", "cannot be read: ParserError"),
        ],
    )
    def test_what_is_none(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(AuditError, match=f"--config: .*{message}"):
            read_config(tmp_path / "config.yaml")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match=r"--config: .* cannot be read: FileNotFoundError"):
            read_config(tmp_path / "config.yaml")
