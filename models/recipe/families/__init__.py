"""The suite: five families of tasks, and sets outside them.

To add a task, add its answers to its family's items and its wordings to the family's TASKS.
"""

from . import closed_book, inference, puzzles, struct_to_text, translation
from .item import Family, Item, Task
from .outside import SETS, OutsideSet

FAMILIES = {
    module.NAME: Family(module.NAME, module.TASKS, module.HABIT, module.sample)
    for module in (puzzles, translation, struct_to_text, closed_book, inference)
}
FAMILY_OF = {task.name: family for family in FAMILIES.values() for task in family.tasks}
TASKS = tuple(task for family in FAMILIES.values() for task in family.tasks)

__all__ = ["FAMILIES", "FAMILY_OF", "SETS", "TASKS", "Family", "Item", "OutsideSet", "Task"]
