"""Each wrapper, and the same feature in a hand-written loop: what `overhead.py --wrappers` races."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any

import torch
from models import Task, loss
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import purerun as pr

Batches = list[Any]
Body = Callable[[nn.Module, torch.optim.Optimizer, Iterator[Any]], Callable[[], None]]
"""From a model, its optimizer and its batches to one iteration of a hand-written loop."""


def plain(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """No feature at all."""

    def once() -> None:
        opt.zero_grad()
        loss(model, next(source)).backward()
        opt.step()

    return once


def accumulate(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """One update for four batches; the mean is taken as everybody takes it."""
    count = 0

    def once() -> None:
        nonlocal count
        (loss(model, next(source)) / 4).backward()
        count += 1
        if count % 4 == 0:
            opt.step()
            opt.zero_grad()

    return once


def microbatch(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """Four parts of each batch."""

    def once() -> None:
        opt.zero_grad()
        parts = [tensor.tensor_split(4) for tensor in next(source)]
        for part in zip(*parts, strict=True):
            (loss(model, part) / 4).backward()
        opt.step()

    return once


def bfloat16(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """Autocast."""

    def once() -> None:
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, next(source))
        value.backward()
        opt.step()

    return once


def float16(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """Autocast and torch's scaler."""
    scaler = torch.amp.GradScaler("cpu")

    def once() -> None:
        opt.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(model, next(source))
        scaler.scale(value).backward()
        scaler.step(opt)
        scaler.update()

    return once


