"""What each process of a team does: small runs whose results every number of processes must agree on."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import purerun as pr
from purerun import cli
from purerun.wrappers import exchange

SAMPLES = 41
SGD, ADAMW = pr.optim.SGD(lr=0.1, momentum=0.9), pr.optim.AdamW(lr=0.01)


def net(norm: bool = True, dropout: float = 0.25) -> nn.Module:
    """Make a small network with chance and, perhaps, a memory in it."""
    torch.manual_seed(0)
    normed = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *normed, nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 3))


def mean_loss(model: nn.Module, batch: Any) -> dict[str, Any]:
    """Report terms that merge in every way."""
    output = model(batch["x"])
    return {
        "loss": nn.functional.cross_entropy(output, batch["y"]),
        "accuracy": (output.argmax(1) == batch["y"]).float().mean(),
        "largest": pr.Term(output.detach().max(), "max"),
        "least": pr.Term(output.detach().min(), "min"),
        "samples": pr.Term(len(output), "sum"),
        "label": pr.Term(batch["y"][-1], "last"),
    }


def own_weight(model: nn.Module, batch: Any) -> pr.Loss:
    """Count by labels, not by samples; a shard may weigh nothing."""
    losses = nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return pr.Loss((losses * batch["y"]).sum(), batch["y"].sum(), zeros=(batch["y"] == 0).float().mean())


def data(samples: int = SAMPLES) -> pr.data.Tensors:
    """Make the same samples in every process."""
    chance = torch.Generator().manual_seed(1)
    return pr.data.Tensors(
        x=torch.randn(samples, 6, generator=chance), y=torch.randint(3, (samples,), generator=chance)
    )


def jittered(sample: Any) -> Any:
    """Draw something for each sample."""
    return {"x": sample["x"] + 0.1 * torch.randn(6), "y": sample["y"]}


class Rows:
    """The samples of `data`, one by one; notes which are read."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._data = data(samples)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self._data.row(index)


def loader(batch_size: int = 16, samples: int = SAMPLES) -> pr.Loader:
    """Read samples whole batches at a time."""
    return pr.Loader(data(samples), batch_size=batch_size, shuffle=True)


def drawn(workers: int = 0) -> pr.Loader:
    """Read samples one by one, with chance in each, and in each batch."""
    return pr.Loader(
        Rows(), batch_size=16, shuffle=True, transform=jittered, batch_transform=noisy, workers=workers, prefetch=1
    )


def noisy(batch: Any, chance: Any) -> Any:
    """Draw something for each batch that is made."""
    return {**batch, "x": batch["x"] * (1 + torch.rand(()))}


def batches() -> list[Any]:
    """List batches as somebody else would make them."""
    everything = data().rows(torch.arange(SAMPLES))
    return [{name: tensor[start : start + 16] for name, tensor in everything.items()} for start in (0, 16, 32)]


