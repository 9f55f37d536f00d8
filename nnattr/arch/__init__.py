"""Where the parts of a model are: the spec, the table of known families, and discovery."""
