"""Settings as frozen values: the user's defaults, and one analysis written as a file.

Precedence for the backend: the argument of ``load``, the environment variable ``NNATTR_BACKEND``,
the user's file (``$XDG_CONFIG_HOME/nnattr/config.yaml``), then ``local``. Unknown keys are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnattr.errors import NnattrError


class Config(BaseModel):
    """A frozen value with YAML both ways (JSON is YAML)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read ``path``.

        Raises:
            NnattrError: the file is missing, not YAML or JSON, or has unknown or wrong keys.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return cls.model_validate(data if data is not None else {})
        except FileNotFoundError as error:
            raise NnattrError(f"There is no file {str(path)!r}.") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise NnattrError(f"{path} is not a readable YAML or JSON file: {error}") from error
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}"
                for item in error.errors()
            )
            keys = ", ".join(cls.model_fields)
            raise NnattrError(f"{path}: {problems}. The keys are {keys}.") from error

    def to_file(self, path: str | Path) -> None:
        """Write this as YAML."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class UserConfig(Config):
    """A user's defaults, read from ``$XDG_CONFIG_HOME/nnattr/config.yaml`` when it exists."""

    backend: str = "local"

    @classmethod
    def path(cls) -> Path:
        """Where the file is looked for."""
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(base) / "nnattr" / "config.yaml"

    @classmethod
    def read(cls) -> UserConfig:
        """The user's file, or the defaults where there is none."""
        return cls.from_file(cls.path()) if cls.path().exists() else cls()


class TaskConfig(Config):
    """The task of a run: a generator with its arguments, or pairs written out.

    ``name`` is a generator of ``nnattr.tasks`` (its ``arguments`` as keywords); without it
    ``clean``, ``corrupted`` and ``answers`` are lists of equal length.
    """

    name: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    clean: tuple[str, ...] = ()
    corrupted: tuple[str, ...] = ()
    answers: tuple[str | tuple[str, ...], ...] = ()
    wrong_answers: tuple[str | tuple[str, ...], ...] = ()


class RunConfig(Config):
    """One analysis, as ``nnattr run`` reads it."""

    model: str
    task: TaskConfig
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    method: Literal["activation_patching", "attribution_patching"] = "attribution_patching"
    metric: str = "LogitDiff"
    site: str = "z"
    positions: str | int | tuple[int, ...] = "all"
    direction: Literal["denoising", "noising"] = "denoising"
    normalized: bool = True
    output: str | None = None
    top: int = 10
