"""Who may import whom (docs/architecture.md): arrows point down only, and the lower rooms need torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_attngrad

PACKAGE = Path(lightning_attngrad.__file__).parent

#: What each room may import of this package, beside itself.
MAY_IMPORT = {
    "version": set(),
    "state": set(),
    "attention": {"state"},
    # Results are drawn by `reporting`, which knows arrays and none of the other rooms; see the rule below.
    "explain": {"attention", "state", "reporting"},
    "rewrite": {"attention", "explain", "state", "reporting"},
    "guidance": {"attention", "explain", "state"},
    "models": set(),
    "metrics": {"attention", "explain", "rewrite", "state", "reporting"},
    "probe": {"attention", "explain", "rewrite", "state"},
    "reporting": set(),
    "measure": {"version", "attention", "explain", "rewrite", "metrics", "probe", "reporting", "state"},
    "callbacks": {"attention", "explain", "guidance", "rewrite", "metrics", "probe", "measure", "reporting", "state"},
    "demo": {"callbacks", "models", "probe", "reporting"},
    "audit": {"callbacks", "measure", "probe", "reporting"},
    "cli": {"audit", "demo", "callbacks", "reporting"},
    "callbacks_factory": {"callbacks"},
    "__init__": {"version", "attention", "callbacks", "explain", "guidance", "probe", "reporting", "rewrite"},
}
#: Rooms that may know Lightning.
KNOW_LIGHTNING = {"probe", "measure", "reporting", "callbacks", "demo", "audit", "cli", "callbacks_factory"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"}
#: What the lowest rooms may use beside the standard library and this package.
_BESIDE_TORCH = {"metrics": ("torchmetrics",), "models": ("timm",)}
ONLY_TORCH = {"state", "attention", "explain", "rewrite", "guidance", "metrics", "models"}


def _imports() -> list[tuple[str, str, int, str]]:
    """(room, file, line, imported module) of every import in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} imports relatively"
                module = node.module or ""
                names = [f"{module}.{alias.name}" for alias in node.names] if module == PACKAGE.name else [module]
            found += [(room, path.name, getattr(node, "lineno", 0), name) for name in names]
    return found


IMPORTS = _imports()


def test_every_room_has_its_rule() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    wrong = []
    for importer, file, line, module in IMPORTS:
        parts = module.split(".")
        if importer == room and parts[0] == PACKAGE.name and len(parts) > 1:
            below = parts[1]
            if below in MAY_IMPORT and below != room and below not in MAY_IMPORT[room]:
                wrong.append(f"{file}:{line} imports {module}")
    assert not wrong


def test_there_are_no_circles() -> None:
    def reach(room: str, seen: tuple[str, ...]) -> None:
        assert room not in seen, f"a circle: {' → '.join((*seen, room))}"
        for below in MAY_IMPORT[room]:
            reach(below, (*seen, room))

    for room in MAY_IMPORT:
        reach(room, ())


def _files() -> dict[str, Path]:
    """The files of the package by the name under which each is imported."""
    return {
        ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports_between_files(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which file imports which, wherever the import stands: in a function or for typing alone, it is counted."""
    found: dict[str, set[str]] = {}
    for importer, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import name`: a file of the package if there is one of that name, or its __init__.
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in files else node.module for name in whole}
        found[importer] = {name for name in names if name in files and name != importer}
    return found


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of files that reach one another."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        waiting, seen = [start], set()
        while waiting:
            for below in arrows[waiting.pop()] - seen:
                seen.add(below)
                waiting.append(below)
        reached[start] = seen
    groups = {tuple(sorted(other for other in reached[file] if file in reached[other])) for file in arrows}
    return [list(group) for group in sorted(groups) if group]


def test_no_file_imports_itself_by_a_detour() -> None:
    arrows = imports_between_files(_files())
    assert arrows[f"{PACKAGE.name}.state.still"] >= {f"{PACKAGE.name}.state.module"}  # it does see imports
    assert circles(arrows) == []


def test_circles_are_found(tmp_path: Path) -> None:
    texts = {
        "one": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from room.two import x",
        "two": "def later():\n    from room import three",
        "three": "import room.one",
        "four": "from room.one import x\nfrom room import name",
        "__init__": "from room.one import x",
    }
    files = {}
    for name, text in texts.items():
        files[f"room.{name}".removesuffix(".__init__")] = tmp_path / f"{name}.py"
        (tmp_path / f"{name}.py").write_text(text)
    assert circles(imports_between_files(files)) == [["room.one", "room.three", "room.two"]]


def test_only_upper_rooms_know_lightning() -> None:
    wrong = [
        f"{file}:{line} imports {module}"
        for room, file, line, module in IMPORTS
        if module.split(".")[0] in LIGHTNING and room not in KNOW_LIGHTNING
    ]
    assert not wrong


def test_the_lowest_rooms_need_torch_alone() -> None:
    wrong = [
        f"{file}:{line} imports {module}"
        for room, file, line, module in IMPORTS
        if room in ONLY_TORCH
        and (top := module.split(".")[0]) not in {"torch", PACKAGE.name, *_BESIDE_TORCH.get(room, ())}
        and top not in sys.stdlib_module_names
    ]
    assert not wrong


#: What rooms that need torch alone may load of `reporting`, and only where a result is drawn.
DRAWN_BY = {"figures", "distances", "perturbation", "rewriting", "saving", "style"}


def test_results_load_what_draws_them_only_when_they_are_drawn() -> None:
    for path in (file for room in ("explain", "rewrite", "metrics") for file in sorted((PACKAGE / room).rglob("*.py"))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}.reporting"):
                assert id(node) not in at_import, f"{path.name}:{node.lineno} loads figures with the room"
                assert node.module.rsplit(".", 1)[-1] in DRAWN_BY, f"{path.name}:{node.lineno} imports {node.module}"


@pytest.mark.parametrize("name", sorted(DRAWN_BY))
def test_what_draws_results_knows_no_lightning(name: str) -> None:
    program = f"import sys, lightning_attngrad.reporting.{name}; print(*sorted({LIGHTNING!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


def test_no_file_is_called_utils() -> None:
    assert not [path for path in PACKAGE.rglob("*.py") if "util" in path.stem or "helper" in path.stem]


def test_explaining_runs_where_lightning_is_not_installed() -> None:
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "pytorch_lightning", "matplotlib", "timm"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
import lightning_attngrad as attngrad
from lightning_attngrad.metrics.functional import map_entropy
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 16, 8, 8)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    def forward(self, images):
        return self.layer(self.embed(images).flatten(2).mT).mean(1)
explanation = attngrad.explain(Tiny(), torch.rand(2, 3, 32, 32))
assert explanation.heatmap.shape == (2, 4, 4)
assert torch.isfinite(map_entropy(explanation.heatmap)).all()
print("explained")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "explained", done.stderr


def test_every_public_name_is_there() -> None:
    for name in lightning_attngrad.__all__:
        assert getattr(lightning_attngrad, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        lightning_attngrad.Nothing  # noqa: B018
