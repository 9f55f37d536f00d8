"""A study of a causal method: what travels, how it is split, kept on disk, and read again."""
