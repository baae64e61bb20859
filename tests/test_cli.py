"""The command line: what it says, and with which exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_attngrad
from lightning_attngrad import cli
from lightning_attngrad.audit import AuditOptions
from lightning_attngrad.demo import DemoOptions


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-attngrad {lightning_attngrad.__version__}\n"


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in DemoOptions.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in said
    assert "examples:" in said


def test_every_option_reaches_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DemoOptions] = []
    monkeypatch.setattr("lightning_attngrad.demo.run_demo", asked.append)
    command = (
        "demo --data flowers --model deit3_small_patch16_224 --weights w.pth --epochs 2 --image-size 64 "
        "--batch-size 4 --learning-rate 1e-4 --max-steps 5 --output out --seed 3 --accelerator cpu --devices 2"
    )
    assert cli.main(command.split()) == 0
    assert asked == [
        DemoOptions(
            data=Path("flowers"),
            model="deit3_small_patch16_224",
            weights=Path("w.pth"),
            epochs=2,
            image_size=64,
            batch_size=4,
            learning_rate=1e-4,
            max_steps=5,
            output=Path("out"),
            seed=3,
            accelerator="cpu",
            devices="2",
        )
    ]
    assert cli.main(["demo"]) == 0
    assert asked[1] == DemoOptions()  # one set of defaults
    assert cli.main(["demo", "--from-scratch"]) == 0
    assert asked[2].from_scratch
    assert cli.main(["demo", "--plant-shortcut"]) == 0
    assert asked[3] == DemoOptions(plant_shortcut=True)
    assert cli.main(["demo", "--model", "vit_tiny_patch16_224", "--pretrained"]) == 0
    assert asked[4].pretrained
    assert cli.main(["demo", "--plant-shortcut", "--guide"]) == 0
    assert asked[5] == DemoOptions(plant_shortcut=True, guide=True)


_FLAGS = {"model_args": "--model-arg", "data_args": "--data-arg"}


def test_help_names_every_option_of_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in set(AuditOptions.__dataclass_fields__) - {"checkpoints"}:
        assert _FLAGS.get(option, f"--{option.replace('_', '-')}") in said
    assert "exit codes:" in said


def test_every_option_reaches_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AuditOptions] = []
    monkeypatch.setattr("lightning_attngrad.audit.run.audit_exit_code", lambda options: asked.append(options) or 1)
    command = (
        "audit a.ckpt b.ckpt --model m.py:Model --data d.Data --config c.yaml --model-arg a=1 --model-arg b=2 "
        "--data-arg c=3 --allow-unsafe --new-images --fail-if x<1 --fail-if y>2 --name far --num-images 4 --norm l2 "
        "--steps 5 --target 3 --seed 6 --model-path net --image-key image --target-key 1 --batch-adapter a.b "
        "--mean 0.1,0.2 --std 1,2 --pixel-range 0,255 --task multilabel --accelerator cpu --devices 2 --strategy ddp "
        "--precision bf16-mixed --num-nodes 2 --output out"
    )
    assert cli.main(command.split()) == 1
    assert asked == [
        AuditOptions(
            checkpoints=[Path("a.ckpt"), Path("b.ckpt")],
            model="m.py:Model",
            data="d.Data",
            config=Path("c.yaml"),
            model_args=["a=1", "b=2"],
            data_args=["c=3"],
            allow_unsafe=True,
            new_images=True,
            fail_if=["x<1", "y>2"],
            name="far",
            num_images=4,
            norm="l2",
            steps=5,
            target=3,
            seed=6,
            model_path="net",
            image_key="image",
            target_key=1,
            batch_adapter="a.b",
            mean=(0.1, 0.2),
            std=(1.0, 2.0),
            pixel_range=(0.0, 255.0),
            task="multilabel",
            accelerator="cpu",
            devices="2",
            strategy="ddp",
            precision="bf16-mixed",
            num_nodes=2,
            output=Path("out"),
        )
    ]
    assert set(vars(asked[0])) == {name for name in vars(asked[0]) if vars(asked[0])[name]}  # none was left out
    cli.main(["audit", "a.ckpt", "--model", "m.Model", "--target", "all"])
    defaults = AuditOptions([Path("a.ckpt")], model="m.Model", target="all")
    for option, value in vars(defaults).items():  # one set of defaults
        given = vars(asked[1])[option]
        assert (tuple(given) if isinstance(value, tuple) else given) == value


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("demo --data /no/such/folder", "--data: /no/such/folder is not a folder"),
        ("demo --weights /no/such.pth --max-steps 1", "--weights: /no/such.pth is not a file"),
        ("demo --epochs 0", "--epochs: got 0"),
        ("demo --pretrained", "--pretrained: timm holds no weights of the demo model"),
        ("demo --model no_such_model", "--model: timm has no 'no_such_model'"),
        ("audit a.ckpt", "--model: which LightningModule is it?"),
        ("audit /no/such.ckpt --model a.B", "/no/such.ckpt: there is no such file"),
        ("audit a.ckpt --model a.B --fail-if x", "--fail-if: got 'x'"),
    ],
)
def test_bad_input_is_one_line_on_stderr(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"lightning-attngrad {command.split(maxsplit=1)[0]}: error: {message}")
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize(
    "command", ["demo --epochs many", "demo --no-such-option", "audit", "audit a.ckpt --mean x", "dance"]
)
def test_what_argparse_refuses_is_one_line_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_attngrad.cli", "demo", "--batch-size", "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--batch-size: got 'none'; expected a whole number" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("demo --epochs many", "--epochs: got 'many'; expected a whole number"),
        ("demo --learning-rate fast", "--learning-rate: got 'fast'; expected a number"),
        ("audit a.ckpt --norm l1", "--norm: got 'l1'; expected one of linf, l2, l0, l0_patches"),
        ("audit a.ckpt --mean x", "--mean: got 'x'; expected numbers such as 0.5,0.5,0.5"),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_would_do(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(command.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "audit"])
def test_help_explains_every_argument_in_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The dataclass is the one place where they are declared: none may lack its line in the docstring."""
    options = {"demo": DemoOptions, "audit": AuditOptions}[command]
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, field in options.__dataclass_fields__.items():
        explained = re.search(rf"^ {{8}}{name}: (.+?)\.$", options.__doc__ or "", re.MULTILINE | re.DOTALL)
        assert explained is not None, name
        assert " ".join(explained[1].split()) in said
        if isinstance(field.default, int | str | Path) and not isinstance(field.default, bool):
            assert f"(default: {field.default})" in said, name


