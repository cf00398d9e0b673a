"""One case: damage a copy, open it in a child process, and say what came of it."""

import json
import os
import random
import select
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import fault_mutations
from fault_kinds import KINDS

from s3pet.errors import S3PetError

OUTCOMES = ("clear error", "same", "other values", "absurd load", "foreign traceback", "hang", "memory", "executed")
MEMORY = 100e6  # beyond the size of the file and what opening the undamaged one needs
WAIT = 30.0  # seconds of waiting in which nothing is computed, or of computing


def in_child(function, wait=WAIT):
    """What a function returns in a forked process, and by how many bytes that grew; None if it did not end or died."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiver)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = status("VmRSS")
            value = function()
            os.write(sender, json.dumps([value, status("VmHWM") - before]).encode())
        finally:
            os._exit(0)
    os.close(sender)
    parts, ready = [], True
    while ready and (not parts or parts[-1]):
        ready = select.select([receiver], [], [], wait)[0]
        if ready:
            parts.append(os.read(receiver, 1 << 20))
    os.close(receiver)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, end = os.waitpid(child, 0)
    text = b"".join(parts)
    return json.loads(text) if text else ["hang" if not ready else f"died of signal {end & 127}", 0]


def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def attempt(kind, folder, original=None):
    """Open a folder: the outcome and what was said."""
    opener, impossible, by_hand = KINDS[kind]
    warnings.simplefilter("ignore")
    try:
        value, opened = opener(folder)
        problem = next(iter(impossible(opened)), None)
        value = json.loads(json.dumps(value, default=str))
    except S3PetError as error:
        return ["clear error", f"{type(error).__name__}: {error}"]
    except BaseException as error:
        if isinstance(error, MemoryError):
            return ["memory", repr(error)]
        return ["foreign traceback", f"{type(error).__name__}: {error} — {traceback.format_exc()[-300:]}"]
    if original is None:
        return ["value", value]
    if problem is not None:
        return ["absurd load", str(problem)]
    cut = kind == "rows" and all(original.get(key) == row for key, row in value.items())  # after a kill: told, and used
    return ["same" if value == original or by_hand or cut else "other values", ""]


class Harness:
    """The saved things, and what each is when it is undamaged."""

    def __init__(self, folder, fixtures):
        self.folder, self.fixtures = folder, fixtures
        self.known = {}

    def undamaged(self, kind, hashes):
        if (kind, hashes) not in self.known:
            copy = self.folder / f"plain-{kind}-{hashes}"
            fault_mutations.copied(self.fixtures / kind, copy, hashes)
            (outcome, value), grown = in_child(lambda: attempt(kind, copy), wait=300)
            assert outcome == "value", (kind, hashes, outcome, value)
            self.known[kind, hashes] = value, grown
            shutil.rmtree(copy)
        return self.known[kind, hashes]

    def case(self, kind, seed, hashes=True):
        """Outcome, what was done, and what was said."""
        original, grown = self.undamaged(kind, hashes)
        draw, copy = random.Random(f"{kind}-{seed}"), self.folder / f"{kind}-{seed}-{hashes}"
        canary = self.folder / f"canary-{seed}"
        files = fault_mutations.copied(self.fixtures / kind, copy, hashes)
        what = fault_mutations.damage(draw, draw.choice(files), canary)
        sizes = sum(f.lstat().st_size for f in copy.rglob("*") if f.is_file() and not f.is_symlink())
        result, more = in_child(lambda: attempt(kind, copy, original))
        outcome, said = (
            result
            if isinstance(result, list)
            else (("hang", "") if result == "hang" else ("foreign traceback", result))
        )
        if outcome not in ("hang",) and more - max(grown, 0) > MEMORY + sizes:
            outcome, said = "memory", f"{more / 1e6:.0f} MB; {outcome} {said}"
        if canary.exists():
            outcome = "executed"
        shutil.rmtree(copy, ignore_errors=True)
        return outcome, what, said


def many_cases(harness, n, seed, hashes, show=print):
    """Count the outcomes of n cases, spread over all kinds; Ctrl-C ends it with those so far."""
    counts, started = Counter(), time.time()
    by_kind = {kind: Counter() for kind in KINDS}
    for number in range(n):
        kind = [*KINDS][number % len(KINDS)]
        try:
            outcome, what, said = harness.case(kind, f"{seed}-{number}", hashes)
        except KeyboardInterrupt:
            break
        counts[outcome] += 1
        by_kind[kind][outcome] += 1
        if outcome not in ("clear error", "same"):
            show(f"[{time.time() - started:.0f} s] {number} {kind} | {what} | {outcome} | {said[:200]!r}")
    return counts, by_kind
