"""The client's view of a model: loaded, mapped, proven; and what a call's arguments mean on it.

================  ===============================================================================
`model`           `Model`: an nnsight model, the map of its parts, and where it runs
`padding`         whether a prompt beside longer ones is read as it is alone
`load`            load one, here or on a server
`checkpoint`      a checkpoint by its id or folder: what it is for, and its weights
`first_run`       one short run of a module whose family is in the table
`loan`            the user's module for the time of a job: in eval mode, with its hooks
`quantized`       modules whose rows depend on each other: refused
`verify`          prove its map before anything is computed with it; its job is `verify_job`
`verify_edits`    the half of that job that edits
`verify_gaps`     how far is far
`proof`           what was proven, and what to do where it was not
`sites`           names for the activations that a method can read or replace
`patterns`        where attention patterns are read
`components`      which activations make up the residual stream, and how they split
`attention_form`  where a layer's attention keeps its weights, and how it may make its scores
`prompts`         prompts encoded and checked against the model, and their positions
`heads`           which heads are meant
`graph`           which parts write and read, and which edges a model has
`rules`           where rules of the backward pass have something to act on
`edit_kinds`      changes of every run as values: parts ablated or replaced, vectors added
`edits`           one of these made ready for a model, as it travels and in words
`edited`          a model under edits
`marks`           which tokens of a call's prompts each edit changes
================  ===============================================================================
"""
