"""Where chance comes from: keys, which are hashes of where in a run we are.

Nothing here keeps a stream position.  A key is made from the seed of the run and
a path (what the chance is for, which epoch, which sample), so any draw can be made
again at any time and in any process.  The path is hashed, never added: neighbouring
seeds and epochs have nothing in common.
"""

from __future__ import annotations

import random as _python
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor

Stand: TypeAlias = tuple[Any, Any]
"""Where Python's and numpy's generators stand."""

_MASK = (1 << 64) - 1


@attrs.frozen
class Key:
    """A 64-bit name for one source of chance.

    Two keys with different paths are independent; the same path is the same chance.

    >>> Key.of(0, "step", 7) == Key.of(0, "step", 7)
    True
    >>> Key.of(0, "step", 7) == Key.of(0).fold_in("step").fold_in(7)
    False
    >>> len(set(Key.of(0).split(4)))
    4
    """

    value: int

    @classmethod
    def of(cls, seed: int, *path: int | str) -> Key:
        """Make the key of a seed and a path below it, hashed in one go."""
        # repr keeps 1 and "1" apart, and the comma keeps (1, 23) and (12, 3) apart.
        text = repr((seed, *path)).encode()
        return cls(int.from_bytes(blake2b(text, digest_size=8).digest(), "little"))

    def fold_in(self, *path: int | str) -> Key:
        """Go further down: the key of this key and `path`."""
        return Key.of(self.value, *path)

    def split(self, count: int) -> tuple[Key, ...]:
        """Make `count` keys that are independent of each other and of this one."""
        return tuple(self.fold_in("split", index) for index in range(count))

    def generator(self, device: str | torch.device = "cpu") -> torch.Generator:
        """Make a new generator of torch that starts at this key.

        The CPU generator of torch reads the low 32 bits of a seed only, so there are
        2**32 CPU streams.

        >>> a, b = (torch.rand(3, generator=Key.of(0, "a").generator()) for _ in range(2))
        >>> torch.equal(a, b)
        True
        """
        return torch.Generator(device).manual_seed(self.value)

    def numpy(self) -> np.random.Generator:
        """Make a new numpy generator (Philox) that starts at this key."""
        return np.random.Generator(np.random.Philox(self.value))


class keyed:
    """A `with` block in which torch's global generators start at a key.

    Dropout and other layers read the global generator: this is how they become
    functions of a key.  The generators are put back at the end, so nothing outside
    can tell that the block ran.

    >>> before = torch.get_rng_state()
    >>> with keyed(Key.of(0, "step", 3)):
    ...     x = torch.rand(2)
    >>> with keyed(Key.of(0, "step", 3)):
    ...     y = torch.rand(2)
    >>> torch.equal(x, y), torch.equal(torch.get_rng_state(), before)
    (True, True)
    """

    __slots__ = ("_cuda", "_state", "_value")

    def __init__(self, key: Key) -> None:
        self._value = key.value

    def __enter__(self) -> None:
        self._state = torch.default_generator.get_state()
        # torch.manual_seed does the same for every backend, at a hundred times the price.
        torch.default_generator.manual_seed(self._value)
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        if self._cuda is not None:
            torch.cuda.manual_seed_all(self._value)

    def __exit__(self, *error: Any) -> None:
        torch.default_generator.set_state(self._state)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class keyed_everywhere:
    """A `with` block in which torch, numpy and Python's `random` start at a key.

    For code of others that draws from whichever of the three it likes (data sets,
    augmentations).  Dearer than `keyed`: numpy and Python hand out large states.

    >>> import random
    >>> with keyed_everywhere(Key.of(1)):
    ...     a = random.random(), np.random.rand()
    >>> with keyed_everywhere(Key.of(1)):
    ...     b = random.random(), np.random.rand()
    >>> a == b
    True
    """

    __slots__ = ("_key", "_numpy", "_python", "_still", "_torch")
    _open = 0

    def __init__(self, key: Key) -> None:
        self._key = key

    def __enter__(self) -> keyed_everywhere:
        self._python, self._numpy = _python.getstate(), np.random.get_state()
        self._torch = keyed(self._key)
        self._torch.__enter__()
        seed_everywhere(self._key)
        self._still = _python.getstate(), np.random.get_state()
        keyed_everywhere._open += 1
        return self

    def drew(self) -> bool:
        """Say whether the block has drawn from numpy or from Python's `random`; asked inside of it."""
        python, (_, words, *places) = self._still
        _, now, *here = np.random.get_state()
        return python != _python.getstate() or places != here or not np.array_equal(words, now)

    def __exit__(self, *error: Any) -> None:
        keyed_everywhere._open -= 1
        self._torch.__exit__(*error)
        np.random.set_state(self._numpy)
        _python.setstate(self._python)

    @classmethod
    def stand(cls) -> Stand | None:
        """Say where the generators of numpy and Python stand; None outside of such blocks, where nobody draws."""
        return (_python.getstate(), np.random.get_state()) if cls._open else None


