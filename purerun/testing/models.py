"""A table of small models to run laws on: each has something that a pure step could get wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from purerun.random import Key, keyed

FEATURES, CLASSES, SAMPLES = 6, 3, 20


@attrs.frozen
class Case:
    """A model to test with.

    Attributes:
        name: what is special about it.
        make: makes the module; its weights come from torch's global generator.
        inputs: what its data are: "vectors" (float32, [n, 6]) or "words" (int64, [n, 6], below 10).
        func: whether `engine="func"` runs it.

    >>> case = random_case(seed=3)
    >>> model = case.module(seed=0)
    >>> case.loss(model, case.data(seed=0)).shape
    torch.Size([])
    """

    name: str
    make: Callable[[], nn.Module] = attrs.field(repr=False)
    inputs: str = attrs.field(default="vectors", repr=False, kw_only=True)
    func: bool = attrs.field(default=True, repr=False, kw_only=True)

    def module(self, seed: int = 0) -> nn.Module:
        """Make the module with weights that are a function of a seed."""
        with keyed(Key.of(seed, "weights", self.name)):
            return self.make()

    def data(self, seed: int = 0, samples: int = SAMPLES) -> dict[str, Tensor]:
        """Make samples: `x` as the model wants it and `y`, int64, [n], below 3."""
        generator = Key.of(seed, "data", self.name).generator()
        if self.inputs == "words":
            x = torch.randint(10, (samples, FEATURES), generator=generator)
        else:
            x = torch.randn(samples, FEATURES, generator=generator)
        return {"x": x, "y": torch.randint(CLASSES, (samples,), generator=generator)}

    @staticmethod
    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the cross-entropy of the model's output, a scalar."""
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


class Tied(nn.Module):
    """An embedding whose weight is also the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Score the first three words after the mean word: [n, 3]."""
        return self.out(self.embed(x).mean(1))[:, :CLASSES]


class Rebinding(nn.Module):
    """A layer that rebinds a buffer in `forward` instead of writing into it."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 8)
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Centre by a running mean: [n, 8]."""
        y = self.inner(x)
        if self.training:
            self.running = self.running * 0.9 + y.detach().mean(0) * 0.1
        return y - self.running


class Forgetful(nn.Module):
    """A layer with a buffer that is not persistent, and still influences the future."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale by a number that falls with each call: [n, 8]."""
        self.calls += 1
        return self.inner(x) / (1 + 0.1 * self.calls)


class Recomputing(nn.Module):
    """A block under activation checkpointing, with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block twice, once more in the backward pass: [n, 8]."""
        return checkpoint(self.block, self.first(x), use_reentrant=False)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent layer over scalars, read at its last step."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(1, 5, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify sequences of six numbers: [n, 3]."""
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])  # type: ignore[no-any-return]


class Frozen(nn.Module):
    """A frozen, noisy backbone that `train()` leaves in evaluation mode, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout()).requires_grad_(
            requires_grad=False
        )
        self.head = nn.Linear(8, CLASSES)

    def train(self, mode: bool = True) -> Frozen:  # noqa: FBT001, FBT002  (torch's signature)
        """Switch the head only."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Classify: [n, 3]."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """A layer that draws numbers of its own from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify what is seen through noise: [n, 3]."""
        return self.inner(x + torch.randn_like(x) * torch.rand(()))  # type: ignore[no-any-return]


def _headed(*layers: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def _linear() -> nn.Module:
    return nn.Linear(FEATURES, 8)


_norm = nn.utils.parametrizations

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(_linear(), nn.Tanh()),
    "dropout": lambda: nn.Sequential(_linear(), nn.Dropout(0.4)),
    "alpha dropout": lambda: nn.Sequential(_linear(), nn.AlphaDropout(0.4)),
    "batch norm": lambda: nn.Sequential(_linear(), nn.BatchNorm1d(8)),
    "batch norm by mean": lambda: nn.Sequential(_linear(), nn.BatchNorm1d(8, momentum=None)),
    "group norm": lambda: nn.Sequential(_linear(), nn.GroupNorm(2, 8)),
    "layer norm": lambda: nn.Sequential(_linear(), nn.LayerNorm(8)),
    "spectral norm": lambda: _norm.spectral_norm(_linear()),
    "weight norm": lambda: _norm.weight_norm(_linear()),
    "orthogonal": lambda: _norm.orthogonal(_linear()),
    "rebound buffer": Rebinding,
    "non-persistent buffer": Forgetful,
}
"""Name -> a layer from [n, 6] to [n, 8]."""

MODELS: tuple[Case, ...] = (
    *(Case(name, lambda make=make: _headed(make())) for name, make in LAYERS.items()),
    Case("linear", lambda: nn.Linear(FEATURES, CLASSES)),
    Case("noise", Noisy),
    Case("frozen backbone", Frozen),
    Case("tied embedding", Tied, inputs="words"),
    Case("embedding bag", lambda: _headed(nn.EmbeddingBag(10, 8)), inputs="words"),
    Case("LSTM", lambda: Recurrent(nn.LSTM)),
    Case("GRU", lambda: Recurrent(nn.GRU)),
    Case("activation checkpointing", lambda: _headed(Recomputing()), func=False),
)
"""The models that laws run on."""


def random_case(seed: int) -> Case:
    """Make a case at random: two or three layers of the table, one of them perhaps frozen, perhaps used twice.

    >>> random_case(5) == random_case(5)
    False
    >>> random_case(5).name == random_case(5).name
    True
    """
    chance = Key.of(seed, "case").numpy()
    names = [str(name) for name in chance.choice(list(LAYERS), size=int(chance.integers(1, 4)))]
    frozen, shared = chance.random() < 0.3, chance.random() < 0.3

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for name in names:
            layers += [LAYERS[name](), nn.Linear(8, FEATURES)]
        if frozen:
            layers[0].requires_grad_(requires_grad=False)
        if shared:
            layers += layers[-2:]
        return nn.Sequential(*layers, nn.Linear(FEATURES, CLASSES))

    return Case(f"{' + '.join(names)}{', frozen' * frozen}{', shared' * shared}", make)
