"""Commands that take weights in, and hand them on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import purerun as pr
from purerun.recipe import load


@pytest.fixture
def plain(command, recipe):
    """A file with weights of the recipe's model, of another seed."""
    module = load(recipe).model.build(pr.Key.of(9, "init"))
    save_file(module.state_dict(), "plain.safetensors")
    return module.state_dict()


def first_weights(directory):
    """Read the weights that a run of no step has begun with."""
    return pr.load(directory)["params"]


def test_a_run_begins_with_the_weights_of_a_file(command, recipe, plain):
    """All that a file of others needs is its path."""
    first = json.loads(command("train", recipe, "--work-dir", "a", "--load-from", "plain.safetensors")[1])
    again = json.loads(command("train", recipe, "--work-dir", "b", "--load-from", "plain.safetensors")[1])
    fresh = json.loads(command("train", recipe, "--work-dir", "c")[1])

    assert first["digest"] == again["digest"] != fresh["digest"]


def test_weights_that_do_not_fit_are_shown_in_a_table(command, recipe, plain):
    """On stderr, with one line that says what to do; nothing is begun."""
    code, out, err = command("train", recipe, "--load-from", "plain.safetensors", "--set", "model.width=8")
    table, line = err.splitlines()[:-1], err.splitlines()[-1]

    assert (2, "") == (code, out)
    assert line.startswith("purerun: plain.safetensors: 2 tensors taken, 7 mismatched; the first is `layers.0.bias`: ")
    assert line.endswith("or take what fits with strict=False (--no-strict)")
    assert ["name", "expected", "found"] == table[0].split()
    assert "mismatched  layers.0.weight        float32 [8, 3]  float32 [4, 3]" in table
    assert 8 == len(table)
    assert not Path("runs").exists()


def test_what_fits_is_taken_when_asked(command, recipe, plain):
    """The table is told all the same."""
    code, _, err = command(
        "train",
        recipe,
        "--load-from",
        "plain.safetensors",
        "--set",
        "model.width=8",
        "--no-strict",
        "--set",
        "epochs=1",
    )

    assert 0 == code
    assert "starting with the weights of plain.safetensors: 2 tensors taken, 7 mismatched" in err
    assert "mismatched  layers.0.weight        float32 [8, 3]  float32 [4, 3]" in err


def test_names_are_replaced(command, recipe, plain):
    """In the order given, each wherever it matches."""
    save_file({f"net.{name.replace('layers', 'body')}": tensor for name, tensor in plain.items()}, "other.safetensors")
    renames = ("--rename", "^net\\.=", "--rename", "body=layers")
    refused = command("train", recipe, "--load-from", "other.safetensors", "--rename", "body=layers")
    renamed = command("train", recipe, "--work-dir", "a", "--load-from", "other.safetensors", *renames)
    same = command("train", recipe, "--work-dir", "b", "--load-from", "plain.safetensors")

    assert (2, 0) == (refused[0], renamed[0])
    assert "as by --rename '^net\\.='" in refused[2]
    assert json.loads(same[1])["digest"] == json.loads(renamed[1])["digest"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rename", "a=b"), "expected --load-from PATH with --weights, --rename and --no-strict"),
        (("--no-strict",), "expected --load-from PATH with"),
        (("--weights", "ema"), "expected --load-from PATH with"),
        (("--load-from", "plain.safetensors", "--rename", "layers"), "expected OLD=NEW such as '^backbone\\.=', got"),
        (("--load-from", "plain.safetensors", "--rename", "=x"), "expected OLD=NEW such as"),
        (
            ("--load-from", "plain.safetensors", "--rename", "(=x"),
            "expected a regular expression to rename by, got '('",
        ),
        (("--load-from", "plain.safetensors", "--weights", "ema"), "plain.safetensors: has one set of weights"),
        (("--load-from", "tiny.py"), "tiny.py: expected a checkpoint, a run, or a file that ends in .safetensors"),
        (("--load-from", "nowhere.pth"), "nowhere.pth: expected a file with weights, found none"),
        (("--load-from", "nowhere://a"), "nowhere://a: expected a URL that fsspec knows: Protocol not known: nowhere"),
        (("--resume", "nowhere://a"), "nowhere://a: expected a URL that fsspec knows: Protocol not known: nowhere"),
        (("--resume", "memory://nowhere"), "memory://nowhere: expected a checkpoint or the directory of a run"),
    ],
)
def test_mistakes_are_told_in_one_line(command, recipe, plain, words, message):
    """What came, and what to do."""
    code, out, err = command("train", recipe, *words)

    assert (2, "") == (code, out)
    assert err.startswith(f"purerun: {message}")
    assert 1 == len(err.splitlines())


def test_weights_are_handed_on(command, recipe):
    """The file loads in the plain module; its name is the result."""
    command("train", recipe, "--work-dir", "a")
    code, out, err = command("export", "a", "out/net.safetensors")
    module = load(recipe).model.build(pr.Key.of(0, "init"))
    module.load_state_dict(load_file("out/net.safetensors"), strict=True)

    assert (0, "out/net.safetensors\n", "purerun: wrote 9 tensors of a\n") == (code, out, err)
    assert all(torch.equal(param, pr.load("a")["params", name]) for name, param in module.named_parameters())


def test_a_file_in_the_way_is_replaced_when_asked(command, recipe):
    """Not otherwise; and what goes wrong is the user's mistake."""
    command("train", recipe, "--work-dir", "a")
    first = command("export", "a", "net.pth")
    refused = command("export", "a", "net.pth")
    replaced = command("export", "a", "net.pth", "--overwrite")
    average = command("export", "a", "net.pth", "--overwrite", "--weights", "ema")

    assert [0, 2, 0, 2] == [each[0] for each in (first, refused, replaced, average)]
    assert "purerun: net.pth: a file is there; choose another name, or replace a file with --overwrite\n" == refused[2]
    assert "expected averaged weights in `ema`" in average[2]


def test_a_run_goes_on_from_elsewhere(command, recipe):
    """Its checkpoint, its weights and its digest, by URL."""
    whole = json.loads(command("train", recipe, "--work-dir", "a")[1])
    part = pr.load("a/checkpoints/iter_00000003")
    manifest = pr.checkpoint.read_manifest("a/checkpoints/iter_00000003")
    url = "memory://test_weights/run/checkpoints/iter_00000003"
    pr.save(part, url, recipe=manifest.recipe)
    code, out, _ = command("train", recipe, "--work-dir", "b", "--resume", "memory://test_weights/run")
    begun = command("train", recipe, "--work-dir", "c", "--load-from", url)

    assert (0, whole["digest"]) == (code, json.loads(out)["digest"])
    assert f"{pr.digest(part)}\n" == command("digest", url)[1]
    assert f"starting with the weights of {url}: 9 tensors taken" in begun[2]
    assert 0 == command("test", recipe, url)[0]
