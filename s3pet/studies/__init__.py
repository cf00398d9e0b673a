"""Studies: grids of runs, their statistics, and the baselines that a search is compared with."""

from s3pet.studies.comparison import compare
from s3pet.studies.study import Study

__all__ = ["Study", "compare"]
