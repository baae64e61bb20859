"""The user's code: found by its import path or in a LightningCLI config, and called with the right arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]
from lightning.fabric.utilities.data import AttributeDict

from lightning_attngrad.audit.options import AuditError

#: Keys of a checkpoint: the arguments that were saved, and the name of the one that holds them all, if there is such.
_SAVED_UNDER = {
    "model": ("hyper_parameters", "hparams_name"),
    "data": ("datamodule_hyper_parameters", "datamodule_hparams_name"),
}
#: How a file begins that a run of LightningCLI wrote.
_WRITTEN_BY_A_RUN = ("# lightning.pytorch==", "# pytorch_lightning==")
_INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")


class SavedConfig(dict[str, Any]):
    """A config as LightningCLI writes it: every argument stands in it, but those that ``link_arguments`` fills in."""


@dataclass(frozen=True)
class Recipe:
    """How a LightningModule or its data are made.

    Attributes:
        part: ``model`` or ``data``, as in a config.
        target: a class, or a function.
        configured: arguments from the config; None if there is none.
        given: arguments from the command line.
        complete: whether the config is one in which every argument stands that is not linked to another.
    """

    part: Literal["model", "data"]
    target: Callable[..., Any]
    configured: Mapping[str, Any] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False

    def make(self, checkpoint: Mapping[str, Any]) -> Any:
        """Call the target.

        Arguments come from the checkpoint; those of the config win over them, and those of the command line over both.

        Args:
            checkpoint: from which saved arguments are taken.

        Raises:
            AuditError: if an argument is missing, or the code fails.
        """
        saved, instantiator = self._saved(checkpoint)
        arguments = {**saved, **(self.configured or {}), **self.given}
        typed = isinstance(self.target, type) and (instantiator or self.configured is not None)
        linked = _at_default(self.target, arguments) if self.complete else {}
        if missing := _missing(self.target, arguments):
            raise AuditError(self._what_is_missing(missing, linked))
        if linked:
            raise AuditError(self._what_was_linked(linked))
        try:
            return _instantiated(self.target, arguments) if typed else self.target(**arguments)
        except Exception as error:
            raise AuditError(f"--{self.part}: {self.name} could not be made: {describe(error)}") from error

    def _saved(self, checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments that a checkpoint holds, and whether LightningCLI has to make something of them."""
        key, name_key = _SAVED_UNDER[self.part]
        saved = dict(checkpoint.get(key) or {})
        instantiator = saved.pop("_instantiator", None)
        saved.pop("_class_path", None)  # the class is the one that the user named
        if instantiator is not None and instantiator not in _INSTANTIATORS:
            raise AuditError(
                f"the checkpoint asks to be made by {instantiator!r}, which is no part of Lightning: refused, as that "
                "may be any code"
            )
        kinds = {name: parameter.kind for name, parameter in _parameters(self.target).items()}
        whole = checkpoint.get(name_key)
        if instantiator is None and whole != "kwargs" and whole in kinds:  # as in save_hyperparameters(conf)
            return {str(whole): AttributeDict(saved)}, False
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            saved = {name: value for name, value in saved.items() if name in kinds}
        return saved, instantiator is not None

    @property
    def name(self) -> str:
        return getattr(self.target, "__qualname__", repr(self.target))

    def _what_was_linked(self, defaults: Mapping[str, Any]) -> str:
        return (
            f"--{self.part}: the config holds no {', '.join(defaults)}, as LightningCLI leaves out what link_arguments "
            f"fills in: the run may have had another value than the default of {self.name}. Say which it was: "
            f"{self._flags(defaults)}, or another"
        )

    def _flags(self, values: Mapping[str, Any]) -> str:
        return " ".join(f"--{self.part}-arg {name}={value}" for name, value in values.items())

    def _what_is_missing(self, names: Sequence[str], linked: Mapping[str, Any]) -> str:
        flags = self._flags(dict.fromkeys(names, "…"))
        if self.configured is not None:
            also = f"; and say, where it was another than the default, {self._flags(linked)}" if linked else ""
            return (
                f"--{self.part}: {self.name} needs {', '.join(names)}, which neither the checkpoint nor the config "
                f"holds: LightningCLI leaves out of a saved config what link_arguments fills in. Give {flags}{also}"
            )
        return (
            f"--{self.part}: {self.name} needs {', '.join(names)}, which the checkpoint does not hold. Give {flags}, "
            f"or --config with the run's LightningCLI config; for an object such as a network, give --{self.part} a "
            "function without arguments that makes it all. self.save_hyperparameters() in __init__ saves plain "
            "arguments in the checkpoints of the next run"
        )


