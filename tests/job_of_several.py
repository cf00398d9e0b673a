"""One of several processes, started by torchrun: it searches and retrains toys and notes what this process got.

torchrun --nproc-per-node 2 tests/job_of_several.py '[{"what": "search", "order": "first"}]' FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny import tiny_bert, tiny_t5
from toy import toy_regression, toy_task
from transformers import TrainerCallback

import s3pet
from s3pet import searcher
from s3pet.errors import S3PetError
from s3pet.searcher import Searcher


class Killed(TrainerCallback):
    """Ends the second process, as by ``kill -9``, at a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the Trainer."""
        if state.global_step == self.step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


class Dying(Searcher):
    """A search whose second process ends, as by ``kill -9``, at a step, while the others wait for its gradients."""

    at = 0

    def advance(self):
        """One step, perhaps."""
        if self.step == self.at and self.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().advance()


def run(case, out):
    """What one process finds: numbers by name."""
    what, kill, encoder = case.pop("what"), case.pop("kill", 0), case.pop("encoder", False)
    model = (tiny_bert() if encoder else tiny_t5(attn_implementation="eager")).double()
    task = toy_regression() if encoder else toy_task()
    space = s3pet.make_space(model, "mixed")
    options = {"batch_size": 7, "lr": 1e-2, "seed": 3, "steps": 12, "out": out, **case}
    if what == "search":
        Dying.at, searcher.Searcher = kill or -1, Dying
        seen = []
        calls = [lambda search: seen.append(search.step)]
        found = s3pet.search(model, task, space, budget="2%", progress=False, callbacks=calls, **options)
        numbers = {"alpha": found.gates.alpha.tolist(), "history": found.history.fillna(0).to_numpy().tolist()}
        return numbers, {"rows": found.cost.rows, "chosen": found.structure().names, "callbacks": len(seen)}
    structure = s3pet.random_structure(space, "3%", seed=0)
    tuned = s3pet.retrain(model, task, structure, callbacks=[Killed(kill)], **{"evaluations": 3, **options})
    numbers = {name: tensor.tolist() for name, tensor in tuned.tensors().items()}
    numbers["scores"] = [tuned.metrics["validation"], tuned.metrics["test"]]
    return numbers, {"rows": tuned.cost.rows, "best_step": tuned.metrics["best_step"]}


def main():
    """Do the cases one after the other, in float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    found = []
    for number, case in enumerate(cases):
        try:
            found.append(run(case, folder / str(number)))
        except S3PetError as error:
            found.append([{}, {"error": f"{type(error).__name__}: {error}"}])
    name = f"process{os.environ.get('RANK', '0')}.json"
    (folder / name).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
