"""What objects keep for themselves, however deep, put back in place and by identity."""

from __future__ import annotations

import io
import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_attngrad.state.keepers import (
    KeptBytes,
    KeptCell,
    KeptDict,
    KeptLength,
    KeptList,
    KeptPosition,
    KeptSet,
    KeptSlots,
    KeptTensor,
    same_objects,
)
from lightning_attngrad.state.kinds import (
    BUILT_IN_CONTAINERS,
    PLAIN,
    Kind,
    has_attributes,
    is_foreign_function,
    kind_of,
    reached_by,
    slots_of,
)
from lightning_attngrad.state.randomness import PrivateStream

#: A container with more entries is remembered by its length, and nobody looks into it.
LONGEST_CONTAINER = 4096
#: Of a container with more entries no tensor or array is copied.
MOST_COPIES = 64
#: A larger tensor or array is not copied, unless it is an attribute or buffer of a module.
LARGEST_COPY_BYTES = 2**20
#: So many entries of containers and attributes of objects are looked at, those nearest to the roots first.
MOST_ENTRIES = 200_000


class Keeper(Protocol):
    """One object remembered."""

    def restore(self) -> None:
        """Put it back as it was."""


class Holder(Keeper, Protocol):
    """One object remembered that holds others."""

    def lend(self, key: Any, value: Any) -> None:
        """Let it hold another value until it is restored."""