#: What takes long to import, and nobody who asks for help or explains a map needs.
_HEAVY = ("lightning", "pytorch_lightning", "timm", "torchvision", "torchmetrics", "matplotlib", "tensorboard")


def loaded_by(program: str, *arguments: str) -> set[str]:
    """The modules that a program of its own has loaded when it ends."""
    ending = "import atexit, sys; atexit.register(lambda: print('\\nloaded', *sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", ending + program, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("\nloaded ")[2].split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["demo", "--help"], ["audit", "--help"]])
def test_help_is_there_without_torch(arguments: list[str]) -> None:
    program = "import sys; from lightning_attngrad import cli; sys.argv[0] = 'x'; sys.exit(cli.main(sys.argv[1:]))"
    loaded = loaded_by(program, *arguments)
    assert "lightning_attngrad.cli" in loaded
    assert not loaded & {"torch", "numpy", *_HEAVY}


def test_importing_the_package_loads_nothing_and_explaining_little() -> None:
    package = loaded_by("import lightning_attngrad")
    assert not package & {"torch", "numpy", *_HEAVY}
    torch = loaded_by("import torch")
    for name in ("explain", "rewrite", "Contrast"):
        more = loaded_by(f"import lightning_attngrad; lightning_attngrad.{name}") - torch
        assert "lightning_attngrad.explain" in more
        assert not {module for module in more if module.partition(".")[0] in _HEAVY}
        assert "torch._dynamo" not in more


@pytest.mark.parametrize(
    "first", ["", "import lightning_attngrad.explain.registry", "import lightning_attngrad.rewrite.norms"]
)
def test_functions_keep_the_names_that_rooms_have_too(first: str) -> None:
    program = (
        f"{first}\nimport lightning_attngrad as attngrad\nassert callable(attngrad.explain)\n"
        "from lightning_attngrad import rewrite\nassert callable(rewrite)\nimport lightning_attngrad.explain\n"
        "assert callable(attngrad.explain) and 'explain' in dir(attngrad)"
    )
    loaded_by(program)
