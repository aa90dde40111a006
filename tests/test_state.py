"""States: they can be read, replaced and kept, and nothing that is done to one reaches another."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - what users do to states is tested, not used
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from purerun.identity import digest
from purerun.state import StaleState, State, StateError, lazy_clone, leaves, missing, release, seal, unseal
from purerun.testing.snapshot import of_state


def pickled(state):
    return pickle.loads(pickle.dumps(state))  # noqa: S301


WRITES = {
    "fill a leaf": lambda s: s["params"]["a.w"].fill_(7),
    "fill a row": lambda s: s["params"]["a.w"][0].fill_(7),
    "fill through data": lambda s: s["params"]["a.w"].data.fill_(7),
    "fill through numpy": lambda s: s["params"]["a.w"].numpy().fill(7),
    "fill through a view": lambda s: s["params"]["a.w"].view(-1).add_(7),
    "foreach": lambda s: torch._foreach_add_(list(s["params"].values()), 7),
    "set_": lambda s: s.set_("iter", torch.tensor(7)),
    "set in place": lambda s: s.set("iter", torch.tensor(7), inplace=True),
    "update_": lambda s: s.update_({"iter": torch.tensor(7)}),
    "update in place": lambda s: s.update({"iter": torch.tensor(7)}, inplace=True),
    "zero_": lambda s: s.zero_(),
    "zero_ a child": lambda s: s["params"].zero_(),
    "apply_": lambda s: s.apply_(lambda leaf: leaf.add_(7)),
    "copy_": lambda s: s["params"].copy_(TensorDict({"a.w": torch.full((2, 2), 7.0), "b": torch.ones(2)}, [])),
    "add_": lambda s: s["params"].add_(7),
    "mul_": lambda s: s["params"].mul_(7),
    "share_memory_": lambda s: s.share_memory_()["params"]["a.w"].fill_(7),
}

REFUSED = {
    "set": lambda s: s.set("iter", torch.tensor(1)),
    "item": lambda s: s.__setitem__("iter", torch.tensor(1)),
    "nested item": lambda s: s.__setitem__(("params", "b"), torch.tensor(1)),
    "child item": lambda s: s["params"].__setitem__("b", torch.tensor(1)),
    "new item": lambda s: s.__setitem__("more", torch.tensor(1)),
    "update": lambda s: s.update({"iter": torch.tensor(1)}),
    "del": lambda s: s.__delitem__("iter"),
    "del_": lambda s: s.del_("iter"),
    "pop": lambda s: s.pop("params"),
    "clear": lambda s: s.clear(),
    "rename_key_": lambda s: s.rename_key_("iter", "it"),
    "unlock_": lambda s: s.unlock_(),
    "is_locked": lambda s: setattr(s, "is_locked", False),
    "flatten_keys in place": lambda s: s.flatten_keys(".", inplace=True),
}

COPIES = {
    "hold": lambda s: s.hold(),
    "replace": lambda s: s.replace(iter=3),
    "replace by itself": lambda s: s.replace(params=s["params"]),
    "select": lambda s: s.select("params", "iter", "metrics", "buffers"),
    "exclude": lambda s: s.exclude("more"),
    "copy.copy": copy.copy,
    "copy": lambda s: s.copy(),
    "shallow clone": lambda s: s.clone(recurse=False),
    "deepcopy": copy.deepcopy,
    "clone": lambda s: s.clone(),
    "pickle": pickled,
    "stack": lambda s: torch.stack([s, s])[1],
    "seal(unseal)": lambda s: seal(unseal(s)),
    "sum": lambda s: s + 0,
}


USES = {
    "item": lambda s: s["iter"],
    "nested item": lambda s: s["params", "b"],
    "get": lambda s: s.get("iter"),
    "keys": lambda s: list(s.keys()),
    "values": lambda s: list(s.values()),
    "items": lambda s: list(s.items()),
    "nested items": lambda s: list(s.items(include_nested=True, leaves_only=True)),
    "in": lambda s: "iter" in s.keys(),  # noqa: SIM118
    "repr": repr,
    "names": lambda s: s.names(),
    "hold": lambda s: s.hold(),
    "replace": lambda s: s.replace(iter=1),
    "replace nothing": lambda s: s.replace(),
    "clone": lambda s: s.clone(),
    "copy": lambda s: s.copy(),
    "copy.copy": copy.copy,
    "select": lambda s: s.select("iter"),
    "exclude": lambda s: s.exclude("iter"),
    "to": lambda s: s.to("cpu"),
    "apply": lambda s: s.apply(lambda leaf: leaf),
    "to_dict": lambda s: s.to_dict(),
    "flatten_keys": lambda s: s.flatten_keys("."),
    "stack": lambda s: torch.stack([s, s]),
    "==": lambda s: s == s,
    "+": lambda s: s + 1,
    "zero_": lambda s: s.zero_(),
    "unsqueeze": lambda s: s.unsqueeze(0),
    "leaves": lambda s: list(leaves(s)),
    "unseal": unseal,
    "digest": digest,
    "release": release,
    "deepcopy": lambda s: copy.deepcopy(s)["iter"],
    "pickle": lambda s: pickled(s)["iter"],
}


def small(**more) -> State:
    """Make a small state with a bit of everything."""
    draft = {
        "params": {"a.w": torch.arange(4.0).reshape(2, 2), "b": torch.ones(2)},
        "buffers": {},
        "iter": torch.tensor(3),
        "metrics": {"loss": torch.tensor(0.5)},
    }
    return seal({**draft, **more})


def attempted(write, state) -> bool:
    """Try to write; say whether it was allowed."""
    try:
        write(state)
    except StateError:
        return False
    return True


class TestWriting:
    """A write reaches the state that it is aimed at, if it is allowed at all, and no other."""

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    @pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
    def test_writing_into_a_state_harms_no_copy(self, copied, write):
        """What was made from a state before stays bit-identical."""
        state = small()
        other = copied(state)
        looks = of_state(other)
        refused = not attempted(write, state)

        assert looks == of_state(other)
        assert refused == (digest(state) == digest(small()))

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    @pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
    def test_writing_into_a_copy_harms_no_original(self, copied, write):
        """The other way round too, and what a third party holds stays whole as well."""
        state = small()
        third, looks = state.hold(), of_state(state)
        attempted(write, copied(state))

        assert [looks, looks] == [of_state(state), of_state(third)]

    @pytest.mark.parametrize("attempt", REFUSED.values(), ids=REFUSED)
    def test_names_and_bindings_are_fixed(self, attempt):
        """Setting, deleting, renaming and unlocking are refused, and change nothing."""
        state = small()
        with pytest.raises((RuntimeError, StateError)):
            attempt(state)

        assert of_state(small()) == of_state(state)
        assert state.is_locked

    def test_a_draft_belongs_to_whoever_opened_it(self):
        """Writing into a draft, and into its dicts, leaves the state alone."""
        state = small()
        draft = unseal(state)
        draft["params"]["a.w"].zero_()
        draft["params"].pop("b")
        draft["iter"] += 1

        assert of_state(small()) == of_state(state)
        assert draft["metrics"] == {}

    @given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["hold", "replace", "draft", "write"])), max_size=25))
    def test_any_history_of_holds_and_writes(self, moves):
        """Each state is what plain copies of numbers say it is, whatever was made from what, and written where."""
        states, model = [small()], [torch.arange(4.0).tolist()]
        for place, move in moves:
            which = place % len(states)
            leaf = states[which]["params"]["a.w"]
            if move == "write":
                leaf += 1
                model[which] = [value + 1 for value in model[which]]
            elif move == "draft":
                draft = unseal(states[which])
                draft["params"]["a.w"] *= 2
                states.append(seal(draft))
                model.append([value * 2 for value in model[which]])
            else:
                states.append(states[which].hold() if move == "hold" else states[which].replace(iter=place))
                model.append(list(model[which]))

        assert model == [state["params"]["a.w"].flatten().tolist() for state in states]


class TestReplacing:
    """`replace` makes the next value: nested, by name, keeping dtypes."""

    def test_nested_entries_are_merged(self):
        """What is not named stays; new names are added; the report is kept."""
        state = small().replace({"params": {"b": torch.zeros(2)}, "scores": {"top": 1.5}}, iter=9)

        assert [("a.w",), ("b",)] == [path for path, _ in leaves(state["params"])]
        assert (9, [0.0, 0.0], 1.5, 0.5) == (
            int(state["iter"]),
            state["params", "b"].tolist(),
            float(state["scores", "top"]),
            float(state["metrics", "loss"]),
        )

    @pytest.mark.parametrize(
        ("old", "value", "dtype"),
        [
            (torch.tensor(1, dtype=torch.int32), 7, torch.int32),
            (torch.tensor(1.0, dtype=torch.float16), 0.5, torch.float16),
            (torch.tensor([1, 2]), [3, 4], torch.int64),
            (torch.tensor(True), False, torch.bool),
        ],
    )
    def test_numbers_take_the_dtype_of_the_leaf(self, old, value, dtype):
        """A state keeps its dtypes when a user types a number."""
        leaf = small(x=old).replace(x=value)["x"]

        assert (dtype, value) == (leaf.dtype, leaf.tolist())

    def test_a_new_number_keeps_all_its_digits(self):
        """A hyper-parameter such as 0.1 stays the double that it was."""
        assert (torch.float64, 0.1) == ((leaf := small().replace(lr=0.1)["lr"]).dtype, leaf.item())

    def test_a_tensor_is_taken_as_a_value(self):
        """Neither its graph nor later writes into it reach the state."""
        mine = torch.ones(2, requires_grad=True)
        state = small().replace(params={"b": mine * 3})
        theirs = torch.ones(2)
        other = small().replace(params={"b": theirs})
        theirs.zero_()

        assert not state["params", "b"].requires_grad
        assert [1.0, 1.0] == other["params", "b"].tolist()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"params": 1}, "expected a mapping of names at params, got int"),
            ({"params": torch.ones(1)}, "expected a mapping of names at params, got Tensor"),
            ({"iter": {"x": 1}}, "expected a tensor at iter, got a mapping"),
            ({"params": {"b": {"x": 1}}}, "expected a tensor at params/b, got a mapping"),
        ],
        ids=["number for tree", "tensor for tree", "tree for leaf", "tree for inner leaf"],
    )
    def test_a_leaf_stays_a_leaf_and_a_tree_a_tree(self, changes, words):
        """The error says where, what was expected and what came."""
        with pytest.raises(StateError, match=words):
            small().replace(changes)

    def test_entries_are_selected_and_excluded(self):
        """What is left is a state of its own."""
        assert ("iter", "params") == tuple(sorted(small().select("params", "iter").names()))
        assert ("buffers", "iter", "metrics") == tuple(sorted(small().exclude("params", "absent").names()))


class TestLeases:
    """A released state is gone for good, everything taken out of it before is not."""

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    def test_every_use_of_a_released_state_names_the_remedy(self, use):
        """Reading, copying, printing, comparing and hashing raise `StaleState`, and so do its children."""
        state = small()
        child = state["params"]
        release(state)
        with pytest.raises(StaleState, match=r"state\.hold\(\)"):
            use(state)
        with pytest.raises(StaleState, match=r"state\.hold\(\)"):
            list(child.items())

    def test_what_was_taken_out_before_stays_right(self):
        """Tensors, views, holds and drafts outlive the release, and later writes into what was leased."""
        state = small()
        taken = state["params", "a.w"], state["params", "b"][1:], state.hold(), unseal(state), state["params"].hold()
        draft = unseal(state, lease=True)
        release(state)
        for tensor in draft["params"].values():
            tensor.fill_(7)

        assert [[0.0, 1.0], [2.0, 3.0]] == taken[0].tolist()
        assert [1.0] == taken[1].tolist()
        assert of_state(small()) == of_state(taken[2])
        assert [1.0, 1.0] == taken[3]["params"]["b"].tolist() == taken[4]["b"].tolist()

    def test_a_lease_that_nobody_looked_into_is_moved(self):
        """Its tensors are handed on without a copy, so that an update in place needs no second memory."""
        state = seal({"params": {"w": torch.ones(1000)}})
        where = state._tensordict.tree["params"]._tensordict.tree["w"].data_ptr()
        draft = unseal(state, lease=True)
        release(state)

        assert where == draft["params"]["w"].add_(1).data_ptr()

    def test_a_released_state_keeps_no_memory(self):
        """Its tensors die with their last other owner."""
        state = seal({"params": {"w": torch.ones(1000)}})
        tensor = weakref.ref(state["params", "w"])
        release(state)

        assert tensor() is None


class TestParts:
    """The small functions that states are made with."""

    def test_leaves_come_in_the_order_of_their_paths(self):
        """Whatever the order in which they were put in; the report only when it is asked for."""
        state = seal(
            {"b": torch.zeros(1), "metrics": {"x": torch.zeros(1)}, "a": {"z": torch.zeros(1), "c": torch.zeros(1)}}
        )

        assert [("a", "c"), ("a", "z"), ("b",)] == [path for path, _ in leaves(state)]
        assert [("a", "c"), ("a", "z"), ("b",), ("metrics", "x")] == [path for path, _ in leaves(state, report=True)]

    def test_only_the_report_at_the_top_is_left_out(self):
        """A slot of a wrapper may well have an entry called metrics."""
        assert [("a", "metrics")] == [path for path, _ in leaves(seal({"a": {"metrics": torch.zeros(1)}}))]

    def test_missing_slots_are_those_that_the_state_lacks(self):
        """A leaf that is there stays, whatever its value; empty containers are made."""
        state = seal({"scores": {"top": torch.ones(1)}, "x": torch.ones(1)})
        slots = {"scores": {"top": torch.zeros(1), "loss": torch.zeros(1)}, "x": torch.zeros(1), "memory": {}}

        assert {"scores": {"loss": torch.zeros(1)}, "memory": {}} == missing(slots, state)

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(6.0).reshape(2, 3).t(),
            torch.zeros(2, 0),
            torch.tensor(3),
            torch.ones(1).expand(4),
            torch.ones(3, dtype=torch.complex64).conj(),
            torch.from_numpy(np.arange(3)),
            torch.ones(4, dtype=torch.bfloat16)[::2],
        ],
        ids=["transposed", "empty", "scalar", "expanded", "conjugated", "numpy", "strided"],
    )
    def test_a_lazy_clone_is_equal_and_separate(self, tensor):
        """Of any layout, dtype and origin; memory that torch did not allocate is copied at once."""
        before = tensor.clone()
        clone = lazy_clone(tensor)

        assert torch.equal(before, clone)
        clone = clone.clone() if clone.stride() and 0 in clone.stride() else clone
        clone.add_(1)
        assert torch.equal(before, tensor)

    def test_a_chain_of_lazy_clones_does_not_grow(self):
        """Ten thousand states made from each other leave nothing behind."""
        state, made = small(), weakref.WeakSet()
        for count in range(10_000):
            state = state.replace(iter=count)
            made.add(state["params", "b"])

        assert 1 == len(made)

    def test_a_state_stacks_and_comes_apart(self):
        """Members of a stack are states with the same bits."""
        first, second = small(), small().replace(iter=8)
        stacked = torch.stack([first, second])

        assert [of_state(first), of_state(second)] == [of_state(stacked[0]), of_state(stacked[1])]
        assert [3, 8] == stacked["iter"].tolist()

    def test_a_state_says_what_it_holds(self):
        """It prints like a TensorDict."""
        assert all(word in repr(small()) for word in ("State", "params", "a.w", "iter"))
