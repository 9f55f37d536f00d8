"""What travels to a server, found by reading the sources: every name that a job reaches.

nnsight ships a job as its source, with the names that it reads, and theirs in turn. So whatever is
reached has to be what arrives there as it was here: a module-level function without decorators
(they are dropped on the way), a plain class (no dataclass, NamedTuple, Enum or `super()`), torch or
the standard library. Modules need ``from __future__ import annotations``, or annotations would be
shipped as well.

`Sources` reads the modules of a package; `Sources.reached` walks from given names and says what is
wrong on the way, each fault as a line ``module.name: what``.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

#: What a server has, besides what is shipped.
THERE = {"torch", *sys.stdlib_module_names}
#: Decorators that a class may have on its methods: they come along with the class.
OF_METHODS = {"property"}
#: Classes of Python's own that a class may be made of: what a job raises and catches itself.
BASES = {"Exception"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom


@dataclass
class Module:
    """A module's top level: what each of its names is, and which are there for annotations only."""

    name: str
    tree: ast.Module
    names: dict[str, Definition] = field(default_factory=dict)
    for_annotations: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read(self.tree.body)

    def _read(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If):
                before = set(self.names)
                self._read(node.body)
                if ast.unparse(node.test) == "TYPE_CHECKING":
                    self.for_annotations |= set(self.names) - before
                self._read(node.orelse)
            elif isinstance(node, ast.Try):
                self._read([*node.body, *node.orelse, *node.finalbody])
            else:
                self.names |= dict.fromkeys(_bound(node), node)

    @property
    def postpones(self) -> bool:
        """Whether annotations are left unevaluated."""
        node = self.names.get("annotations")
        return isinstance(node, ast.ImportFrom) and node.module == "__future__"


class Sources:
    """The modules below a folder, as sources: nothing is imported."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {
            name: Module(name, ast.parse(path.read_text(encoding="utf-8")))
            for path in sorted(root.rglob("*.py"))
            for name in [_dotted(path, root.parent)]
        }

    def named(self, ending: str) -> list[tuple[str, str]]:
        """Module and name of the functions that end so."""
        return [
            (module.name, name)
            for module in self.modules.values()
            for name, node in module.names.items()
            if isinstance(node, Function) and name.endswith(ending)
        ]

    def defined(self, module: str) -> list[tuple[str, str]]:
        """The functions and classes of a module."""
        names = self.modules[module].names.items()
        return [(module, name) for name, node in names if isinstance(node, Function | ast.ClassDef)]

    def place(self, module: str, name: str) -> tuple[str, str] | None:
        """Where in the package something is that a module knows by this name, if it is there."""
        node = self.modules[module].names.get(name) if module in self.modules else None
        if isinstance(node, ast.ImportFrom):
            source = next(a.name for a in node.names if name in (a.name, a.asname))
            return self.place(node.module or "", source)
        return (module, name) if isinstance(node, Function | ast.ClassDef) else None

    def imports(self, module: str) -> set[str]:
        """The modules that a module imports when it runs, also inside its functions."""
        one = self.modules[module]
        nodes = [
            node for node in ast.walk(one.tree) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        apart = [one.names[name] for name in one.for_annotations]
        found: set[str] = set()
        for node in nodes:
            if node not in apart and isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
            elif node not in apart:
                found |= {alias.name for alias in node.names}
        return found

    def foreign(self, module: str) -> set[str]:
        """The packages that a module imports when it runs, and a server need not have."""
        return {name.split(".")[0] for name in self.imports(module)} - {*THERE, self.root.name}

    def reached(self, start: list[tuple[str, str]]) -> tuple[set[tuple[str, str]], set[str]]:
        """All that is reached from these names, and the faults found on the way."""
        seen: set[tuple[str, str]] = set()
        faults: set[str] = set()
        todo = list(start)
        while todo:
            here = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            for step in self._steps(*here):
                if isinstance(step, str):
                    faults.add(f"{'.'.join(here)}: {step}")
                else:
                    todo.append(step)
        return seen, faults

    def _steps(self, place: str, name: str) -> Iterator[tuple[str, str] | str]:
        """What a name reads, as places to go on to, and what is wrong with it."""
        module = self.modules[place]
        if name not in module.names:
            yield "is not defined at the top of its module"
            return
        if name in module.for_annotations:
            yield "is there for annotations only"
        node = module.names[name]
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from self._imported(node, name)
            return
        if not module.postpones:
            yield "its module does not say `from __future__ import annotations`"
        yield from _flaws(node)
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            if ast.unparse(base) not in BASES and self.place(place, ast.unparse(base)) is None:
                yield f"is made of {ast.unparse(base)}, which is not a class of ours"
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                for bound in _bound(inner):
                    yield from self._imported(inner, bound)
        for read in sorted(free(node)):
            if read in module.names:
                yield place, read
            elif not hasattr(builtins, read) and read not in ("__name__", "__file__"):
                yield f"reads {read}, which is not at the top of the module"

    def _imported(self, node: ast.Import | ast.ImportFrom, name: str) -> Iterator[tuple | str]:
        """Where an import leads to, or why it must not be read."""
        alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
        source = node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{name} is imported relatively"
        elif source.split(".")[0] in THERE:
            return
        elif source.split(".")[0] != self.root.name:
            yield f"{name} is of {source.split('.')[0]}, which a server need not have"
        elif isinstance(node, ast.Import) or f"{source}.{alias.name}" in self.modules:
            yield f"{name} is a module, which is shipped with all that it holds"
        else:
            yield source, alias.name


def _flaws(node: Definition) -> Iterator[str]:
    """What does not arrive as it was, of a function or a class."""
    if isinstance(node, Function | ast.ClassDef) and node.decorator_list:
        yield "is decorated"
    if isinstance(node, ast.ClassDef) and node.keywords:
        yield "has a metaclass or keywords"
    for inner in ast.walk(node):
        if inner is node:
            continue
        if isinstance(inner, ast.ClassDef):
            yield f"defines a class inside, {inner.name}"
        elif isinstance(inner, Function) and _decorators(inner) - OF_METHODS:
            yield f"decorates {inner.name} inside"
        elif isinstance(inner, ast.Name) and inner.id == "super":
            yield "calls super()"


def _decorators(node: Function) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


@cache
def free(node: Definition) -> frozenset[str]:
    """The names that a definition reads from its module: annotations do not count."""
    source = ast.unparse(_Bare().visit(ast.parse(ast.unparse(node))))
    return frozenset(_read_at_the_top(symtable.symtable(source, "<source>", "exec")))


def _read_at_the_top(table: symtable.SymbolTable) -> set[str]:
    """The module's names that a piece of code reads, whatever functions and classes it has."""
    at_the_top = table.get_type() == "module"
    names = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (at_the_top or symbol.is_global())
    }
    return names.union(*map(_read_at_the_top, table.get_children()))


class _Bare(ast.NodeTransformer):
    """Takes annotations and docstrings away."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = node.value or ast.Constant(None)
        return self.visit(ast.copy_location(ast.Assign([node.target], value), node))


def _bound(node: ast.AST) -> list[str]:
    """The names that a statement at the top of a module gives a meaning."""
    match node:
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
        case ast.Assign(targets=targets):
            inner = [part for target in targets for part in ast.walk(target)]
            return [part.id for part in inner if isinstance(part, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case _:
            return []


def _dotted(path: Path, base: Path) -> str:
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
