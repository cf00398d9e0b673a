"""Kill a process at each of its writes, and look at what it leaves: the old, the new, or a mixture.

Writes are seen by an audit hook (files opened for writing, renamed, removed; folders made or removed), so that the
library needs no hook of its own. The process ends *before* the k-th of them, as by ``kill -9``.
"""

import functools
import os
import shutil
import signal
import sys
from collections import Counter

from fault_cases import in_child
from fault_kinds import SEARCH, frame, model_and_space
from tiny import tiny_t5
from toy import short_task

import s3pet
from s3pet.errors import S3PetError
from s3pet.export import from_peft, save_folder, to_peft

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
QUICK = {"steps": 6, "batch_size": 4}


def killed_at(k, folder, action):
    """Run an action in a child that ends before its k-th write below the folder; whether it ended by that."""

    def run():
        seen = [0]

        def hook(event, arguments):
            writes = event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
            if writes and str(arguments[0]).startswith(str(folder)):
                seen[0] += 1
                if seen[0] == k:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action(folder)
        return "done"

    return in_child(run, wait=300)[0] != "done"


def weights(tuned):
    return {name: tensor.flatten().tolist() for name, tensor in tuned.tensors().items()} | {"n": repr(tuned.structure)}


class Scene:
    """``old`` and ``new`` save one thing or another into a folder; ``read`` says which is there."""

    def __init__(self, name, read, new, old=None, again=None):
        self.name, self.read, self.new, self.old, self.again = name, read, new, old, again or new

    def moments(self, place, every=1):
        """Kill at every write (or every n-th) and count what is left."""
        counts, values = Counter(), {}
        for which, make in (("old", self.old), ("new", self.new)):
            if make is not None:
                in_child(lambda make=make, which=which: make(place / which) and None, wait=300)
                values[which] = self.read(place / which)
        k = 1
        while True:
            folder = place / f"killed-{k}"
            if self.old is not None:
                shutil.copytree(place / "old", folder)
            if not killed_at(k, folder, self.new):
                break
            counts[self._left(folder, values)] += 1
            ended = in_child(lambda folder=folder: self._repeat(folder), wait=300)[0]
            same = ended == "done" and self._left(folder, values) == "new"
            counts["repeated" if same else "not"] += 1
            shutil.rmtree(folder, ignore_errors=True)
            k += every
        return counts

    def _repeat(self, folder):
        try:
            self.again(folder)
        except S3PetError as error:
            if self._finished(error):
                return "done"
            return f"{error}"
        return "done"

    @staticmethod
    def _finished(error):
        return "holds a" in str(error) and "overwrite" in str(error)

    def _left(self, folder, values):
        try:
            value = self.read(folder)
        except S3PetError:
            return "unfinished" if self.old is None else "bad"
        except Exception:
            return "bad"
        return next((which for which, known in values.items() if value == known), "bad")


def all_scenes(folder, every=1, names=None):
    """Each scene's name and counts."""
    for scene in scenes():
        if names is None or scene.name in names:
            (place := folder / scene.name.replace(" ", "-")).mkdir()
            yield scene.name, scene.moments(place, every)


@functools.cache
def scenes():
    model, space = model_and_space()
    task = short_task()
    results = [s3pet.search(model, task, space, seed=seed, **SEARCH | {"steps": 6}) for seed in (0, 1)]
    structures = [s3pet.random_structure(space, 600, seed=1), "full"]
    tuned = [s3pet.retrain(model, task, structure, steps=2, batch_size=4) for structure in structures]
    lora, more = (s3pet.retrain(model, task, s3pet.manual_structure(space, name), steps=2, batch_size=4)
                  for name in ("lora_qv", "lora_all"))  # fmt: skip

    def run(path):
        result = s3pet.load_run(path)
        return [
            frame(result.gates),
            frame(result.history),
            frame(result.trajectory),
            result.config,
            result.metrics["steps"],
        ]

    def model_of(path):
        return weights(s3pet.load_tuned(path, tiny_t5(), task))

    def adapter(path):
        read = from_peft(path, model)
        return {name: tensor.flatten().tolist() for name, tensor in read.supernet.tensors().items()}

    def search(path, **more):
        s3pet.search(model, task, space, out=path, overwrite=True, **SEARCH | {"steps": 6} | more)

    def retrain(path):
        s3pet.retrain(model, task, structures[0], out=path, **QUICK)

    def structure(path):
        return s3pet.Structure.from_json(path / "s.json").names

    return [
        Scene("a run saved over", run, lambda p: results[0].save(p, overwrite=True),
              lambda p: results[1].save(p, overwrite=True)),
        Scene("a tuned model saved over", model_of, lambda p: tuned[0].save(p, overwrite=True),
              lambda p: tuned[1].save(p, overwrite=True)),
        Scene("a smaller one saved over", model_of, lambda p: tuned[1].save(p, overwrite=True),
              lambda p: tuned[0].save(p, overwrite=True)),
        Scene("a hub folder saved over", model_of, lambda p: save_folder(tuned[0], p, overwrite=True),
              lambda p: save_folder(tuned[1], p, overwrite=True)),
        Scene("an adapter saved over", adapter, lambda p: to_peft(lora, p, overwrite=True),
              lambda p: to_peft(more, p, overwrite=True)),
        Scene("a structure saved over", structure, lambda p: lora.structure.to_json(p / "s.json"),
              lambda p: more.structure.to_json(p / "s.json")),
        Scene("search(out)", run, search),
        Scene("search(out, overwrite)", run, search, lambda p: search(p, seed=3)),
        Scene("retrain(out)", model_of, retrain),
    ]  # fmt: skip
