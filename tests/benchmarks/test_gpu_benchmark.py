"""The benchmark of a GPU: that it runs, on the CPU and tiny; and that it says so where there is none."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


def test_without_a_gpu_nothing_is_printed_as_if_there_were_one(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "nothing was measured: torch finds no GPU on this machine\n"


def test_a_tiny_model_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--quick", "--rounds", "1", "--precisions", "bf16-mixed"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("## CPU, of which nothing here is a claim")
    assert "### 17 tokens, test_vit, batch 2, bf16-mixed" in said
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    rows = {name: cells for name, *cells in lines}
    for name in ("map, gradient_guided", "map, guided_relevance", "rewriting, 2 steps"):
        time, memory, operators = rows[name]
        assert float(time) > 0
        assert float(memory) > 0
        assert int(operators.replace(",", "")) > 100
    parts = {name: float(cells[0]) for name, cells in rows.items() if name.startswith("evaluation, ")}
    assert parts.keys() >= {f"evaluation, {name}" for name in ("maps", "drift", "rewrite", "faithfulness")}
    assert all(part > 0 for part in parts.values())
    assert float(rows["**evaluation, all default monitors**"][0]) == pytest.approx(sum(parts.values()), abs=1)


def test_the_cases_have_the_tokens_that_they_are_called_after() -> None:
    for cases in (gpu.CASES, gpu.QUICK):
        assert {name: gpu.tokens_of(case) for name, case in cases.items()} == {name: int(name) for name in cases}


def test_what_is_counted() -> None:
    weights = torch.rand(64, 64)
    assert gpu.launches_of(lambda: weights @ weights, CPU) < gpu.launches_of(lambda: (weights @ weights).sin() + 1, CPU)
    assert gpu.peak_of(lambda: torch.zeros(1000, 1000), CPU) == pytest.approx(4_000_000, rel=0.01)