def find_recipe(
    part: Literal["model", "data"], path: str | None, config: Mapping[str, Any] | None, given: Sequence[str]
) -> Recipe | None:
    """Find out how a part is made.

    Args:
        part: ``model`` or ``data``.
        path: import path of the target; None takes the class that the config names.
        config: from `read_config`.
        given: ``NAME=VALUE``, with values as in YAML.

    Returns:
        The recipe; None where nothing names the data.

    Raises:
        AuditError: if the target cannot be imported, or nothing names the model.
    """
    section = None if config is None else config.get(part)
    if isinstance(section, str):
        section = {"class_path": section}
    if section is not None and not isinstance(section, Mapping):
        raise AuditError(f"--config: its {part} is a {type(section).__name__}; expected class_path and init_args")
    if path is None and section is not None:
        path = section.get("class_path")
    arguments = {} if section is None else section
    if "class_path" in arguments:
        arguments = {**(arguments.get("init_args") or {}), **(arguments.get("dict_kwargs") or {})}
    if path is None:
        if part == "data" and not given and not arguments:
            return None
        raise AuditError(
            f"--{part}: the config names no class_path, as those of a LightningCLI with fixed classes do not; "
            f"name the class, as in --{part} train.py:Class"
            if part == "model" or arguments
            else "--data-arg: there is no --data that they are of"
        )
    configured = None if section is None else arguments
    complete = section is not None and isinstance(config, SavedConfig)
    return Recipe(part, import_target(path, f"--{part}"), configured, _values(given), complete)


def import_target(path: str, flag: str) -> Callable[..., Any]:
    """Import a class or a function.

    Modules are looked for in the working directory too, and those that a file imports beside it.

    Args:
        path: ``package.module.Name`` or ``path/to/file.py:Name``.
        flag: for messages.

    Raises:
        AuditError: if there is none, or importing it fails.

    Example:
        >>> import_target("torch.nn.Linear", "--model")
        <class 'torch.nn.modules.linear.Linear'>
    """
    file, _, name = path.rpartition(":")
    if not file:
        file, _, name = path.rpartition(".")
    if not file or not name:
        raise AuditError(f"{flag}: got {path!r}; expected package.module.Name or path/to/file.py:Name")
    try:
        module = _module_of_file(Path(file), flag) if file.endswith(".py") else _module(file)
    except ModuleNotFoundError as error:
        raise AuditError(f"{flag}: {path} cannot be imported, there is no module {error.name!r}") from error
    except AuditError:
        raise
    except Exception as error:
        raise AuditError(f"{flag}: {file} cannot be imported: {describe(error)}") from error
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            raise AuditError(f"{flag}: there is no {name!r} in {file}")
        target = getattr(target, part)
    if not callable(target):
        raise AuditError(f"{flag}: {path} is a {type(target).__name__}; expected a class or a function")
    found: Callable[..., Any] = target
    return found


def read_config(path: Path | None) -> dict[str, Any] | None:
    """Read a LightningCLI config; one with a section for each command is read for ``fit``.

    Returns:
        The config; a `SavedConfig` where a run wrote it.

    Raises:
        AuditError: if it cannot be read, or has no ``model`` and no ``data``.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AuditError(f"--config: {path} cannot be read: {describe(error)}") from error
    if isinstance(config, dict) and not {"model", "data"} & config.keys() and isinstance(config.get("fit"), dict):
        config = config["fit"]
    if not isinstance(config, dict) or not {"model", "data"} & config.keys():
        raise AuditError(f"--config: {path} has no model and no data; expected the config of a LightningCLI run")
    return SavedConfig(config) if text.startswith(_WRITTEN_BY_A_RUN) else config


def describe(error: BaseException) -> str:
    """An error in one line, with the place where it was raised."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text:.600}{place}"


def _module(name: str) -> Any:
    _search(Path.cwd())
    return importlib.import_module(name)


def _module_of_file(file: Path, flag: str) -> Any:
    if not file.is_file():
        raise AuditError(f"{flag}: there is no file {file}")
    _search(file.absolute().parent)
    known = sys.modules.get(file.stem)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").absolute() == file.absolute():
            return known  # --model and --data are often in one file
        raise AuditError(f"{flag}: a module called {file.stem!r} is loaded already; give {file} another name")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise AuditError(f"{flag}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # as dataclasses and worker processes need it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _values(given: Sequence[str]) -> dict[str, Any]:
    pairs = (argument.partition("=") for argument in given)
    try:
        return {name: yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise AuditError(
            f"--model-arg, --data-arg: expected NAME=VALUE with a value of YAML: {describe(error)}"
        ) from error


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # of a class that is not written in Python, which may take anything
        return {"anything": inspect.Parameter("anything", inspect.Parameter.VAR_KEYWORD)}


def _missing(target: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in _parameters(target).items()
        if parameter.default is parameter.empty and parameter.kind not in variable and name not in arguments
    ]


def _at_default(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are not there and would be their defaults; private ones no config holds."""
    return {
        name: parameter.default
        for name, parameter in _parameters(target).items()
        if parameter.default is not parameter.empty and name not in arguments and not name.startswith("_")
    }


def _instantiated(target: Any, arguments: dict[str, Any]) -> Any:
    """As LightningCLI does: values are converted by their types, and nested classes made."""
    from lightning.pytorch.cli import instantiate_module  # noqa: PLC0415

    return instantiate_module(target, arguments)