def half_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the loss of a model in bfloat16."""
    return nn.functional.cross_entropy(model(batch["x"].bfloat16()).float(), batch["y"])


def step(
    *wrappers: pr.Wrapper,
    optimizer: Any = SGD,
    loss: Any = mean_loss,
    norm: bool = True,
    half: bool = False,
    name: str = "",
) -> pr.Step:
    """Make a step with wrappers."""
    model = net(norm).bfloat16() if half else net(norm)
    return pr.wrap(pr.TrainStep(model, loss, optimizer, name=name), *wrappers)


def everything(policy: str, optimizer: Any = ADAMW) -> pr.Step:
    """Make a step with most of what there is around it."""
    parallel = pr.DataParallel(4, buffers=policy)
    return step(
        pr.Precision("bfloat16"), parallel, pr.Clip(norm=0.1), pr.Accumulate(2), pr.EMA(0.9), optimizer=optimizer
    )


def cases() -> dict[str, tuple[pr.Step, Any]]:
    """List the runs: name -> step and what it reads."""
    four = pr.DataParallel(4)
    return {
        "sgd": (step(four), loader()),
        "adamw": (step(four, optimizer=ADAMW), loader()),
        "first": (step(pr.DataParallel(4, buffers="first"), optimizer=ADAMW), loader()),
        "mean": (step(pr.DataParallel(4, buffers="mean"), optimizer=ADAMW), loader()),
        "clipped": (step(four, optimizer=pr.optim.chain(clip=pr.optim.ClipNorm(0.1), adamw=ADAMW)), loader()),
        "clip": (step(four, pr.Clip(norm=0.1)), loader()),
        "accumulate": (step(four, pr.Accumulate(2), optimizer=ADAMW), loader()),
        "accumulate inside": (step(pr.Accumulate(2), four), loader()),
        "ema": (step(pr.EMA(0.9), four, optimizer=ADAMW), loader()),
        "microbatch inside": (step(pr.Microbatch(2), four, norm=False), loader()),
        "bf16": (step(pr.Precision("bfloat16"), four, optimizer=ADAMW), loader()),
        "fp16 outside": (step(four, pr.Precision("float16")), loader()),
        "epoch windows": (step(four, pr.Accumulate(2, window="epoch", schedule="update")), loader()),
        "averaged buffers": (step(four, pr.SWA(buffers="average")), loader()),
        "adaptive clip": (step(four, pr.Clip(adaptive=0.01)), loader()),
        "skip": (step(four, pr.SkipNonFinite()), loader()),
        "clip by value": (step(four, pr.Clip(value=0.01)), loader()),
        "annealed": (step(four, pr.AnnealedEMA(0.9, gamma=2), optimizer=ADAMW), loader()),
        "masters": (step(pr.Masters(), four, loss=half_loss, half=True), loader()),
        "halved": (step(pr.Microbatch(1, on_oom="halve"), four, norm=False), loader()),
        "remat": (step(pr.Remat("0"), four), loader()),
        "dropout": (step(pr.Dropout(0.3), four), loader()),
        **{f"everything, {policy}": (everything(policy), loader()) for policy in ("shard", "first", "mean")},
        "own weight": (step(four, loss=own_weight, norm=False), loader(5)),
        "uneven": (step(pr.DataParallel(6), norm=False), loader(15)),
        "five shards": (step(pr.DataParallel(5, buffers="mean")), loader(20, 40)),
        "empty shards": (step(pr.DataParallel(8), norm=False, optimizer=ADAMW), loader(3)),
        "one sample": (step(pr.DataParallel(4), norm=False), loader(1, 5)),
        "named": (step(four, name="critic"), loader()),
        "augmented": (step(four), drawn()),
        "a list": (step(four), batches()),
        "a stream": (step(four), pr.data.Stream([Rows()[i] for i in range(40)], batch_size=16, transform=jittered)),
    }


def run(made: pr.Step, source: Any, iters: int = 5) -> tuple[str, list[dict[str, float]]]:
    """Train; give the digest of the last state, and what each iteration reported."""
    report, last = [], ""
    for state in pr.TrainLoop(made, iters=iters, lease=True)(made.init(seed=3), source):
        report.append({name: float(value) for name, value in state["metrics"].items()})
        last = pr.digest(state)
    return last, report


def digests() -> dict[str, tuple[str, list[dict[str, float]]]]:
    """Run all cases."""
    return {name: run(*case) for name, case in cases().items()}


def much() -> dict[str, tuple[str, list[dict[str, float]]]]:
    """Run some as if their gradients were large, which travel by other ways."""
    with patch.object(exchange, "_LITTLE", 0):
        names = ("adamw", "first", "mean", "own weight", "uneven", "empty shards", "one sample")
        return {name: run(*cases()[name]) for name in names}


def reduced(*, large: bool) -> dict[str, list[float]]:
    """Run by all-reduce, in whatever order."""
    with patch.object(exchange, "_LITTLE", 0 if large else exchange._LITTLE):
        found = {}
        for name in ("sgd", "first", "mean"):
            made = step(pr.DataParallel(5, buffers="shard" if name == "sgd" else name, reduce="all"))
            state = [*pr.TrainLoop(made, iters=4)(made.init(seed=3), loader(20, 40))][-1]
            leaves = [*state["params"].values(), *state["buffers"].values()]
            found[name] = torch.cat([leaf.flatten().double() for leaf in leaves]).tolist()
        return found


def by_hand(batch_size: int = 16) -> str:
    """Train by a loop of one's own, which gives every process whole batches."""
    made = step(pr.DataParallel(4))
    state = made.init(seed=3)
    read = loader(batch_size)
    for batch in read.seek(state):
        state = read.advance(made(state, batch))
    return pr.digest(state)


def in_a_loop(batch_size: int = 16) -> str:
    """Train the same by a TrainLoop."""
    made = step(pr.DataParallel(4))
    return pr.digest([*pr.TrainLoop(made, epochs=1)(made.init(seed=3), loader(batch_size))][-1])


