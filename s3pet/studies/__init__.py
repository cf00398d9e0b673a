"""Studies: grids of runs, their statistics, baselines that a search is compared with, and benches to judge it by."""

from s3pet.studies.bench import Bench
from s3pet.studies.comparison import compare
from s3pet.studies.study import Study

__all__ = ["Bench", "Study", "compare"]
