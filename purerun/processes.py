"""The processes that train one run together: who they are, and how they start, talk, agree and end.

Without `torch.distributed` there is one process, and nothing here waits for anybody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_CPU = torch.device("cpu")


class ProcessLost(RuntimeError):
    """Another process of the run has ended before its time."""


def count() -> int:
    """Count the processes of this run.

    >>> count(), rank()
    (1, 0)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Say which of them this one is: 0 is the one that writes."""
    return dist.get_rank() if count() > 1 else 0


def wanted() -> int:
    """Count the processes that whoever started this one (torchrun) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def started(device: str = "cpu") -> Iterator[int]:
    """Join the processes that torchrun has started, for as long as the block runs; alone without it.

    They talk by gloo about what is on the CPU and by nccl about what is on CUDA devices, of which each takes the one
    of its number.  A block that raises waits for nobody.

    Args:
        device: where the models live.

    >>> with started() as which:
    ...     print(which)
    0
    """
    if wanted() == 1 or dist.is_initialized():
        yield rank()
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield rank()
        # Whoever leaves first would pull the connections away from under the others.
        wait()
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process has come here."""
    if count() > 1:
        with _answering():
            dist.all_reduce(torch.zeros((), device=_CPU))


def swap(partner: int, *, give: list[Tensor], take: list[Tensor]) -> None:
    """Send tensors to a process that sends as many tensors here, and receive those.

    Raises:
        ProcessLost: it does not answer.
    """
    calls = [dist.P2POp(dist.irecv, each, partner) for each in take if each.numel()]
    calls += [dist.P2POp(dist.isend, each, partner) for each in give if each.numel()]
    with _answering():
        if (give or take)[0].is_cpu:
            # Not as one batch, whose checks take longer than a short message.
            works = [call.op(call.tensor, call.peer) for call in calls]
        else:
            works = dist.batch_isend_irecv(calls)
        for work in works:
            work.wait()


@contextmanager
def adding(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Write the sums of all processes' tensors into them, in whatever order is quickest, while the block runs.

    Raises:
        ProcessLost: a process does not answer.
    """
    with _answering():
        works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors] if count() > 1 else []
        yield
        for work in works:
            work.wait()


def gather(tensor: Tensor) -> Tensor:
    """Collect the tensors of all processes, which are of one shape: [processes, ...].

    Raises:
        ProcessLost: one does not answer.

    >>> gather(torch.ones(2))
    tensor([[1., 1.]])
    """
    if count() == 1:
        return tensor[None]
    everything = tensor.new_empty(count(), *tensor.shape)
    with _answering():
        dist.all_gather_single(everything.flatten(), tensor.flatten())
    return everything


def told(text: str) -> str:
    """Say the first process's text in all of them.

    >>> told("here")
    'here'
    """
    if count() == 1:
        return text
    letters = text.encode() if rank() == 0 else b""
    size = torch.tensor(len(letters), device=_CPU)
    with _answering():
        dist.broadcast(size, 0)
        message = torch.zeros(int(size), dtype=torch.uint8, device=_CPU)
        if letters:
            message.copy_(torch.frombuffer(bytearray(letters), dtype=torch.uint8))
        dist.broadcast(message, 0)
    return message.numpy().tobytes().decode()


def greatest(number: int) -> int:
    """Find the greatest number of all processes.

    >>> greatest(3)
    3
    """
    if count() == 1:
        return number
    most = torch.tensor(number, device=_CPU)
    with _answering():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def agreed(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Make a question that all processes ask as often, and to which all get the same answer: whether any says yes.

    What a process says is heard at the next call, so that nobody waits for it meanwhile.

    >>> agreed(lambda: True)()
    True
    """
    return ask if count() == 1 else _Agreed(ask)


class _Agreed:
    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._said = torch.zeros((), dtype=torch.uint8, device=_CPU)
        self._asking: dist.Work | None = None

    def __call__(self) -> bool:
        with _answering():
            if self._asking is not None:
                self._asking.wait()
            if self._said.item():
                return True
            self._said.fill_(self._ask())
            self._asking = dist.all_reduce(self._said, dist.ReduceOp.MAX, async_op=True)
        return False


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"expected {count()} processes that answer each other, but one has ended or cannot be reached; "
            "what it said itself tells why"
        ) from error
