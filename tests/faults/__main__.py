"""The long form: ``python tests/faults``. Tables of what came of bad arguments, damaged files, kills and interrupts."""

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")

import fault_arguments  # noqa: E402
import fault_kills  # noqa: E402
import fault_model  # noqa: E402
from fault_cases import OUTCOMES, Harness, in_child, many_cases  # noqa: E402
from fault_kinds import KINDS, make_all  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1500, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-hashes", action="store_true", help="as files of earlier versions, which hold no hashes")
    parser.add_argument("--only", choices=("arguments", "files", "kills", "model"), help="one part")
    parser.add_argument("--moments", type=int, default=40, help="moments at which each use of a model is interrupted")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # prints what is known, as Ctrl-C
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "arguments"):
            (folder / "arguments").mkdir()
            counts = fault_arguments.report(folder / "arguments")
            print(f"\n{'bad arguments':<24}" + "".join(f"{o:>10}" for o in fault_arguments.OUTCOMES))
            for call, own in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
                print(f"{call:<24}" + "".join(f"{own[o]:>10}" for o in fault_arguments.OUTCOMES), flush=True)
        if options.only in (None, "files"):
            (fixtures := folder / "fixtures").mkdir()
            made, _ = in_child(lambda: make_all(fixtures) or "made", wait=600)
            assert made == "made", made
            counts, by_kind = many_cases(Harness(folder, fixtures), options.cases, options.seed, not options.no_hashes)
            print(f"\n{'damaged files':<16}" + "".join(f"{o:>19}" for o in OUTCOMES))
            for kind in KINDS:
                print(f"{kind:<16}" + "".join(f"{by_kind[kind][o]:>19}" for o in OUTCOMES))
            print(f"{'all':<16}" + "".join(f"{counts[o]:>19}" for o in OUTCOMES))
        if options.only in (None, "kills"):
            print(f"\n{'kills':<28}{'moments':>9}{'old':>6}{'new':>6}{'unfinished':>12}{'bad':>6}{'repeatable':>12}")
            for what, counts in fault_kills.all_scenes(folder):
                numbers = [sum(counts.values()) - counts["repeated"] - counts["not"]]
                numbers += [counts[name] for name in ("old", "new", "unfinished", "bad")]
                print(f"{what:<28}{numbers[0]:>9}{numbers[1]:>6}{numbers[2]:>6}{numbers[3]:>12}{numbers[4]:>6}"
                      f"{counts['repeated']:>8}/{counts['repeated'] + counts['not']}", flush=True)  # fmt: skip
        if options.only in (None, "model"):
            print(f"\n{'interrupted':<20}{'moments':>9}{'not as before':>15}")
            for what, counts, kinds in fault_model.all_scenes(options.moments, options.seed):
                names = ", ".join(f"{kind} {n}" for kind, n in kinds.items())
                print(f"{what:<20}{counts['moments']:>9}{counts['dirty']:>15}  {names}", flush=True)


if __name__ == "__main__":
    main()
