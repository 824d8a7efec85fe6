"""The walk over the heap: every object once, with its references, as columns of numbers.

Theory. The collector knows every container (``gc.get_objects()``); what it does not know
(strings, numbers, untracked tuples) is found through the references of those. A bitmap of
addresses keeps the shared ones from being written twice. Objects are taken in chunks and each
chunk is sorted by type, so that most of the work is done by a few calls in C for many objects.

No code but the interpreter's own runs: see :mod:`leakhunt.agent.heap_types`. Nothing that is
read leaves as a value: addresses, sizes, numbers of types and of labels do.

The reference count of each object is written without the references that this walk holds: one
that is larger than the number of edges to the object means that something outside of the graph
holds it (C code, a running frame's stack). So every reference that is taken here is accounted
for; mind that when changing anything.
"""

from __future__ import annotations

import gc
import sys
import types
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextvars import Context, ContextVar
from itertools import filterfalse, islice, repeat
from typing import Any, Final

from leakhunt.agent.heap_labels import NAMES_LIMIT, TEXT_LIMIT, Labels
from leakhunt.agent.heap_types import (
    EMPTY_DICT,
    MANAGED_DICT,
    Kind,
    Role,
    TypePlan,
    get_base,
    get_bases,
    get_class_dict,
    get_mro,
    is_own,
)

CHUNK: Final = 1 << 16
"""Objects that are sorted by type and walked together."""

BLOCK: Final = 1 << 18
"""Objects or edges after which the columns are written out."""

BIG: Final = 0xFFFFFFFF
"""In a column of sizes: too large, see ``large``. Of reference counts: immortal."""

TRACKED: Final = 1
OWN: Final = 4
FROZEN: Final = 8

Write = Callable[[bytes, "array[int]"], None]

_COLUMNS: Final = {
    b"oid ": "Q", b"otyp": "I", b"osiz": "I", b"olen": "I", b"oref": "I", b"ocnt": "I",
    b"oflg": "B", b"edst": "Q", b"elab": "I",
}  # fmt: skip
"""Tag of a column's blocks -> type code of its numbers."""

_IMMORTAL: Final = 0x3FFFFFFF
_DESCRIPTORS: Final = frozenset(map(id, (types.MemberDescriptorType, types.GetSetDescriptorType)))
_ONLY_STR: Final = {id(str)}
_KEEPS_VALUES: Final = sys.version_info >= (3, 13)
"""Since 3.13 an instance keeps its values when its dictionary is made, and visits them alone."""

_get_referents = gc.get_referents
_getrefcount = sys.getrefcount
OWN_DIRECTORY: Final = __file__.rpartition("/")[0].rpartition("/")[0] + "/"


def _held_by_a_list() -> int:
    """What ``map(getrefcount, list)`` counts for an object that only that list holds."""
    probes = [[] for _ in range(3)]  # type: ignore[var-annotated]
    return list(map(_getrefcount, probes))[1]


def _held_by_a_local() -> int:
    """What ``getrefcount`` says of an object that only a local variable holds."""
    probe: list[int] = []
    return _getrefcount(probe)


_FRESH: Final = _held_by_a_local() + 1
"""What it says of an instance's dictionary that was made just now."""


