"""What jobs take along is plain: found in the sources, before any server has to find it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nnattr
from tests.support.travel import Sources, free

SOURCES = Sources(Path(nnattr.__file__).parent)
JOBS = SOURCES.named("_job")
#: Folders of which everything travels, and what their files may import besides.
TRAVELLING = ("nnattr.engine", "nnattr.maps", "nnattr.runs")
BESIDES = ("nnattr.graph", "nnattr.linalg", "nnattr.metrics")


def whole(module: str) -> bool:
    """Whether everything in a module travels."""
    return f"{module}.".startswith(tuple(f"{folder}." for folder in TRAVELLING))


@pytest.mark.parametrize("job", sorted(JOBS), ids=".".join)
def test_all_that_a_job_reaches_travels(job: tuple[str, str]) -> None:
    reached, faults = SOURCES.reached([job])
    assert faults == set()
    assert len(reached) > 1  # it does read something


def test_what_a_backend_is_handed_is_called_a_job() -> None:
    handed = {
        place
        for module in SOURCES.modules.values()
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".run") and call.args
        for place in [SOURCES.place(module.name, ast.unparse(call.args[0]))]
        if place
    }
    assert len(handed) > 10
    assert {place for place in handed if not place[1].endswith("_job")} == set()


def test_what_our_metrics_read_travels() -> None:
    metrics = SOURCES.modules["nnattr.metrics"]
    calls = [
        method
        for node in metrics.tree.body
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__call__"
    ]
    assert len(calls) > 5
    names = set[str]().union(*map(free, calls)) & set(metrics.names)
    assert SOURCES.reached([("nnattr.metrics", name) for name in names])[1] == set()


@pytest.mark.parametrize("module", sorted(filter(whole, SOURCES.modules)))
def test_a_folder_that_travels_travels_whole(module: str) -> None:
    assert SOURCES.reached(SOURCES.defined(module))[1] == set()
    allowed = (*TRAVELLING, *BESIDES)
    assert {f for f in SOURCES.imports(module) if f.startswith("nnattr.")} <= {
        name for name in SOURCES.modules if name.startswith(allowed)
    }
    assert SOURCES.foreign(module) == set()


GOOD = """
from __future__ import annotations
import torch
from functools import partial
from typing import TYPE_CHECKING
from jaxtyping import Float
from pk.other import helper
if TYPE_CHECKING:
    from numpy import ndarray

LIMIT = 2**25

class Rows:
    width: int = LIMIT
    def __init__(self, size: Float[torch.Tensor, "n"]) -> None:
        self.size: ndarray = size
    @property
    def empty(self) -> bool:
        return not len(self.size)

def my_job(nn, tick, **payload: ndarray) -> ndarray:
    rows: ndarray = Rows(payload["size"])
    return partial(inner, rows=rows)(lambda x: helper(x) + LIMIT)

def inner(change, rows) -> Float[torch.Tensor, "n"]:
    return torch.stack([change(row) for row in rows.size])
"""


def faults(tmp_path: Path, source: str, other: str = "def helper(x):\n    return x\n") -> set[str]:
    """What is wrong with a job of a small package."""
    folder = tmp_path / "pk"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "jobs.py").write_text(source)
    (folder / "other.py").write_text(f"from __future__ import annotations\nimport numpy\n{other}")
    sources = Sources(folder)
    return sources.reached(sources.named("_job"))[1]


def test_a_plain_job_has_no_fault(tmp_path: Path) -> None:
    assert faults(tmp_path, GOOD) == set()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("class Rows:", "@dataclass\nclass Rows:", "Rows: is decorated"),
        (
            "class Rows:",
            "from typing import NamedTuple\nclass Rows(NamedTuple):",
            "is made of NamedT",
        ),
        ("class Rows:", "from enum import Enum\nclass Rows(Enum):", "Rows: is made of Enum"),
        ("class Rows:", "class Base:\n    pass\nclass Rows(Base):", None),
        ("class Rows:", "class Rows(Exception):", None),
        ("class Rows:", "class Rows(ValueError):", "Rows: is made of ValueError"),
        ("class Rows:", "class Rows(metaclass=Meta):", "Rows: has a metaclass or keywords"),
        ("        self.size:", "        super().__init__()\n        self.size:", "calls super()"),
        ("    @property\n", "    @cached\n", "Rows: decorates empty inside"),
        ("def inner", "@torch.no_grad()\ndef inner", "inner: is decorated"),
        ("import torch", "import torch, numpy as np", None),  # not reached
        ("return torch.stack", "import einops\n    return torch.stack", "einops is of einops"),
        ("(row)", "(ndarray(row))", "ndarray: is there for annotations only"),
        ("(row)", "(Float(row))", "Float: Float is of jaxtyping"),
        ("from pk.other import helper", "from pk import other as helper", "helper is a module"),
        ("from pk.other import helper", "from .other import helper", "is imported relatively"),
        ("from __future__ import annotations", "", "does not say `from __future__"),
        ("LIMIT = 2**25", "", "reads LIMIT, which is not at the top"),
        ("def inner", "class Inner:\n    pass\n\ndef inner", None),  # not reached
        ("    rows: ndarray =", "    class Inner:\n        pass\n    rows =", "defines a class"),
        ("**payload: ndarray", "size=ndarray, **payload", "ndarray: is there for annotations only"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, old: str, new: str, expected: str | None) -> None:
    assert old in GOOD
    found = faults(tmp_path, GOOD.replace(old, new))
    assert any(expected in fault for fault in found) if expected else not found


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("def helper(x):\n    return numpy.exp(x)", "numpy is of numpy"),
        ("helper = numpy.vectorize(len)", "numpy is of numpy"),
        (
            "def helper(x):\n    return deeper(x)\n@numpy.vectorize\ndef deeper(x):\n    pass",
            "deeper: is",
        ),
    ],
)
def test_a_fault_of_another_module_is_found(tmp_path: Path, other: str, expected: str) -> None:
    assert any(expected in fault for fault in faults(tmp_path, GOOD, other))


def test_foreign_imports_of_a_file_are_found(tmp_path: Path) -> None:
    faults(tmp_path, GOOD)
    sources = Sources(tmp_path / "pk")
    assert sources.foreign("pk.jobs") == {"jaxtyping"}
    assert sources.foreign("pk.other") == {"numpy"}
    assert sources.imports("pk.jobs") >= {"pk.other", "torch", "functools"}
