"""Studies: grids of runs, statistics, baselines, what single modules do, races, trained structures, costs."""

from s3pet.studies.bench import Bench
from s3pet.studies.comparison import compare
from s3pet.studies.costs import estimate
from s3pet.studies.interventions import drop_utility, probe_inert, solo_utility
from s3pet.studies.racing import proposals, race
from s3pet.studies.study import Study

__all__ = ["Bench", "Study", "compare", "drop_utility", "estimate", "probe_inert", "proposals", "race", "solo_utility"]
