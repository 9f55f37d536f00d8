"""Where the parts of a model are: the spec, the table of known families, and discovery."""

from nnattr.arch.spec import QKV, ArchSpec, Place

__all__ = ["QKV", "ArchSpec", "Place"]
