"""Recipe files: found under one name wherever they are, and their faults told with file and line."""

from __future__ import annotations

import pickle  # noqa: TID251 - what torch sends to workers with
import sys
from textwrap import dedent

import pytest

from purerun.recipe import RecipeError, load

GOOD = """\
    import torch
    import purerun as pr

    def loss(model, batch):
        return model(batch[0]).mean()

    recipe = pr.Recipe(
        model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
        loss=loss,
        train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
        optimizer=pr.optim.SGD(lr=0.1),
        epochs=2,
    )
"""


@pytest.fixture(autouse=True)
def _imports_kept(monkeypatch):
    """What loading does to the import system ends with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("recipe_tiny", "beside_it"):
        sys.modules.pop(name, None)


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path."""

    def written(text, name="tiny.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))
        return file

    return written


def test_names_do_not_depend_on_the_folder(write):
    """The same file elsewhere has functions of the same names."""
    here, there = load(write(GOOD)), load(write(GOOD, "other/tiny.py"))

    assert "recipe_tiny" == here.loss.__module__ == there.loss.__module__


def test_functions_of_a_recipe_can_be_sent_to_workers(write):
    """They are found again by name, as pickling asks."""
    recipe = load(write(GOOD))

    assert recipe.loss is pickle.loads(pickle.dumps(recipe.loss))  # noqa: S301 - what workers of torch do


def test_a_recipe_may_import_what_lies_beside_it(write):
    """As a script may."""
    write("WIDTH = 3", "beside_it.py")
    path = write("from beside_it import WIDTH\n" + dedent(GOOD).replace("in_features=2", "in_features=WIDTH"))

    assert 3 == load(path).model.arguments["in_features"].value


def test_a_changed_file_is_read_anew(write):
    """Also when size and second are the same, by which Python tells caches apart."""
    first = load(write(GOOD))
    second = load(write(GOOD.replace("epochs=2", "epochs=3")))

    assert (2, 3) == (first.epochs, second.epochs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nx = (1,\n", "{path}:2: SyntaxError: '(' was never closed"),
        ("import torch\nimport nowhere_at_all\n", "{path}:2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "{path}:2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", "{path}:2: SystemExit: 0"),
        (
            "import purerun as pr, torch\n\npr.Module(torch.nn.Linear, in_featurs=2)\n",
            "{path}:3: Linear takes no argument 'in_featurs'; did you mean 'in_features'",
        ),
        ("x = 1\n", "{path}: expected the file to say `recipe = pr.Recipe(...)`, got no such name"),
        ("recipe = {'lr': 0.1}\n", "{path}: expected the file to say `recipe = pr.Recipe(...)`, got dict"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(write, text, message):
    """One line: where, and what."""
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load(path)

    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    """Before anything is imported."""
    with pytest.raises(RecipeError, match=r"none\.py: there is no such file"):
        load(tmp_path / "none.py")


def test_a_file_of_another_kind_is_refused(write):
    """Data is never executed."""
    with pytest.raises(RecipeError, match=r"tiny\.toml: expected a Python file"):
        load(write("recipe = 1", "tiny.toml"))


def test_a_file_that_fails_leaves_no_module_behind(write):
    """A half-made module would be found by whoever imports that name next."""
    with pytest.raises(RecipeError):
        load(write("1 / 0"))

    assert "recipe_tiny" not in sys.modules
