"""A study of a causal method: what travels, how it is split, kept on disk, and read again.

=============  ==================================================================================
`study`        one question, checked before anything runs, and its payload
`asked`        which cells of a site are asked about, as people name them
`edge_study`   the same of edges: what travels, and what the answer means
`edge_runs`    the same of a set of edges together, and of single paths
`layout`       where the engine finds things in this model, and how a patch of a site enters it
`estimating`   which estimator stands for patching, and its settings
`wiring`       where parts of this model read and write, for patches of edges
`replacement`  what an ablation puts in the place of an activation
`split`        as few jobs as the backend's limits allow
`found`        what is known of the answer so far
`checkpoint`   that on disk
`frame`        what the numbers of an answer mean: axes, normalisation, refusals
`plain`        arguments as values of JSON, and back
`record`       the provenance of a result, in one way for every method
=============  ==================================================================================
"""
