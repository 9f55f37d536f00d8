"""A call of a method as data: which methods there are, and a call that waits on a server.

==========  ======================================================================================
`registry`  one row per method: who it is, what it asks, how its numbers read
`again`     the call that made a result, as a file and as Python code
`submit`    a call that was sent, its ticket, and the result later
==========  ======================================================================================
"""
