"""A restricted unpickler: plain data and tensors only, nothing is executed.

torch writes its files with pickle, a stack language in which a file can call
any function by name. Here names are looked up in tensors.py and stub_objects.py
and never imported, so that a malicious file is refused.
"""

import io
import mmap
import pickletools
from typing import Any, NamedTuple

from ldm_jax.errors import WeightsError
from ldm_jax.weights.torch.stub_objects import StubObject, is_stub
from ldm_jax.weights.torch.tensors import (
  CALLS,
  STORAGES,
  TORCH_DTYPES,
  Global,
  Storage,
  read_storage,
  set_items,
  set_state,
)

MAX_BYTES = 64 * 2**20  # a state dict takes about 200 bytes per tensor
MAX_OPCODES = 10_000_000
MAX_ARGUMENTS = 16


class Pickle(NamedTuple):
  """The value of a pickle, and the storages that it refers to, by key."""

  value: Any
  storages: dict[str, Storage]


class PickleMachine:
  """The stack, the marks and the memo while a pickle is read."""

  def __init__(self):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.storages: dict[str, Storage] = {}

  def push(self, value):
    self.stack.append(value)

  def pop(self):
    return self.stack.pop()

  def pop_to_mark(self):
    start = self.marks.pop()
    items = self.stack[start:]
    del self.stack[start:]
    return items


def read_pickle(stream: io.BytesIO | mmap.mmap) -> Pickle:
  """Reads the pickle at the stream's position, which moves past it.

  Raises:
    WeightsError: the pickle is truncated or malformed, or holds anything but
      numbers, strings, tuples, lists, dictionaries, tensors and the classes
      that stub_objects.py lists.
  """
  try:
    return _run(stream)
  except WeightsError:
    raise
  except (ValueError, LookupError, RecursionError) as error:
    raise WeightsError(f"truncated or malformed pickle ({error})") from error


def _run(stream):
  machine = PickleMachine()
  for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
    if opcode.name == "STOP":
      break
    if opcode.name not in STEPS:
      raise WeightsError(
        f"refused pickle opcode {opcode.name} {str(argument)[:80]}; state "
        "dicts saved by torch do without it"
      )
    if count > MAX_OPCODES:
      raise WeightsError(f"refused a pickle of over {MAX_OPCODES} opcodes")
    STEPS[opcode.name](machine, argument)
  return Pickle(machine.pop(), machine.storages)


def _push_argument(machine, argument):
  machine.push(argument)


def _push_tuple(length):
  def step(machine, _):
    items = [machine.pop() for _ in range(length)]
    machine.push(tuple(reversed(items)))

  return step


def _store(machine, index):
  machine.memo[index] = machine.stack[-1]


def _append(machine, items):
  target = machine.stack[-1]
  if isinstance(target, list):
    target.extend(items)
  elif not isinstance(target, StubObject):
    raise WeightsError("malformed pickle: it appends to what is not a list")


def _set_item(machine, _):
  value, key = machine.pop(), machine.pop()
  set_items(machine.stack[-1], [key], [value])


def _set_marked_items(machine, _):
  items = machine.pop_to_mark()
  set_items(machine.stack[-1], items[::2], items[1::2])


def _push_global(machine, name):
  if name in STORAGES or name in CALLS or name in TORCH_DTYPES:
    machine.push(Global(name))
  elif is_stub(name):
    machine.push(StubObject(name))
  else:
    raise WeightsError(
      f"refused global {name[:200]}; a weight file needs tensors and plain "
      "data only"
    )


def _push_stacked_global(machine, _):
  name, module = machine.pop(), machine.pop()
  if not isinstance(name, str) or not isinstance(module, str):
    raise WeightsError("malformed pickle: the name of a global is not a string")
  _push_global(machine, f"{module}.{name}")


def _call(machine, _):
  arguments, function = machine.pop(), machine.pop()
  if isinstance(function, StubObject):
    machine.push(function)
    return
  if not isinstance(function, Global) or function.name not in CALLS:
    raise WeightsError("malformed pickle: it calls what is not a function")
  is_tuple = isinstance(arguments, tuple)
  if not is_tuple or len(arguments) > MAX_ARGUMENTS:
    raise WeightsError(f"malformed call of {function.name}")
  machine.push(CALLS[function.name](*arguments))


def _build(machine, _):
  state = machine.pop()
  set_state(machine.stack[-1], state)


def _push_persistent(machine, _):
  """A storage; or, in the legacy layout, a class with its source code."""
  match machine.pop():
    case ("module", (Global() | StubObject()) as named, str(), str()):
      machine.push(named)
    case identity:
      _push_storage(machine, read_storage(identity))


def _push_storage(machine, storage):
  if machine.storages.setdefault(storage.key, storage) != storage:
    raise WeightsError(f"storage {storage.key} is declared twice, differently")
  machine.push(storage)


STEPS = {
  "PROTO": lambda machine, _: None,
  "FRAME": lambda machine, _: None,
  "NONE": lambda machine, _: machine.push(None),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "BININT": _push_argument,
  "BININT1": _push_argument,
  "BININT2": _push_argument,
  "LONG1": _push_argument,
  "BINFLOAT": _push_argument,
  "BINUNICODE": _push_argument,
  "SHORT_BINUNICODE": _push_argument,
  "BINSTRING": _push_argument,  # Python 2's strings
  "SHORT_BINSTRING": _push_argument,
  "BINBYTES": _push_argument,
  "SHORT_BINBYTES": _push_argument,
  "EMPTY_DICT": lambda machine, _: machine.push({}),
  "EMPTY_LIST": lambda machine, _: machine.push([]),
  "EMPTY_TUPLE": _push_tuple(0),
  "TUPLE1": _push_tuple(1),
  "TUPLE2": _push_tuple(2),
  "TUPLE3": _push_tuple(3),
  "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
  "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
  "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
  "APPENDS": lambda machine, _: _append(machine, machine.pop_to_mark()),
  "SETITEM": _set_item,
  "SETITEMS": _set_marked_items,
  "BINPUT": _store,
  "LONG_BINPUT": _store,
  "MEMOIZE": lambda machine, _: _store(machine, len(machine.memo)),
  "BINGET": lambda machine, index: machine.push(machine.memo[index]),
  "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
  "STACK_GLOBAL": _push_stacked_global,
  "GLOBAL": lambda machine, name: _push_global(machine, name.replace(" ", ".")),
  "REDUCE": _call,
  "NEWOBJ": _call,
  "BUILD": _build,
  "BINPERSID": _push_persistent,
}