class Bitmap:
    """A set of addresses that takes a bit for each 16 bytes of the memory they lie in."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add_new(self, found: dict[int, Any], addresses: Iterable[int]) -> None:
        """Add addresses; those that were there already are taken out of ``found``."""
        pages = self._pages
        for address in addresses:
            page = pages.get(address >> 20)
            if page is None:
                page = pages[address >> 20] = bytearray(8192)
            place, bit = (address >> 7) & 8191, 1 << ((address >> 4) & 7)
            if page[place] & bit:
                del found[address]
            else:
                page[place] |= bit


class Walk:
    """One walk. Make it *after* ``gc.get_objects()``: so it does not see itself.

    Args:
        write: takes a block's tag and its numbers, again and again.
        keys: see :class:`~leakhunt.agent.heap_labels.Labels`.
        exclude: addresses that are not to be written: what was made for this capture.
        own: addresses of containers that are leakhunt's.
        on_role: gets each object that belongs to an event loop, with its role.
    """

    def __init__(
        self,
        write: Write,
        *,
        keys: bool = False,
        exclude: Container[int] = (),
        own: set[int] | None = None,
        on_role: Callable[[Any, Role], None] | None = None,
    ) -> None:
        self.labels = Labels(keys=keys)
        self.plans: dict[int, TypePlan] = {}
        self.objects = 0
        self.edges = 0
        self.large: dict[int, int] = {}
        """Number of an object -> its size, where that is too large for the column."""
        self.problems: Counter[str] = Counter()
        self.named: array[int] = array("Q")
        """Addresses of coroutines, generators, frames and closures, ..."""
        self.names: list[str] = []
        """... and the name of each one's function."""
        self._write = write
        self._exclude = exclude
        self._own: set[int] = set() if own is None else own
        self._on_role = on_role
        self._held: dict[int, int] = {}
        self._columns = {tag: array(code) for tag, code in _COLUMNS.items()}
        self._namespaces: dict[int, bool] = {}
        """Address of a dictionary with names in it -> whether it is an instance's."""
        self._shared: set[int] = set()
        """Addresses of dictionaries whose values are an instance's."""
        self._closures: dict[int, tuple[str, ...]] = {}
        """Address of a closure's tuple -> the names of its variables."""
        self._seen = Bitmap()
        self._dicts: list[Any] = []
        self._tuples: list[Any] = []
        self._untracked: list[Any] = []
        self._base = _held_by_a_list()
        self._inline = 0
        """Bytes of the attributes of the object at hand that lie beside it."""
        self._own_now: set[int] = set()
        """Addresses of objects in the bucket at hand that are ours though their type is not."""

    def run(self, objects: list[Any], frozen_from: int | None = None) -> None:
        """Walk everything.

        Args:
            objects: what ``gc.get_objects()`` gave; nothing else may hold its items.
            frozen_from: position from which on they are frozen, if any are.
        """
        limit = len(objects) if frozen_from is None else frozen_from
        stream = iter(objects)
        # Tuples and dictionaries come last: by then it is known which are closures and
        # namespaces. Frozen objects are walked by themselves, as they carry a flag.
        for count, flags in ((limit, TRACKED), (len(objects) - limit, TRACKED | FROZEN)):
            for part in _parts(stream, count):
                self._walk_buckets(part, flags, held=1)
            for deferred in (self._tuples, self._dicts):
                for start in range(0, len(deferred), CHUNK):
                    # Held by the list of all objects, the deferred list and this slice.
                    self._bucket(deferred[start : start + CHUNK], flags, held=2)
            self._tuples, self._dicts = [], []
        while self._untracked:
            batch, self._untracked = self._untracked, []
            self._walk_buckets({0: batch}, 0, held=0)
        self._flush(all_of_it=True)

    # --- by type --------------------------------------------------------------------------

    def _walk_buckets(self, buckets: dict[int, list[Any]], flags: int, held: int) -> None:
        """Walk lists of objects of one type each, and of any type under the key 0."""
        mixed = buckets.pop(0, None)
        if mixed is not None:
            for obj in mixed:
                kind = id(type(obj))
                if kind in buckets:
                    buckets[kind].append(obj)
                else:
                    buckets[kind] = [obj]
            mixed.clear()
            obj = None
        while buckets:
            _, bucket = buckets.popitem()
            first = type(bucket[0])
            if flags and first is dict:
                self._dicts += bucket
            elif flags and first is tuple:
                self._tuples += bucket
            else:
                while len(bucket) > CHUNK:
                    part = bucket[-CHUNK:]
                    del bucket[-CHUNK:]
                    self._bucket(part, flags, held)
                self._bucket(bucket, flags, held)

    def _plan(self, kind: type) -> TypePlan:
        plan = self.plans.get(id(kind))
        if plan is None:
            plan = TypePlan(len(self.plans), kind, self.labels, self._held)
            self.plans[id(kind)] = plan
        return plan

    def _bucket(self, bucket: list[Any], flags: int, held: int) -> None:
        plan = self._plan(type(bucket[0]))
        if plan.kind in (Kind.DICT, Kind.ITEMS) and self._exclude:
            exclude = self._exclude
            bucket[:] = [obj for obj in bucket if id(obj) not in exclude]
            if not bucket:
                return
        counts = self._refcounts(plan, bucket, held)
        if plan.role and self._on_role is not None:
            for obj in bucket:
                self._on_role(obj, plan.role)
            obj = None
        out: list[Any] = []
        extra = None
        refs: array[int] = array("I")
        labels: array[int] = array("I")
        match plan.kind:
            case Kind.LEAF:
                refs = array("I", bytes(4 * len(bucket)))
            case Kind.ITEMS:
                self._items(plan, bucket, out, refs, labels)
            case Kind.DICT:
                self._dictionaries(bucket, out, refs, labels)
            case Kind.PLAIN:
                extra = self._plain(plan, bucket, out, refs, labels)
            case Kind.OTHER:
                self._unnamed(plan, bucket, out, refs, labels)
            case Kind.FRAME:
                self._frames(plan, bucket, out, refs, labels)
            case Kind.CLASS:
                self._classes(plan, bucket, out, refs, labels)
            case _:
                extra = self._named(plan, bucket, out, refs, labels)
        if self._own_now:
            own = self._own_now
            marks = array("B", [flags | OWN if id(obj) in own else flags for obj in bucket])
            own.clear()
        elif plan.kind in (Kind.DICT, Kind.ITEMS) or plan.module == "collections":
            own_containers = self._own
            marks = array(
                "B", [flags | OWN if id(obj) in own_containers else flags for obj in bucket]
            )
        else:
            marks = array("B", [flags | OWN if plan.own else flags]) * len(bucket)
        columns = self._columns
        columns[b"oid "].extend(map(id, bucket))
        columns[b"otyp"].extend(array("I", [plan.number]) * len(bucket))
        columns[b"osiz"].extend(self._sizes(plan, bucket, extra))
        columns[b"olen"].extend(
            array("I", map(len, bucket)) if plan.sized else array("I", bytes(4 * len(bucket)))
        )
        columns[b"oref"].extend(refs)
        columns[b"ocnt"].extend(counts)
        columns[b"oflg"].extend(marks)
        columns[b"edst"].extend(map(id, out))
        columns[b"elab"].extend(labels)
        self.objects += len(bucket)
        self.edges += len(labels)
        bucket.clear()
        leaves = self._leaves(out) if out else None
        del out
        if len(columns[b"oid "]) >= BLOCK or len(columns[b"edst"]) >= BLOCK:
            self._flush()
        if leaves:
            self._walk_leaves(leaves)

    def _leaves(self, out: list[Any]) -> dict[int, Any]:
        """The objects that the collector does not list, once each within these."""
        untracked = list(filterfalse(gc.is_tracked, out))
        return dict(zip(map(id, untracked), untracked, strict=True))

    def _walk_leaves(self, found: dict[int, Any]) -> None:
        # Whatever is referred to once only cannot be found again; the others are remembered.
        # Tuples and dictionaries always are: one is walked for each time that it is found.
        alone = self._base + 2  # the list that is counted, the dictionary, and one container
        objects = list(found.values())
        shared = [
            address
            for address, count, kind in zip(
                found, map(_getrefcount, objects), map(type, objects), strict=True
            )
            if count > alone or kind is tuple or kind is dict
        ]
        objects.clear()
        self._seen.add_new(found, shared)
        containers = []
        buckets: dict[int, list[Any]] = {}
        while found:
            _, obj = found.popitem()
            kind = type(obj)
            if id(kind) in buckets:
                buckets[id(kind)].append(obj)
            elif self._plan(kind).is_gc:
                containers.append(obj)
            else:
                buckets[id(kind)] = [obj]
        obj = None
        # Untracked containers wait: going down into each at once might go deep.
        self._untracked += containers
        containers.clear()
        while buckets:
            _, bucket = buckets.popitem()
            self._bucket(bucket, 0, held=0)

    # --- columns --------------------------------------------------------------------------

    def _refcounts(self, plan: TypePlan, bucket: list[Any], held: int) -> array[int]:
        base = self._base + held
        found = [
            count - base if base < count < _IMMORTAL else (0 if count <= base else BIG)
            for count in map(_getrefcount, bucket)
        ]
        if plan.kind is Kind.CLASS or id(plan.type) in _DESCRIPTORS:  # our plans hold some of them
            mine = self._held
            found = [
                count if count == BIG else max(count - mine.get(id(obj), 0), 0)
                for obj, count in zip(bucket, found, strict=True)
            ]
        return array("I", found)

    def _sizes(self, plan: TypePlan, bucket: list[Any], extra: array[int] | None) -> array[int]:
        try:
            sizes = array("I", map(plan.size, bucket))
        except Exception:
            sizes = array("I", map(self._size, repeat(plan), bucket, range(len(bucket))))
        if extra is not None:
            sizes = array("I", map(int.__add__, sizes, extra))
        return sizes

    def _size(self, plan: TypePlan, obj: Any, place: int) -> int:
        try:
            size = plan.size(obj)
        except Exception:
            self.problems[f"the size of {plan.name} cannot be read"] += 1
            return 0
        if size >= BIG:
            self.large[self.objects + place] = size
            return BIG
        return size

    def _flush(self, *, all_of_it: bool = False) -> None:
        for tag, column in self._columns.items():
            if column:
                self._write(tag, column)
                self._columns[tag] = array(column.typecode)
        if all_of_it:
            self.labels.of_name.clear()

    # --- references -----------------------------------------------------------------------

    def _items(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> None:  # fmt: skip
        refs.extend(map(len, bucket))
        out += _get_referents(*bucket)
        if sum(refs) != len(out):  # one is half made: its places are empty
            out.clear()
            del refs[:]
            for obj in bucket:
                found = _get_referents(obj)
                refs.append(len(found))
                out += found
        labels.extend(array("I", [plan.default]) * len(out))
        if plan.type is tuple and self._closures:
            at = 0
            for obj, count in zip(bucket, refs, strict=True):
                names = self._closures.get(id(obj))
                if names is not None and len(names) == count:
                    of_name = self.labels.of_name.__getitem__
                    labels[at : at + count] = array("I", map(of_name, names))
                at += count

    def _unnamed(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> None:  # fmt: skip
        for obj in bucket:
            found = _get_referents(obj)
            refs.append(len(found))
            out += found
        if plan.is_context:
            # A node of a context: each variable's value is visited before the variable.
            number = self.labels.number
            for value, variable in zip([None, *out], out, strict=False):
                labels.append(0)
                if type(variable) is ContextVar and type(value) is not ContextVar:
                    labels[len(labels) - 2 :] = array(
                        "I", [number(f"[ContextVar {variable.name[:TEXT_LIMIT]}]"), 0]
                    )
        else:
            labels.extend(array("I", [plan.default]) * len(out))

    def _dictionaries(
        self, bucket: list[Any], out: list[Any], refs: array[int], labels: array[int]
    ) -> None:
        # Every entry is read by one call that does not let another thread in.
        table = self.labels
        of_name, of_length = table.of_name.__getitem__, table.of_length.__getitem__
        of_key, key_label = table.of_key, table.key
        namespaces, show = self._namespaces, table.keys
        for obj in bucket:
            if id(obj) in self._shared:
                refs.append(0)
                continue
            keys = list(obj)
            values = list(obj.values())
            count = len(keys)
            if count != len(values):
                self.problems["a dictionary changed while it was read"] += 1
                count, keys, values = 0, [], []
            out += values
            only_str = {*map(id, map(type, keys))} == _ONLY_STR
            of_instance = namespaces.get(id(obj))
            if of_instance is not None and only_str and not (of_instance and count > NAMES_LIMIT):
                labels.extend(map(of_name, keys))
                refs.append(count)
                continue
            if only_str and not show:
                labels.extend(map(of_length, map(len, keys)))
            else:
                labels.extend(map(of_key, keys))
            out += keys
            labels.extend(repeat(key_label, count))
            refs.append(2 * count)

    def _plain(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> array[int]:  # fmt: skip
        """Instances without anything but attributes; gives the bytes that those take, too."""
        assert plan.get_dict is not None
        get_dict, of_name = plan.get_dict, self.labels.of_name.__getitem__
        type_label, getsizeof = self.labels.type, sys.getsizeof
        extra = array("I")
        for obj in bucket:
            found = _get_referents(obj)
            namespace = get_dict(obj)
            names, values = [*namespace], [*namespace.values()]
            count = len(names)
            if (
                len(found) == count + 1 == len(values) + 1
                and type(namespace) is dict
                and not (count == 1 and found[0] is namespace)
                and count <= NAMES_LIMIT
                and {*map(id, map(type, names))} <= _ONLY_STR
            ):
                out += values
                labels.extend(map(of_name, names))
                out.append(found[-1])
                labels.append(type_label)
                refs.append(count + 1)
                if _KEEPS_VALUES and _getrefcount(namespace) > _FRESH:
                    self._share(namespace)
                    out.append(namespace)
                    labels.append(self.labels.dict)
                    refs[-1] += 1
                extra.append(getsizeof(namespace) - EMPTY_DICT)
            else:
                refs.append(self._name(plan, obj, found, out, labels))
                extra.append(self._inline)
        return extra

    def _named(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> array[int] | None:  # fmt: skip
        if plan.type is types.FunctionType:
            self._note_functions(bucket)
        elif plan.type is types.ModuleType:
            for obj in bucket:
                name = types.ModuleType.__getattribute__(obj, "__dict__").get("__name__")
                if type(name) is str and is_own(name):
                    self._own_now.add(id(obj))
        extra = array("I")
        is_module = plan.type is types.ModuleType
        for obj in bucket:
            found = _module_referents(obj) if is_module else _get_referents(obj)
            refs.append(self._name(plan, obj, found, out, labels))
            extra.append(self._inline)
        return extra if plan.flags & MANAGED_DICT else None

    def _note_functions(self, bucket: list[Any]) -> None:
        for function in bucket:
            if function.__closure__:
                self._closures[id(function.__closure__)] = function.__code__.co_freevars
                self.named.append(id(function))
                self.names.append(f"{function.__module__}.{function.__qualname__}")
            module = function.__module__
            if type(module) is str and is_own(module):
                self._own_now.add(id(function))

    def _name(
        self, plan: TypePlan, obj: Any, found: list[Any], out: list[Any], labels: array[int]
    ) -> int:
        """Name the references of one object by what is where; gives their number."""
        table = self.labels
        names: dict[int, int] = {id(type(obj)): table.type}
        self._inline = 0
        for get, label in plan.getters:
            try:
                names[id(get(obj))] = label
            except Exception:  # noqa: S110 - an empty slot or cell
                pass
        if plan.items:
            for key, value in list(dict.items(obj)):
                names[id(value)] = table.of_key(key)
            present = {*map(id, found)}
            for key in list(dict.keys(obj)):
                names.setdefault(id(key), table.key)
                if id(key) not in present:
                    found.append(key)
            key = value = None
        namespace = self._namespace_of(plan, obj, found, names)
        if namespace is not None and type(namespace) is dict:
            self._namespaces.setdefault(id(namespace), plan.type is not types.ModuleType)
            if plan.own:
                self._own.add(id(namespace))
        out += found
        if plan.role is Role.TASK:
            for one in found:
                if type(one) is Context:
                    names[id(one)] = table.of_name["context"]
            one = None
        default = plan.default
        labels.extend([names.get(id(one), default) for one in found])
        return len(found)

    def _share(self, namespace: dict[str, Any]) -> None:
        self._shared.add(id(namespace))
        self._namespaces.setdefault(id(namespace), True)

    def _namespace_of(
        self, plan: TypePlan, obj: Any, found: list[Any], names: dict[int, int]
    ) -> Any:
        """The instance's dictionary if it refers to one; else the values in it get names."""
        get_dict = plan.get_dict
        if get_dict is None:
            return None
        managed = plan.flags & MANAGED_DICT
        if not managed and not any(type(one) is dict and id(one) not in names for one in found):
            return None  # asking would make one
        try:
            namespace = get_dict(obj)
        except Exception:
            return None
        if any(one is namespace for one in found):
            names[id(namespace)] = self.labels.dict
            return namespace
        if managed and type(namespace) is dict:
            if _KEEPS_VALUES and _getrefcount(namespace) > _FRESH:
                self._share(namespace)
                found.append(namespace)
                names[id(namespace)] = self.labels.dict
            self._inline = sys.getsizeof(namespace) - EMPTY_DICT
            hidden = len(namespace) > NAMES_LIMIT
            for key, value in list(namespace.items()):
                if type(key) is str and not hidden:
                    names[id(value)] = self.labels.of_name[key]
                else:
                    names[id(value)] = self.labels.of_key(key)
        return None

    def _classes(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> None:  # fmt: skip
        table = self.labels
        of_name = table.of_name
        for kind in bucket:
            found = _get_referents(kind)
            [namespace] = _get_referents(get_class_dict(kind))[:1] or [None]
            self._namespaces[id(namespace)] = False
            names = {
                id(namespace): table.dict,
                id(get_mro(kind)): of_name["__mro__"],
                id(get_bases(kind)): of_name["__bases__"],
                id(get_base(kind)): of_name["__base__"],
                id(type(kind)): table.type,
            }
            module = namespace.get("__module__") if type(namespace) is dict else None
            if type(module) is str and is_own(module):
                self._own_now.add(id(kind))
            refs.append(len(found))
            out += found
            labels.extend([names.get(id(one), 0) for one in found])

    def _frames(
        self, plan: TypePlan, bucket: list[Any], out: list[Any], refs: array[int],
        labels: array[int],
    ) -> None:  # fmt: skip
        """Suspended coroutines and generators, and frames that have ended: their locals."""
        assert plan.frame is not None
        assert plan.code is not None
        table = self.labels
        for obj in bucket:
            found = _get_referents(obj)
            names = {}
            if plan.awaits is None and not any(type(one) is types.CodeType for one in found):
                # A frame that runs lies in the memory of its thread, which is gone in a fork.
                refs.append(len(found))
                out += found
                labels.extend(array("I", bytes(4 * len(found))))
                continue
            frame = plan.frame(obj)
            code = plan.code(obj)
            module = None if frame is None else frame.f_globals.get("__name__")
            self.named.append(id(obj))
            self.names.append(
                f"{module}.{code.co_qualname}" if type(module) is str else code.co_qualname
            )
            if frame is not None:
                value = None
                for name, value in locals_of(frame):
                    names[id(value)] = table.of_name[name]
                del value
                awaited = None if plan.awaits is None else plan.awaits(obj)
                if awaited is not None:
                    names[id(awaited)] = table.awaits
                del awaited
            del frame
            if code.co_filename.startswith(OWN_DIRECTORY):
                self._own_now.add(id(obj))
            del code
            for one in found:
                if type(one) is types.CellType and id(one) not in names:
                    # A local variable that an inner function uses, too.
                    content = _get_referents(one)
                    if content and id(content[0]) in names:
                        names[id(one)] = names[id(content[0])]
                    del content
            refs.append(len(found))
            out += found
            labels.extend([names.get(id(one), 0) for one in found])


def locals_of(frame: types.FrameType) -> list[tuple[str, Any]]:
    """Local variables of a frame, without leaving them referred to by a copy of ours.

    Until 3.12 ``f_locals`` of a function is a dictionary that the frame keeps. It is emptied
    again, unless somebody else has it, too: code that called ``locals()`` itself.
    """
    if not frame.f_code.co_flags & 1:  # not CO_OPTIMIZED: a class or a module, the real thing
        return []
    found = frame.f_locals
    pairs = list(found.items())
    if type(found) is dict and _getrefcount(found) <= 3:
        found.clear()
    return pairs


def _parts(stream: Iterator[Any], count: int) -> Iterator[dict[int, list[Any]]]:
    """Chunks of a stream, each as lists of objects of one type."""
    while count > 0:
        buckets: dict[int, list[Any]] = {}
        for obj in islice(stream, min(count, CHUNK)):
            kind = id(type(obj))
            if kind in buckets:
                buckets[kind].append(obj)
            else:
                buckets[kind] = [obj]
        obj = None
        count -= CHUNK
        yield buckets


def _module_referents(module: types.ModuleType) -> list[Any]:
    """What a module refers to, without dead objects.

    In Python 3.12 ``_asyncio`` shows the collector its list of freed iterators, to be used again
    (FutureIter). Whoever takes a reference to one frees it a second time when he lets go, which
    makes that list a circle.
    """
    namespace = types.ModuleType.__getattribute__(module, "__dict__")
    if namespace.get("__name__") == "_asyncio" and sys.version_info[:2] == (3, 12):
        return [namespace]
    return _get_referents(module)
