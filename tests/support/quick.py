"""What `make quick` runs, and what more `make test-versions` runs.

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

#: Besides, where libraries may differ: the engine against full passes, what serves a model, a job
#: that travels.
VERSIONS = frozenset(
    {
        "test_backends::test_simulated_is_local",
        "test_cache_name",
        "test_decompose_attention::test_every_family_falls_apart_or_says_why_not",
        "test_engine",
        "test_versions",
    }
)
