"""A module left bit for bit as it was, whatever its forward pass writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_attngrad.state.belongings import Belongings
from lightning_attngrad.state.reentry import Holding, Register

_SHARDING_HOOKS = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


class SavedModules(Holding):
    """Everything that a forward pass can write into some modules, saved; and they evaluate meanwhile.

    Args:
        root: below which they lie.
        modules: those to save.
        others: those that are saved already.

    Attributes:
        wrote_gradients: whether, at the end, there was something in ``.grad`` of a parameter.

    Raises:
        ValueError: if a parameter is lazy or was made in inference mode.
    """

    def __init__(self, root: nn.Module, modules: list[nn.Module], others: list[nn.Module]) -> None:
        super().__init__(modules)
        self.wrote_gradients = False
        self._sharded = _sharded_parts(modules)
        for part in self._sharded:
            # After a forward the parameters may stand gathered, in memory that is freed when they are sharded again.
            part.reshard()
        parameters = list(root.parameters())
        if any(is_lazy(parameter) or parameter.is_inference() for parameter in parameters):
            _refuse_unusable_parameters(root)
        self._training = [(module, module.training) for module in modules]
        self._parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
        left_out: list[object] = [*others]
        if self._sharded:
            # FSDP registers these hooks once, in its first forward, which may be the body's: without them, state_dict()
            # would save gathered parameters.
            left_out += [vars(module).get(name) for module in modules for name in _SHARDING_HOOKS]
        self._belongings = Belongings(modules=modules, leave_out=left_out)
        self._of_hooks: Belongings | None = None
        try:
            for module, training in self._training:
                if training:
                    _set_training(module, False)
            for parameter, _, gradient in self._parameters:
                if gradient is not None:
                    parameter.grad = None  # nothing in the body can add to a gradient that is not there
        except BaseException:  # interrupted
            self.undo()
            raise

    def _with_those_below(self) -> Iterator[SavedModules]:
        """This one, and those of the other modules below the same root."""
        yield self
        for held in self.below:
            yield from held._with_those_below()

    def evaluate(self) -> list[nn.Module]:
        """Put those into evaluation mode that a body has put into training mode meanwhile; which these were."""
        woken = [module for held in self._with_those_below() for module in held.modules if module.training]
        for module in woken:
            _set_training(module, False)
        return woken

    def look_into_hooks(self) -> None:
        """Save also what forward hooks hold on to."""
        for held in self._with_those_below():
            if held._of_hooks is None:
                held._of_hooks = Belongings(held._belongings.hooks, leave_out=held.modules)

    def take_tensors_back(self) -> None:
        """Let the next pass begin with the buffers that the first one began with."""
        for held in self._with_those_below():
            held._belongings.take_tensors_back()

    def begin_with_tensors_as_they_are(self) -> None:
        """Let later passes begin with the buffers of now."""
        for held in self._with_those_below():
            held._belongings.begin_with_tensors_as_they_are()

    def undo(self) -> None:
        """Leave the modules as they were found."""
        self.wrote_gradients = any(parameter.grad is not None for parameter, _, _ in self._parameters)
        with ExitStack() as last_first:  # whatever fails, the rest is done
            last_first.callback(self._put_flags_back)
            last_first.callback(self._belongings.restore)
            if self._of_hooks is not None:
                last_first.callback(self._of_hooks.restore)
            for part in self._sharded:
                last_first.callback(part.reshard)

    def _put_flags_back(self) -> None:
        for parameter, flag, gradient in self._parameters:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
            parameter.grad = gradient
        # After the attributes, for modules that keep the flag elsewhere than in their __dict__ (scripted).
        for module, training in self._training:
            if module.training != training:
                _set_training(module, training)


def _set_training(module: nn.Module, flag: bool) -> None:
    """By attribute: users override train() and eval() with side effects, and these would reach children as well."""
    attributes = vars(module)
    if "training" in attributes:
        attributes["training"] = flag  # some microseconds faster than nn.Module.__setattr__, for each of hundreds
    else:
        module.training = flag


def _refuse_unusable_parameters(root: nn.Module) -> None:
    for name, parameter in root.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"model: parameter {name!r} of {type(root).__name__} has no shape yet, and nothing here may be the "
                "first to run a lazy module; run one forward pass before, for instance in configure_model()"
            )
        if parameter.is_inference():
            raise ValueError(
                f"model: parameter {name!r} of {type(root).__name__} was created in inference mode, so no gradient can "
                "pass it; build or load the model outside of torch.inference_mode(), in a Lightning run in "
                "configure_model() or with Trainer(inference_mode=False)"
            )


def _sharded_parts(modules: list[nn.Module]) -> list[Any]:
    """Modules that FSDP2 shards; there are none where nobody has loaded it."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if fsdp is None else [module for module in modules if isinstance(module, fsdp)]


