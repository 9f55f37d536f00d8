"""What modules do, as linear maps, found where the model is.

===========  ====================================================================================
`linear`     a linear module as a matrix: from its weights, or by probing it
`norm`       a norm as the linear map that it is once its statistics are held fixed
`attention`  a layer's attention as one matrix per head, proven against what the model does
`heads`      the matrices of heads with norms folded in, and turned by position
`parts`      what attention or an MLP adds to the stream, split into heads or neurons
===========  ====================================================================================

All of it travels: torch and plain values only (see docs/architecture.md).
"""
