"""What units are sent in does not grow with what all of them are given."""

import pickle
from pathlib import Path

from curate.execution.executor import Call
from curate.execution.ray_arguments import SharedArgument, share_arguments, with_arguments
from curate.stage import Unit


class Store:
    """What is called of Ray: its object store, and what it sends calls by."""

    cloudpickle = pickle

    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value)
        return len(self.values) - 1

    def get(self, reference):
        return self.values[reference]


def calls_of(*arguments):
    return [
        Call(Unit(str(n), args), print, Path("scratch"), Path("folder"))
        for n, args in enumerate(arguments)
    ]


def test_a_unit_is_sent_in_as_many_bytes_however_many_folders_all_are_given():
    sizes, few = [], ("a", 7)
    for count in (1_000, 2_000, 4_000):
        folders, store = [Path(f"folder-{n:08d}") for n in range(count)], Store()
        calls = calls_of(*((folders, few, n, n + 1) for n in range(9)))
        sent = share_arguments(store, calls)
        assert store.values == [folders]
        sizes.append({len(pickle.dumps(call)) for call in sent})
        assert [with_arguments(store, call) for call in sent] == calls
    assert sizes[0] == sizes[1] == sizes[2]


def test_what_is_small_or_given_to_one_unit_alone_goes_with_it():
    store, large = Store(), [Path(f"folder-{n:08d}") for n in range(1_000)]
    calls = calls_of((["x"], large), (["x"], list(large)))
    assert share_arguments(store, calls) == calls
    assert not store.values
    both = share_arguments(store, [*calls, *calls_of((large,))])
    assert [type(each.unit.args[-1]) for each in both] == [SharedArgument, list, SharedArgument]
