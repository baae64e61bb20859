"""The checks on a GPU, each skipped with the reason where there is none; and, small, on the CPU in every suite.

What passes on the CPU is no evidence of a GPU: it shows that the checks themselves run, and that they can fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as program
from tests.gpu import maps, memory, runs
from tests.gpu.checks import CHECKS, ONLY_ON_A_GPU, why_no_gpu
from tests.methods import OF_ANY_MODEL

CPU = torch.device("cpu")
#: One of them runs below, in a process of its own; the suite has such runs on the CPU in more ways than here.
_ONE_IS_ENOUGH = {"fit/32-true", "fit/bf16-true"}


@pytest.fixture
def lightning_may_set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP in this very process leaves the addresses of its processes behind."""
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.mark.skipif(why_no_gpu() is not None, reason=why_no_gpu() or "")
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.usefixtures("lightning_may_set_variables")
def test_on_a_gpu(name: str) -> None:
    print(CHECKS[name](torch.device("cuda")))


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ONLY_ON_A_GPU | _ONE_IS_ENOUGH])
@pytest.mark.usefixtures("lightning_may_set_variables")
def test_that_the_checks_run(name: str) -> None:
    assert CHECKS[name](CPU)


class TestThatTheChecksCanFail:
    def test_a_map_that_is_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = maps.heatmap

        def shifted(kind: str, method: str, device: torch.device, precision: str = "32-true") -> torch.Tensor:
            return right(kind, method, device, precision).roll(1, dims=-1)

        for precision in ("32-true", "bf16-mixed"):
            maps.reference("timm", "gradient_guided", precision)  # kept, as it is
        monkeypatch.setattr(maps, "heatmap", shifted)
        for precision in ("32-true", "bf16-mixed"):
            with pytest.raises(AssertionError, match="relative error"):
                maps.method_equals_cpu("timm", "gradient_guided", precision, CPU)

    def test_a_monitor_that_draws_from_the_stream_of_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Drawing(runs.attngrad.AttentionMapMonitor):
            def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                super().on_validation_epoch_end(trainer, pl_module)
                torch.rand(1)

        monkeypatch.setattr(runs, "monitors", lambda: [Drawing(num_images=2, on_error="raise")])
        with pytest.raises(AssertionError, match=r"the monitors changed .*random streams"):
            runs.untouched("32-true", CPU)

    def test_memory_that_is_not_scarce(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory.Pressure, "press", lambda self, device: None)
        with pytest.raises(AssertionError, match="nothing was said"):
            memory.fewer_at_once(CPU)


class TestTheProgram:
    def test_without_a_gpu_it_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        if why_no_gpu() is None:
            pytest.skip("there is a GPU")
        assert program.main([]) == 2
        assert capsys.readouterr().err.startswith(f"nothing was checked: torch {torch.__version__}")

    def test_it_prints_what_passed_and_what_failed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(device: torch.device) -> str:
            raise AssertionError("as it\nshould not be")

        monkeypatch.setitem(CHECKS, "rewriting/wrong", wrong)
        monkeypatch.setattr(program, "_quieten", lambda: None)
        assert program.main(["--device", "cpu", "--only", "rewriting/l"]) == 0
        assert program.main(["--device", "cpu", "--only", "rewriting/w"]) == 1
        said = capsys.readouterr().out
        assert said.startswith("CPU: nothing here is evidence of a GPU; torch ")
        assert "passed  rewriting/linf" in said
        assert "4 passed, 0 failed" in said
        assert "FAILED  rewriting/wrong" in said
        assert "AssertionError: as it should not be" in said
        assert said.endswith("0 passed, 1 failed\n  rewriting/wrong\n")

    def test_a_name_that_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert program.main(["--device", "cpu", "--only", "tpu"]) == 2
        assert "no check has 'tpu' in its name" in capsys.readouterr().err


def test_every_method_is_checked_in_every_precision() -> None:
    for method in OF_ANY_MODEL:
        assert sum(f"/{method}/" in name for name in CHECKS) == len(maps.MODELS) * 3


def test_an_image_of_pytorch_runs_it() -> None:
    """All monitors in a fit, where none of what else a development environment holds can be imported."""
    refusing = """
import sys
import torch._dynamo  # asks of some of them whether they are there
ELSEWHERE = "pytest hypothesis skimage sklearn quantus wandb mlflow mlxtend jsonargparse docstring_parser tabulate"
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ELSEWHERE.split():
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Refuse())
from tests.gpu.__main__ import main
sys.exit(main(["--device", "cpu", "--only", "fit/32-true", "--trace"]))
"""
    done = subprocess.run([sys.executable, "-c", refusing], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 0 failed" in done.stdout


def test_an_image_of_pytorch_is_enough() -> None:
    """What these files import, and what of the suite they use: no other package may be needed on a rented GPU."""
    allowed = {"torch", "lightning", "timm", "torchmetrics", "matplotlib", "tensorboard", "numpy", "lightning_attngrad"}
    root = Path(__file__).parents[2]
    waiting = [file for file in Path(__file__).parent.glob("*.py") if file != Path(__file__)]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                top = name.partition(".")[0]
                if top in ("tests", "benchmarks"):
                    other = (root / name.replace(".", "/")).with_suffix(".py")
                    waiting += [other] if other.exists() and other not in seen else []
                else:
                    assert top in allowed or top in sys.stdlib_module_names, f"{file.name} imports {name}"
    assert root / "tests" / "integration" / "harness.py" in seen
