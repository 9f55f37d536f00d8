"""What `make quick` runs: a bit of everything, under a minute of processor time.

Structure and imports, what travels, tasks, metrics, statistics, files that give back what was put
in, figures, every family's proof, the engine against one plain pass per cell, and a job that
travels.
"""

from __future__ import annotations

#: Names of test files, or ``file::function``, wherever they lie.
QUICK = frozenset(
    {
        "test_activation_patching::test_every_metric",
        "test_backends::test_a_metric_of_ones_own_travels",
        "test_choose",
        "test_config_and_load",
        "test_first_mistakes",
        "test_groups",
        "test_linalg",
        "test_metrics",
        "test_plots",
        "test_results",
        "test_sequences",
        "test_sites",
        "test_statistics",
        "test_structure",
        "test_table",
        "test_tables",
        "test_tokens_and_tasks",
        "test_travel",
    }
)
