"""Figures of gate tables, structures and scores, and their contents in words.

Every ``plot_`` function takes ``ax=None`` (where to draw) or ``figure=None`` (emptied, resized and drawn in; None makes
one), returns Axes and never calls ``show()``. It reads a tidy table, or an object that has one, so a saved run is
enough. A table without rows or a needed column, or of several searches or tasks where a figure shows one, raises
`s3pet.errors.PlotError`, before anything is drawn. All figures are vector graphics.
"""

from s3pet.plots.chance import choice_frequency, choice_shares, plot_frequency, plot_shares
from s3pet.plots.curves import plot_polarisation, plot_profile, plot_trajectories, polarisation, profile_shares
from s3pet.plots.cuts import choice_table, plot_agreement, plot_budget_bar, plot_cut, plot_two, select_rows
from s3pet.plots.faithfulness import plot_faithfulness, plot_gates_against_utility, plot_utility
from s3pet.plots.forest import plot_differences, plot_ranking, plot_repeats
from s3pet.plots.intervals import summarize_scores
from s3pet.plots.lab import plot_gate_lab
from s3pet.plots.maps import Grid, gate_cells, make_grid, plot_difference, plot_gates, plot_structure
from s3pet.plots.matrices import plot_overlap, plot_transfer, transfer_matrix
from s3pet.plots.overview import plot_search, search_diagnostics
from s3pet.plots.panels import plot_gate_panels
from s3pet.plots.scores import plot_budget_curve, plot_comparison
from s3pet.plots.style import figure_style, save_figure, value_limits
from s3pet.plots.words import candidate_facts, candidate_names, describe

# fmt: off
__all__ = [
    "Grid", "candidate_facts", "candidate_names", "choice_frequency", "choice_shares", "choice_table", "describe",
    "figure_style", "gate_cells", "make_grid", "plot_agreement", "plot_budget_bar", "plot_budget_curve",
    "plot_comparison", "plot_cut", "plot_difference", "plot_differences", "plot_faithfulness", "plot_frequency",
    "plot_gate_lab", "plot_gate_panels", "plot_gates", "plot_gates_against_utility", "plot_overlap",
    "plot_polarisation", "plot_profile", "plot_ranking", "plot_repeats", "plot_search", "plot_shares", "plot_structure",
    "plot_trajectories", "plot_transfer", "plot_two", "plot_utility", "polarisation", "profile_shares", "save_figure",
    "search_diagnostics", "select_rows", "summarize_scores", "transfer_matrix", "value_limits",
]