_SAVED = Register(SavedModules)


@contextmanager
def saved_modules(root: nn.Module) -> Iterator[SavedModules]:
    """As :func:`untouched`, but what hooks hold on to keeps what they write into it."""
    with _SAVED.over(root) as saved:
        woken = saved.evaluate()
        try:
            yield saved
        finally:
            for module in woken:
                _set_training(module, True)
    if saved.wrote_gradients:
        raise RuntimeError(
            "untouched: the body wrote to .grad of the model's parameters (the gradients of the run were put back); "
            "use torch.autograd.grad instead of backward()"
        )


def passes_begin_as_it_is(root: nn.Module) -> None:
    """Let every later pass in the body of :func:`untouched` begin with the buffers that ``root`` has now.

    For whoever writes other values into them: :func:`held_still` would give back those from before. Outside of
    ``untouched`` there is nothing to do.
    """
    if (saved := _SAVED.holding(root)) is not None:
        saved.begin_with_tensors_as_they_are()


@contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """Let the body run ``root`` in evaluation mode, and leave the module bit for bit as it was found.

    Inside, every ``.training`` is False and every ``.grad`` None; buffers and other tensors of the modules are lent as
    copies. Put back afterwards, also when the body raises, in place and by identity:

    - ``.training`` of each module, ``requires_grad``, and the very same ``.grad`` objects;
    - buffers, torchmetrics state and all other attributes of the modules;
    - what lies in these, however deep: dicts, lists, deques, sets, tensors, numpy arrays, bytearrays, plain objects
      with ``__dict__`` or ``__slots__``, variables of closures, modules that are kept out of sight in a list; and what
      hooks hold on to;
    - private random generators of torch, numpy and Python, and how far an open file has been read.

    Left alone, as it cannot be put back or is no business of the module: what was written to files, consoles, loggers
    or other processes; iterators and generator functions; objects of C that are none of the above (caches of
    ``functools``, shared memory, database and reader handles); locks, threads, pools and whatever object holds one of
    the latter two; the Trainer, callbacks, loggers, optimizers and other objects of Lightning and torch; global
    variables and attributes of classes. For the sake of speed: containers of more than 4,096 entries are only cut back
    to their length; tensors and arrays above 1 MiB that lie deeper than in an attribute of a module, or in a container
    of more than 64, keep what is written into them; after 200,000 entries nobody looks further.

    May be entered again inside itself, for the same module or a part of it: that costs a look-up, and everything is put
    back when the outermost body ends. Random streams of the process are not its business: see :func:`seeded_rng`.

    Args:
        root: any module; in a Lightning run the LightningModule.

    Raises:
        ValueError: if a parameter is lazy or was made in inference mode.
        RuntimeError: after everything has been put back, if the body left gradients in ``.grad`` (``backward()``
            instead of ``torch.autograd.grad``).
    """
    with saved_modules(root) as saved:
        saved.look_into_hooks()
        yield
