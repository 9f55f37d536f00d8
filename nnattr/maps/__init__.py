"""What modules do, as linear maps, found where the model is.

===========  ====================================================================================
`linear`     a linear module as a matrix: from its weights, or by probing it
`norm`       a norm as the linear map that it is once its statistics are held fixed
`parts`      attention and MLPs as sums of what their heads, or neurons, write
`attention`  a layer's attention as one matrix per head, proven against what the model does
`heads`      these matrices as a question wants them: norms folded in, turned by position
===========  ====================================================================================

All of it travels: torch and plain values only (see docs/architecture.md).
"""
