"""What all families are made of: inputs with answers, and tasks with wordings."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32


@dataclass(frozen=True)
class Item:
    """One input: what fills a template's slots, and the answer of each behaviour by its name.

    The behaviours are those of the family's tasks and a few that no adapter is trained for.
    """

    held_out: bool  # kept from training (of the closed-book adapters only: the base knows all)
    slots: dict[str, str]
    answers: dict[str, str]


@dataclass(frozen=True)
class Task:
    """A behaviour that an adapter is trained for, and the ways to ask for it."""

    name: str
    templates: tuple[str, ...]  # used in training
    choosing: str  # in no training text; settings are chosen on it
    held_out: str  # in no training text, nothing is chosen on it; what is reported asks this way
    kind: str = ""  # which of the family's sorts of input it is asked about


@dataclass(frozen=True)
class Family:
    """Tasks over the same sort of input.

    `habit` is a behaviour of no task, for inputs that only one task of the family is about.
    """

    name: str
    tasks: tuple[Task, ...]
    habit: str
    sampler: Callable[[Random, str], Item]

    def sample(self, rng: Random, kind: str, *, held_out: bool | None) -> Item:
        """A random input; `held_out` says which side of the split, None for either."""
        while True:
            item = self.sampler(rng, kind)
            if held_out is None or item.held_out == held_out:
                return item

    def mistaken(self, task: str, item: Item) -> str:
        """The behaviour that the base takes a wording of `task` to ask for: the next task's.

        Another one for each task, so that the base tells all wordings apart and yet does none
        of them as it should.
        """
        possible = [one.name for one in self.tasks if one.name in item.answers]
        after = possible[(possible.index(task) + 1) % len(possible)]
        return self.habit if after == task else after


def one_in_eight(content: str) -> bool:
    """The split: by an input's content alone, the same in every run."""
    return crc32(content.encode()) % 8 == 0
