"""Tasks: rows that are read, checked and labelled, for any backbone."""

from s3pet.tasks.plain import RowTask
from s3pet.tasks.task import Example, Task, list_tasks, load_task

__all__ = ["Example", "RowTask", "Task", "list_tasks", "load_task"]
