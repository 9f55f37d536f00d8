"""Sets of edges patched, each set's edges together: the job.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

from nnattr.engine.edge_sets import EdgeSets
from nnattr.engine.joint_pass import joint_logits
from nnattr.engine.variants import variants_job
from nnattr.engine.wiring import Wiring


def joint_edges_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines, and the change of the metric with each set patched [example, set, 1, 1].

    Besides a question's, a payload has ``wiring`` (see `nnattr.jobs.wiring`), ``senders`` and
    ``readers``, parts in plain values, and ``sets`` [set, sender, reader], bool.
    """
    heads = Wiring(payload["wiring"])
    edges = EdgeSets(
        payload["senders"], payload["readers"], payload["sets"], heads.heads, heads.kv_heads
    )
    readers = max((len(some) for some in edges.readers.values()), default=0)
    return variants_job(nn, tick, payload, edges, joint_logits, len(edges.senders) + 8 * readers)