def clip(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """torch's clipping by norm."""

    def once() -> None:
        opt.zero_grad()
        loss(model, next(source)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        opt.step()

    return once


def skip(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """An update only where the norm of all gradients is finite."""
    params = list(model.parameters())

    def once() -> None:
        opt.zero_grad()
        loss(model, next(source)).backward()
        if nn.utils.get_total_norm([param.grad for param in params], foreach=True).isfinite():
            opt.step()

    return once


def clip_value(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """torch's clipping by value, with the norms before and after it, which are reported here."""
    params = list(model.parameters())

    def once() -> None:
        opt.zero_grad()
        loss(model, next(source)).backward()
        nn.utils.get_total_norm([param.grad for param in params], foreach=True)
        nn.utils.clip_grad_value_(params, 0.1, foreach=True)
        nn.utils.get_total_norm([param.grad for param in params], foreach=True)
        opt.step()

    return once


def clip_adaptive(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """Adaptive clipping as its paper's code does it, a parameter at a time, with the norms that are reported here."""
    params = list(model.parameters())

    def norms(x: torch.Tensor) -> torch.Tensor:
        dims = tuple(range(1, x.ndim)) or None
        return torch.linalg.vector_norm(x, dim=dims, keepdim=x.ndim > 1)

    def once() -> None:
        opt.zero_grad()
        loss(model, next(source)).backward()
        nn.utils.get_total_norm([param.grad for param in params], foreach=True)
        with torch.no_grad():
            for param in params:
                most = norms(param).clamp_(min=1e-3).mul_(0.01)
                param.grad.mul_((most / norms(param.grad)).clamp_(max=1.0))
        nn.utils.get_total_norm([param.grad for param in params], foreach=True)
        opt.step()

    return once


def dropout(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """A probability that is set in each iteration."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]

    def once() -> None:
        for layer in layers:
            layer.p = 0.1
        opt.zero_grad()
        loss(model, next(source)).backward()
        opt.step()

    return once


def annealed(average: list[torch.Tensor], params: list[torch.Tensor], count: torch.Tensor | int) -> None:
    """Move an average that is annealed."""
    torch._foreach_lerp_(average, params, max(0.001, 100 / (100 + int(count))))


def remat(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """Activation checkpointing of every linear layer, by torch's own function around its forward."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return plain(model, opt, source)


def masters(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
    """An optimizer of float32 copies, for a model in bfloat16."""
    copies, model = list(model.parameters()), deepcopy(model).bfloat16()

    def once() -> None:
        x, y = next(source)
        model.zero_grad()
        loss(model, (x.bfloat16() if x.is_floating_point() else x, y)).backward()
        for copy, param in zip(copies, model.parameters(), strict=True):
            copy.grad = param.grad.float()
        opt.step()
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), copies)

    return once


def averaged(how: Callable[..., Any]) -> Body:
    """torch's averaged model, with foreach kernels."""

    def body(model: nn.Module, opt: torch.optim.Optimizer, source: Iterator[Any]) -> Callable[[], None]:
        average = AveragedModel(model, multi_avg_fn=how)

        def once() -> None:
            opt.zero_grad()
            loss(model, next(source)).backward()
            opt.step()
            average.update_parameters(model)

        return once

    return body


FEATURES: dict[str, tuple[tuple[pr.Wrapper, ...], Body]] = {
    "bare step": ((), plain),
    "Accumulate(4)": ((pr.Accumulate(4),), accumulate),
    "Microbatch(4)": ((pr.Microbatch(4),), microbatch),
    "Precision bfloat16": ((pr.Precision("bfloat16"),), bfloat16),
    "Precision float16": ((pr.Precision("float16"),), float16),
    "Clip(norm=1)": ((pr.Clip(norm=1.0),), clip),
    "Clip(value=0.1)": ((pr.Clip(value=0.1),), clip_value),
    "Clip(adaptive=0.01)": ((pr.Clip(adaptive=0.01),), clip_adaptive),
    "Dropout(0.1)": ((pr.Dropout(0.1),), dropout),
    "Masters()": ((pr.Masters(),), masters),
    "Remat": ((pr.Remat("*"),), remat),
    "SkipNonFinite()": ((pr.SkipNonFinite(),), skip),
    "EMA(0.999)": ((pr.EMA(0.999),), averaged(get_ema_multi_avg_fn(0.999))),
    "AnnealedEMA(0.999)": ((pr.AnnealedEMA(0.999),), averaged(annealed)),
    "SWA()": ((pr.SWA(),), averaged(get_swa_multi_avg_fn())),
}


def hand_written(task: Task, make: Callable[..., torch.optim.Optimizer], body: Body) -> Callable[[], float]:
    """Time a hand-written loop with a fused optimizer."""
    torch.manual_seed(0)
    model, batches = task.model(), [task.batch() for _ in range(10)]
    stream = (batch for epoch in iter(lambda: batches, None) for batch in epoch)
    once = body(model, make(model.parameters(), True), stream)

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(task.iters):
            once()
        return (time.perf_counter() - start) / task.iters

    return timed


def narrowed(model: nn.Module, batch: Any) -> torch.Tensor:
    """Compute the loss of a model in bfloat16."""
    x, y = batch
    return loss(model, (x.bfloat16() if x.is_floating_point() else x, y))


def wrapped(task: Task, optimizer: pr.optim.Optimizer, wrappers: tuple[pr.Wrapper, ...]) -> Callable[[], float]:
    """Time the same with wrappers, in a loop that leases."""
    torch.manual_seed(0)
    model, batches = task.model(), [task.batch() for _ in range(10)]
    narrow = any(isinstance(wrapper, pr.Masters) for wrapper in wrappers)
    chosen = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    wrappers = tuple(pr.Remat(chosen) if isinstance(wrapper, pr.Remat) else wrapper for wrapper in wrappers)
    inner = pr.TrainStep(model.bfloat16() if narrow else model, narrowed if narrow else loss, optimizer)
    step = pr.wrap(inner, *wrappers)
    states = pr.TrainLoop(step, iters=10**9, lease=True)(step.init(seed=0), batches)
    held = [next(states)]

    def timed() -> float:
        start = time.perf_counter()
        for state in islice(states, task.iters):
            held[0] = state
        return (time.perf_counter() - start) / task.iters

    return timed
