"""Pickles, read without running what is in them: the metadata of checkpoints, and objects beside tensors.

Plain values and instances of known types are built, nothing else. Each step is checked before it is done:
what is called, with which arguments, whose attributes are set, what is hashed, and how deep values are. So a
pickle that is refused has changed no module, no class and no other shared object.
"""

from __future__ import annotations

import collections
import gc
import io
import os
import pickle
import sys
import types
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch._weights_only_unpickler import _get_allowed_globals

from s3torch.dcp._known import (
    CALLS,
    CLASSES,
    MADE_EMPTY,
    PLAIN_STATE,
    TORCH_VALUES,
    VALUES,
    UnsafeError,
    check_depth,
    check_key,
    items_of,
    member_of,
    rebuild,
    set_numpy_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LONGEST_NAME = 200
_ZIP = b"PK\x03\x04"
# What archives of TorchScript have, for which torch.load is another program.
_SCRIPT = b"constants.pkl"
# The steps that are left to Python's own unpickler; what the protocols before the second had is not needed.
_STEPS = {
    *(pickle.PROTO, pickle.STOP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.LONG4),
    *(pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MARK, pickle.POP, pickle.DUP),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID, pickle.POP_MARK),
}


class SafeUnpickler(pickle._Unpickler):
    """Reads pickles without running what is in them.

    Args:
        file: Has the pickle, and is read whole.
        safe_globals: Classes and functions that may be used freely, as ``torch.load`` takes them; with
            ``None`` those do not count that ``torch.serialization.add_safe_globals`` was given, either.
        tensors: Tensors may be built, too.

    Raises:
        UnsafeError: There is something that is not known to be harmless.
        Exception: The pickle is damaged.
    """

    memo: dict[int, Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: Any,
        *,
        safe_globals: Iterable[Any] | None = (),
        tensors: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        self._content = io.BytesIO(file.read())
        super().__init__(self._content, encoding=encoding)
        self._tensors = tensors
        more = () if safe_globals is None else (*torch.serialization.get_safe_globals(), *safe_globals)
        self._allowed = dict(map(_named, more))
        # By their identity, as many cannot be hashed.
        self._calls: dict[int, Callable[..., Any]] = {}
        self._free = {id(value) for value in self._allowed.values()}

    def load(self) -> Any:
        """Returns what was pickled."""
        self._unframer = self._content
        self.read, self.readline, self.readinto = (
            self._content.read,
            self._content.readline,
            self._content.readinto,
        )
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        try:
            with _no_collection():
                self._run(self.read, self.memo, self.dispatch)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value

    def _run(self, read: Callable[[int], bytes], memo: dict[int, Any], dispatch: dict[int, Any]) -> None:
        """Does one step after the other; what most of them are is done at the place."""
        stack, memoize, get, long_get = self.stack, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET
        put, number, text, empty = pickle.BINPUT, pickle.BININT1, pickle.SHORT_BINUNICODE, pickle.EMPTY_DICT
        while True:
            code = read(1)
            if code == memoize:
                memo[len(memo)] = stack[-1]
            elif code == get:
                stack.append(memo[read(1)[0]])
            elif code == long_get:
                stack.append(memo[int.from_bytes(read(4), "little")])
            elif code == put:
                memo[read(1)[0]] = stack[-1]
            elif code == number:
                stack.append(read(1)[0])
            elif code == text:
                stack.append(str(read(read(1)[0]), "utf-8", "surrogatepass"))
            elif code == empty:
                stack.append({})
            elif code:
                dispatch[code[0]](self)
                stack = self.stack
            else:
                raise EOFError("it ends early")

    def find_class(self, module: str, name: str) -> Any:
        """Returns what may be named; what may be called is noted."""
        # Protocols before the third have the names of Python 2.
        module, name = pickle._compat_pickle.NAME_MAPPING.get((module, name), (module, name))  # type: ignore[attr-defined]
        module = pickle._compat_pickle.IMPORT_MAPPING.get(module, module)  # type: ignore[attr-defined]
        path = f"{module}.{name}"[:_LONGEST_NAME]
        if path in self._allowed:
            return self._allowed[path]
        if path in CLASSES:
            return CLASSES[path]
        if path.startswith("numpy.") and "numpy" not in sys.modules:
            raise UnsafeError(f"{path}, and there is no numpy", path)
        if path in CALLS:
            return self.may_call(VALUES.get(path, CALLS[path]), CALLS[path])
        if path in VALUES:
            return VALUES[path]
        if module == "torch" and isinstance(value := getattr(torch, name, None), TORCH_VALUES):
            return value
        if path == "numpy.ndarray":
            return sys.modules["numpy"].ndarray
        if (value := self._from_torch(path)) is not None or (
            value := self._enumeration(module, name)
        ) is not None:
            return value
        raise UnsafeError(f"{path}, which is not known to be harmless", path)

    def may_call(self, value: Any, call: Callable[..., Any] | None = None) -> Any:
        """Returns what may be called from now on, or in the place of which something is called."""
        self._calls[id(value)] = call or value
        return value

    def _from_torch(self, path: str) -> Any:
        """Returns what ``torch.load`` allows, too; of that, the functions that make tensors may be called."""
        value = _get_allowed_globals().get(path) if self._tensors else None
        if not isinstance(value, types.FunctionType):
            return value
        return self.may_call(value, rebuild if value is torch._tensor._rebuild_from_type_v2 else value)

    def _enumeration(self, module: str, name: str) -> Any:
        """Returns an enumeration of the program, whose members are looked up and not made."""
        value: Any = sys.modules.get(module)
        for part in name.split("."):
            value = getattr(value, "__dict__", {}).get(part)
        if isinstance(value, type) and issubclass(value, Enum) and value.__members__:
            return self.may_call(value, member_of(value))
        return None

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if id(function) in self._free:
            self.stack[-1] = function(*args)
            return
        call = self._calls.get(id(function))
        if call is None or type(args) is not tuple or any(type(arg) is range for arg in args):
            raise UnsafeError(f"a call of {getattr(function, '__qualname__', type(function).__name__)}")
        self.stack[-1] = call(*args)

    def load_newobj(self, keywords: dict[str, Any] | None = None) -> None:
        args = self.stack.pop()
        kind = self.stack.pop()
        if id(kind) in self._free:
            self.append(kind.__new__(kind, *args, **(keywords or {})))
        elif id(kind) in MADE_EMPTY and not args and not keywords:
            self.append(kind.__new__(kind))
        else:
            raise UnsafeError(f"an instance of {getattr(kind, '__qualname__', type(kind).__name__)}")

    def load_newobj_ex(self) -> None:
        self.load_newobj(self.stack.pop())

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        kind = type(target)
        if kind in PLAIN_STATE:
            if hasattr(kind, "__setstate__"):
                target.__setstate__(state)
            elif type(state) is dict and set(map(type, state)) <= {str}:
                vars(target).update(state)
            else:
                raise UnsafeError(f"attributes of a {kind.__qualname__} that have no names")
        elif id(kind) in self._free:
            self.stack.append(state)
            pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type] # It is one.
        elif kind.__module__.partition(".")[0] == "numpy":
            set_numpy_state(target, state)
        else:
            raise UnsafeError(f"attributes of a {kind.__qualname__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key], [value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set_items(items[::2], items[1::2])

    def _set_items(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnsafeError(f"items of a {type(target).__name__}")
        for key in keys:
            if type(key) is not str:
                check_key(key)
        if type(target) is dict:
            target.update(zip(keys, values, strict=True))
        else:
            # Other classes have their own way to add each.
            for key, value in zip(keys, values, strict=True):
                target[key] = value

    def load_append(self) -> None:
        self._add_items([self.stack.pop()])

    def load_appends(self) -> None:
        self._add_items(self.pop_mark())

    def _add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list or type(target) is collections.deque:
            target.extend(items)
        elif type(target) is set:
            target.update(items_of(list)(items))
        else:
            raise UnsafeError(f"items of a {type(target).__name__}")

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(items_of(frozenset)(items))

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    def load_frame(self) -> None:
        # The whole pickle is at hand, so its pieces are of no interest.
        self.read(8)

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("a pickle instruction that torch never writes")

    dispatch: ClassVar[dict[int, Any]] = dict.fromkeys(range(256), load_refused) | {
        code: method for code, method in pickle._Unpickler.dispatch.items() if bytes([code]) in _STEPS
    }
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_appends,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.FRAME[0]: load_frame,
    }


def _named(known: Any) -> tuple[str, Any]:
    if isinstance(known, tuple):
        return known[1], known[0]
    return f"{known.__module__}.{known.__qualname__}", known


@contextmanager
def _no_collection() -> Iterator[None]:
    """Looking for garbage, again and again, would take longer than to build what is none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def safe_archive(body: bytes, safe_globals: Iterable[Any]) -> bytes:
    """Reads what ``torch.save`` wrote without running what is in it, and returns it written again.

    Whatever reads the result, ``torch.load`` with ``weights_only=False`` too, finds in it just what was built
    here.

    Raises:
        UnsafeError: There is something that is not known to be harmless.
        Exception: The archive is damaged.
    """
    if not body.startswith(_ZIP) or _SCRIPT in body:
        raise UnsafeError("something other than a torch.save archive")

    class Unpickler(SafeUnpickler):
        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, safe_globals=safe_globals, tensors=True, **options)

    options: dict[str, Any] = {"weights_only": True}
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0") not in {"1", "y", "yes", "true"}:
        module = types.SimpleNamespace(__name__=__name__, Unpickler=Unpickler)
        options = {"weights_only": False, "pickle_module": module}
    try:
        value = torch.load(io.BytesIO(body), **options)
    except BaseException:
        # What torch would look at when the next one is loaded.
        torch._utils._sparse_tensors_to_validate.clear()
        raise
    check_depth(value)
    again = io.BytesIO()
    torch.save(value, again)
    return again.getvalue()
