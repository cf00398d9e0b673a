"""Figures of gate tables, structures and scores, and what they show in words.

Every ``plot_`` function takes ``ax=None``, returns Axes and never calls ``show()``; it reads a tidy table, or an object
that has one, so a saved run is enough. Computing and drawing are separate. All of it is vector.

    style     sizes, colours, dark mode, files
    grid      where things lie on a map of layers × module types
    maps      the maps: gates, differences, panels, structures
    cuts      a search cut at a budget: its map, what the budget is spent on, one candidate in facts
    choices   several searches cut at one budget: who chose what
    curves    one search over depth and over its steps
    scores    scores against trainable parameters
    ranking   differences to a baseline, and whether the runs suffice to tell
    matrices  task × task, seed × seed
    lab       the gates of a few candidates, for teaching
    words     the same in plain language
"""

from s3pet.plots.choices import choice_table, plot_agreement, plot_two
from s3pet.plots.curves import plot_polarisation, plot_profile, plot_trajectories, polarisation, profile_shares
from s3pet.plots.cuts import candidate_facts, candidate_names, plot_budget_bar, plot_cut, select_rows
from s3pet.plots.grid import Grid, gate_cells, make_grid, value_limits
from s3pet.plots.lab import plot_gate_lab
from s3pet.plots.maps import plot_difference, plot_gate_panels, plot_gates, plot_structure
from s3pet.plots.matrices import plot_overlap, plot_transfer, transfer_matrix
from s3pet.plots.ranking import plot_differences, plot_ranking
from s3pet.plots.repeats import plot_repeats
from s3pet.plots.scores import plot_budget_curve, plot_comparison, summarize_scores
from s3pet.plots.style import figure_style, save_figure
from s3pet.plots.words import describe

__all__ = [
    "Grid",
    "candidate_facts",
    "candidate_names",
    "choice_table",
    "describe",
    "figure_style",
    "gate_cells",
    "make_grid",
    "plot_agreement",
    "plot_budget_bar",
    "plot_budget_curve",
    "plot_comparison",
    "plot_cut",
    "plot_difference",
    "plot_differences",
    "plot_gate_lab",
    "plot_gate_panels",
    "plot_gates",
    "plot_overlap",
    "plot_polarisation",
    "plot_profile",
    "plot_ranking",
    "plot_repeats",
    "plot_structure",
    "plot_trajectories",
    "plot_transfer",
    "plot_two",
    "polarisation",
    "profile_shares",
    "save_figure",
    "select_rows",
    "summarize_scores",
    "transfer_matrix",
    "value_limits",
]