def stretch(policy: str, rule: str, before: str, after: str, iters: int) -> tuple[str, list[float]]:
    """Go on from a checkpoint to another one, which the first process writes; give the digest and the losses."""
    made = everything(policy, {"sgd": SGD, "adamw": ADAMW}[rule])
    start, losses = pr.load(before) if before else made.init(seed=3), []
    for state in pr.TrainLoop(made, iters=9)(start, loader()):
        losses.append(state["metrics", "loss"].item())
        if int(state["iter"]) == iters:
            break
    if pr.processes.rank() == 0:
        pr.save(state, after)
    pr.processes.wait()
    return pr.digest(state), losses


def reads() -> list[int]:
    """Say which samples this process has read in an epoch."""
    rows = Rows()
    made = step(pr.DataParallel(4))
    list(pr.TrainLoop(made, epochs=1)(made.init(), pr.Loader(rows, batch_size=16, shuffle=True)))
    return rows.read


def gradient(shards: int) -> list[float]:
    """Compute the gradient of one batch."""
    made = pr.wrap(pr.TrainStep(net(norm=False, dropout=0.0), plain_loss, SGD), pr.DataParallel(shards))
    return _flat(made.grad(made.init(), batches()[0]).grads)


def gradient_by_ddp() -> list[float]:
    """Compute the same by torch's own."""
    model = net(norm=False, dropout=0.0)
    whole = batches()[0]
    wrapped = nn.parallel.DistributedDataParallel(model)
    mine = {name: tensor.chunk(pr.processes.count())[pr.processes.rank()] for name, tensor in whole.items()}
    plain_loss(wrapped, mine).backward()
    return _flat({name: parameter.grad for name, parameter in model.named_parameters()})


def plain_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute a loss without chance."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def misfit(shards: int) -> str:
    """Use more processes than shards."""
    made = step(pr.DataParallel(shards))
    return made(made.init(), batches()[0])


def strangers(alone: bool) -> str:
    """Begin with another state in each process: of a step that stands alone, or inside of a function."""
    made = step(pr.DataParallel(4))
    loop = pr.TrainLoop(made if alone else made.__call__, steps=[made], iters=1)
    list(loop(made.init(seed=pr.processes.rank()), loader()))


def talkative(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Report a term in one process only."""
    loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    return {"loss": loss, **({"more": loss} if pr.processes.rank() else {})}


def other_terms() -> str:
    """Report different terms."""
    made = step(pr.DataParallel(4), loss=talkative)
    list(pr.TrainLoop(made, iters=1)(made.init(), loader()))


def dying() -> str:
    """Lose a process in the middle."""
    made = step(pr.DataParallel(4))
    for state in pr.TrainLoop(made, iters=9)(made.init(), loader()):
        if int(state["iter"]) == 2 and pr.processes.rank() == 1:
            os._exit(7)


def stopped_by(rank: int) -> list[int]:
    """Ask to stop in one process at its second iteration; say after which all have stopped, and what was agreed."""
    made, asked = step(pr.DataParallel(4)), [0]
    stop = pr.processes.agreed(lambda: bool(asked[0]))
    for state in pr.TrainLoop(made, iters=9)(made.init(), loader()):
        if int(state["iter"]) == 2 and pr.processes.rank() == rank:
            asked[0] = 143
        if stop():
            break
    return [int(state["iter"]), pr.processes.greatest(asked[0])]


def told() -> list[Any]:
    """Use the small words."""
    rank = pr.processes.rank()
    return [
        pr.processes.told(f"from {rank}"),
        pr.processes.greatest(rank),
        pr.processes.gather(torch.tensor(rank)).tolist(),
    ]


def watched(folder: str) -> list[str]:
    """Let sinks watch in every process; list what they wrote."""
    made = step(pr.DataParallel(4))
    states = pr.TrainLoop(made, iters=2)(made.init(), loader())
    place = Path(folder) / str(pr.processes.rank())
    place.mkdir()
    for _ in pr.watch(states, pr.sinks.Checkpoint(place, every="2 iters")):
        pass
    return sorted(each.name for each in place.iterdir())


def command(*words: str) -> tuple[int, str]:
    """Run a command line; give its exit code, and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        return cli.run(words), printed.getvalue()


def _flat(tensors: Any) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).tolist()