class Belongings:
    """The attributes of some objects and everything below them, remembered; and tensors lent as copies meanwhile.

    No object is copied. Each that can be written to is remembered by what it holds: attributes (``__dict__`` and
    ``__slots__``), dicts, lists, deques, sets, the variables of closures, bytearrays; random generators by their
    state, files that are read by their position. So each is itself again afterwards, however deep it lies. Tensors
    and numpy arrays are exchanged for copies, and the holder gets its own one back: what is written meanwhile is
    written into copies, and no graph hangs on a tensor of the model's. Parameters are not touched.

    Left alone: see :func:`lightning_attngrad.state.untouched`.

    Args:
        roots: objects to look at. Functions are looked at for their closures.
        modules: modules whose own tensors are lent whatever their size, and whose attributes are always looked at;
            their children are not looked up here, nor is what their hooks hold on to.
        leave_out: objects and containers that are nobody's business, or somebody else's.

    Attributes:
        hooks: the hooks of the modules.
    """

    def __init__(
        self,
        roots: Iterable[object] = (),
        *,
        modules: Iterable[nn.Module] = (),
        leave_out: Iterable[object] = (),
    ) -> None:
        self._keepers: list[Keeper] = []
        self.hooks: list[object] = []
        self._empty: list[Any] = []  # dicts and lists: by far most of the containers of a module
        self._seen: dict[int, object] = {id(item): item for item in leave_out}  # kept alive: no id is given twice
        self._copies: dict[int, Any] = {}  # by the id of the original: a cache shared by all blocks stays one tensor
        self._lent: list[tuple[dict[str, Any], str, Tensor, Tensor, int]] = []
        self._waiting: deque[object] = deque()
        self._entries_left = MOST_ENTRIES
        try:
            with torch.inference_mode(mode=False), torch.no_grad():
                for module in modules:
                    self._keep_module(module)
                self._waiting.extend(roots)
                self._keep_all_that_waits(set(map(id, self._waiting)))
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put everything back, also what has been lent.

        Raises:
            Exception: the first error of an object that could not be put back, when all others have been.
        """
        for container in self._empty:
            if container:
                container.clear()
        failure: Exception | None = None
        for keeper in self._keepers:
            try:
                keeper.restore()
            except Exception as error:  # noqa: PERF203  (no object may stand in the way of the others)
                failure = failure or error
        if failure is not None:
            raise failure

    def take_tensors_back(self) -> None:
        """Give the modules the copies again that were lent to them, with the values they had.

        Cheap: only version counters are read. It makes every pass begin with the same buffers, and lets go of graphs.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            for place, (held, name, first, copy, version) in enumerate(self._lent):
                if copy._version != version:
                    fresh = first.detach().clone()
                    self._lent[place] = (held, name, first, fresh, fresh._version)
                    held[name] = fresh
                elif held.get(name) is not copy:
                    held[name] = copy

    def begin_with_tensors_as_they_are(self) -> None:
        """Let `take_tensors_back` give what the copies hold now."""
        with torch.inference_mode(mode=False), torch.no_grad():
            for place, (held, name, _, copy, version) in enumerate(self._lent):
                if copy._version != version:
                    self._lent[place] = (held, name, copy.detach().clone(), copy, copy._version)

    # Looking around ---------------------------------------------------------------------------------------------

    def _keep_module(self, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        attributes = KeptDict(vars(module))
        self._keepers.append(attributes)
        for name, value in attributes.before.items():
            cls = type(value)
            if cls in PLAIN or id(value) in self._seen:
                continue
            if cls in BUILT_IN_CONTAINERS and not value:
                self._empty.append(value)
            elif name in _OF_A_MODULE and isinstance(value, dict):
                self._keep_part(value)
            elif "_hooks" in name and isinstance(value, dict):
                self.hooks.extend(value.values())
                self._keep_part(value)
            elif kind_of(cls) is Kind.TENSOR:
                self._lend_to_module(attributes.held, name, value)
            else:
                self._meet(attributes, name, value, many=False)
        if slots := slots_of(type(module)):
            self._keep_slots(module, slots)
        if isinstance(module, torch.jit.ScriptModule):
            self._keepers.extend(map(KeptTensor, module.buffers(recurse=False)))

    def _keep_part(self, part: dict[str, Any]) -> None:
        if id(part) in self._seen:
            return
        self._seen[id(part)] = part
        kept = KeptDict(part)
        self._keepers.append(kept)
        for name, value in kept.before.items():
            if isinstance(value, Tensor):
                self._lend_to_module(part, name, value)

    def _lend_to_module(self, held: dict[str, Any], name: str, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter) or is_lazy(tensor):
            return
        copy = self._copy(tensor)
        held[name] = copy
        self._lent.append((held, name, tensor, copy, copy._version))

    def _keep_all_that_waits(self, roots: set[int]) -> None:
        while self._waiting and self._entries_left > 0:
            item = self._waiting.popleft()
            if id(item) not in self._seen:
                self._keep(item, kind_of(type(item)), is_root=id(item) in roots)

    def _keep(self, item: Any, kind: Kind, *, is_root: bool) -> None:
        self._seen[id(item)] = item
        if kind is Kind.STREAM:
            self._keepers.append(PrivateStream(item))
        elif kind is Kind.BYTES:
            if len(item) <= LARGEST_COPY_BYTES:
                self._keepers.append(KeptBytes(item))
        elif kind is Kind.OPEN_FILE:
            self._keepers.append(KeptPosition(item))
        elif kind is Kind.FUNCTION:
            self._keep_function(item)
        elif kind in (Kind.METHOD, Kind.PARTIAL):
            self._waiting.extend(reached_by(item))
        elif kind in _CONTAINERS:
            self._keep_container(item, kind)
        if (kind in _WITH_ATTRIBUTES and type(item) not in BUILT_IN_CONTAINERS) or is_root:
            self._keep_attributes(item, is_root=is_root)

    def _keep_container(self, item: Any, kind: Kind) -> None:
        if len(item) > LONGEST_CONTAINER:
            if kind is not Kind.TUPLE:
                self._keepers.append(KeptLength(item))
            return
        many = len(item) > MOST_COPIES
        self._entries_left -= len(item)
        if kind is Kind.DICT:
            entries = KeptDict(item)
            self._keepers.append(entries)
            for key, value in entries.before.items():
                if type(value) not in PLAIN:
                    self._meet(entries, key, value, many=many)
        elif kind is Kind.LIST:
            items = KeptList(item)
            self._keepers.append(items)
            for place, value in enumerate(items.before):
                if type(value) not in PLAIN:
                    self._meet(items, place, value, many=many)
        else:
            if kind is Kind.SET:
                self._keepers.append(KeptSet(item))
            self._waiting.extend(value for value in item if type(value) not in PLAIN)

    def _keep_function(self, function: types.FunctionType) -> None:
        if is_foreign_function(function):
            return
        for variable in function.__closure__ or ():
            if id(variable) not in self._seen:
                self._seen[id(variable)] = variable
                cell = KeptCell(variable)
                self._keepers.append(cell)
                self._meet(cell, None, cell.before, many=False)
        self._waiting.extend(value for value in reached_by(function) if type(value) not in PLAIN)

    def _keep_attributes(self, item: Any, *, is_root: bool) -> None:
        if not has_attributes(type(item)):
            return
        # Not vars(): some objects pretend to be another one, or answer in their own way.
        attributes = object.__getattribute__(item, "__dict__") if type(item).__dictoffset__ else None
        slots = slots_of(type(item))
        holders: list[Any] = []
        if isinstance(attributes, dict):
            holders.append(KeptDict(attributes))
        if slots:
            holders.append(KeptSlots(item, slots))
        values = [value for holder in holders for value in holder.before.values() if type(value) not in PLAIN]
        kinds = {kind_of(type(value)) for value in values}
        if Kind.AT_WORK in kinds and not is_root:
            return
        files = [value for value in values if isinstance(value, io.IOBase)] if Kind.OPEN_FILE in kinds else []
        self._keepers.append(_KeptObject(holders, [] if is_root else files))
        self._entries_left -= sum(len(holder.before) for holder in holders)
        for holder in holders:
            for key, value in holder.before.items():
                if type(value) not in PLAIN:
                    self._meet(holder, key, value, many=False)

    def _keep_slots(self, item: Any, slots: tuple[types.MemberDescriptorType, ...]) -> None:
        kept = KeptSlots(item, slots)
        self._keepers.append(kept)
        for slot, value in kept.before.items():
            self._meet(kept, slot, value, many=False)

    def _meet(self, holder: Holder, key: Any, value: Any, *, many: bool) -> None:
        """Lend a copy of a value, or look at it later."""
        kind = kind_of(type(value))
        if kind in (Kind.TENSOR, Kind.ARRAY):
            if (copy := self._copy_if_small(value, many=many)) is not value:
                holder.lend(key, copy)
        elif type(value) is tuple or hasattr(type(value), "_make"):
            if len(value) <= MOST_COPIES:
                items = [self._copy_if_small(item, many=many) for item in value]
                if not same_objects(items, value):
                    # A tuple cannot be written to, so another one is lent; a named tuple has a constructor of its own.
                    holder.lend(key, tuple(items) if type(value) is tuple else type(value)._make(items))
            self._waiting.append(value)
        elif kind is not Kind.LEFT_ALONE:
            self._waiting.append(value)

    def _copy_if_small(self, value: Any, *, many: bool) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        kind = kind_of(type(value))
        if kind is Kind.TENSOR:
            if isinstance(value, nn.Parameter) or is_lazy(value):
                return value
            # One that was made in inference mode could enter no graph, so it is copied whatever its size.
            small = not many and value.numel() * value.element_size() <= LARGEST_COPY_BYTES
            if small or value.is_inference():
                return self._copy(value)
        elif kind is Kind.ARRAY and not many and value.nbytes <= LARGEST_COPY_BYTES and not value.dtype.hasobject:
            self._copies[id(value)] = value.copy()
            return self._copies[id(value)]
        return value

    def _copy(self, tensor: Tensor) -> Tensor:
        copy: Tensor | None = self._copies.get(id(tensor))
        if copy is None:
            copy = self._copies[id(tensor)] = tensor.detach().clone()
        return copy


class _KeptObject:
    """The attributes of an object, unless it has closed a file meanwhile that it held: it is past that then."""

    def __init__(self, holders: list[Any], files: list[io.IOBase]) -> None:
        self._holders = holders
        self._files = [file for file in files if not file.closed]

    def restore(self) -> None:
        if any(file.closed for file in self._files):
            return
        for holder in self._holders:
            holder.restore()


_CONTAINERS = (Kind.DICT, Kind.LIST, Kind.SET, Kind.TUPLE)
_WITH_ATTRIBUTES = (Kind.OBJECT, Kind.DICT, Kind.LIST, Kind.SET)
#: The dicts of a module that hold nothing to look into: its parameters are not touched, its children have their turn.
_OF_A_MODULE = frozenset({"_buffers", "_parameters", "_modules"})


@contextmanager
def untouched_objects(*roots: object) -> Iterator[None]:
    """Leave plain objects as they were: a data set, its transforms, a sampler, a collate function.

    Their attributes, and what these hold, are put back in place and by identity when the body ends, also when it
    raises: counters, containers, private random generators of torch, numpy and Python, variables of closures. A file
    handle or cache that a data set opens at its first item is thus dropped again; a handle inherited by forked workers
    would be shared between them.

    It costs no copy of the data: containers with more than 4,096 entries are remembered by their length, tensors and
    arrays above 1 MiB by their identity, and after 200,000 entries nobody looks further. What is left alone else, see
    :func:`untouched`. May be entered again inside itself.

    Args:
        roots: the objects. Modules among them are looked at like any object, their parameters are not.
    """
    belongings = Belongings(roots)
    try:
        yield
    finally:
        belongings.restore()