@contextmanager
def again(stand: Stand | None) -> Iterator[None]:
    """Let a block draw from numpy and Python what was drawn from a stand on; they go on afterwards as if it had not.

    >>> with keyed_everywhere(Key.of(0)):
    ...     stand, first = keyed_everywhere.stand(), np.random.rand()
    ...     with again(stand):
    ...         second = np.random.rand()
    >>> first == second
    True
    """
    if stand is None:
        yield
        return
    now = _python.getstate(), np.random.get_state()
    _python.setstate(stand[0])
    np.random.set_state(stand[1])
    try:
        yield
    finally:
        _python.setstate(now[0])
        np.random.set_state(now[1])


def draws_elsewhere(function: Any) -> bool:
    """Say whether a function may draw from numpy or Python's `random`, whose generators cost much to seed.

    Its code is looked at, and that of the functions that it names: too much is suspected
    rather than too little.

    >>> draws_elsewhere(lambda x: np.random.rand()), draws_elsewhere(lambda x: torch.rand(2))
    (True, False)
    """
    return _draws(function, set())


def _draws(function: Any, seen: set[CodeType]) -> bool:
    called = function if isinstance(function, FunctionType) else type(function).__dict__.get("__call__")
    called = getattr(function, "__func__", called)
    if not isinstance(called, FunctionType) or called.__code__ in seen or called.__module__.startswith("torch."):
        return False
    seen.add(called.__code__)
    names = _names(called.__code__)
    held = [called.__globals__[name] for name in names if name in called.__globals__]
    held += [cell.cell_contents for cell in called.__closure__ or () if _is_filled(cell)]
    return "numpy" in names or any(_is_source(value) or _draws(value, seen) for value in held)


def _names(code: CodeType) -> set[str]:
    """List the names that a function's code uses, those of the functions in it included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_source(value: Any) -> bool:
    return value in (np, np.random, _python) if isinstance(value, ModuleType) else _from_there(value)


def _from_there(value: Any) -> bool:
    owner = getattr(value, "__self__", None)
    return owner is np.random.mtrand._rand or owner is _python._inst  # type: ignore[attr-defined]


def seed_everywhere(key: Key) -> None:
    """Start the three global CPU generators at a key and leave them there.

    For worker processes, which own their generators.
    """
    torch.default_generator.manual_seed(key.value)
    np.random.seed(key.value & 0xFFFFFFFF)
    _python.seed(key.value)


def bits(key: Key, positions: Tensor, count: int) -> Tensor:
    """Draw 64 random bits for each position and each of `count` draws.

    The row of a position depends on the key and that position only, not on the other
    positions: a batch can be cut, joined or reordered and each sample keeps its chance.
    Three rounds of splitmix64's finaliser (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", 2014) over key, position and draw.

    Args:
        key: what the draws are for.
        positions: int64, shape [n].
        count: draws for each position.

    Returns:
        int64, shape [n, count].
    """
    draws = torch.arange(count, device=positions.device)
    return _mix(_mix(_mix(positions ^ _signed(key.value)).unsqueeze(-1) + draws))


def uniform(key: Key, positions: Tensor, count: int) -> Tensor:
    """Draw numbers in [0, 1) for each position: float32, shape [n, count].

    >>> u = uniform(Key.of(0, "sample"), torch.arange(100), 2)
    >>> v = uniform(Key.of(0, "sample"), torch.tensor([7]), 2)
    >>> torch.equal(u[7:8], v)
    True
    """
    # 24 bits are all that a float32 in [0, 1) can carry.
    return ((bits(key, positions, count) >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it a logical shift.
    return (x >> by) & (_MASK >> by)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
