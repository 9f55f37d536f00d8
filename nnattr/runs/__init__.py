"""What every job builds on, inside the job: plain runs, what goes into them and what is read.

============  ===================================================================================
`inputs`      prompts as a model's arguments
`places`      modules found, and activations read and replaced, inside a trace
`as_built`    whether a module does what its class does, and nothing besides
`logits`      next-token distributions, reduced where the model is
`patterns`    attention patterns of the model as it runs, proven in the job
`interface`   what attention is handed, and the pattern that it must give; sinks
`head_kinds`  the keys that heads of a kind look at, and a pattern's score
`rotated`     queries and keys as they meet, after any rotary turn
`marks`       which tokens of a pass each edit changes
`edits`       a model in whose every run some activations are changed
`portions`    the way through examples: as many as fit, half where memory runs out; refusals
`tolerance`   how near two computations of the same numbers must be
============  ===================================================================================

All of it travels: torch and plain values only (see docs/architecture.md).
"""
