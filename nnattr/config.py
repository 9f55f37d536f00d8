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

from nnattr.arguments import YamlFile, checked
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

    @checked
    def to_file(self, path: YamlFile) -> None:
        """Write this as YAML.

        Raises:
            ArgumentError: the path has another ending.
        """
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


#: The fields of a run file that are arguments of methods by the same name.
ARGUMENTS = ("site", "positions", "direction", "normalized")


class TaskConfig(Config):
    """The task of a run, in one of four ways.

    A generator of ``nnattr.tasks`` by ``name``, with its ``arguments``; a ``table`` of yours with
    the names of its ``columns`` (clean, corrupted, answer, wrong_answer) and perhaps an
    ``answer_map``; a ``file`` of a saved task or of a result; or the pairs themselves, ``clean``,
    ``corrupted`` and ``answers``. ``options`` are those of ``Task.from_pairs`` (chat, system,
    answer_prefix, sequences, unusable); ``keep`` filters by what the model predicts, as
    ``Task.filter`` does.
    """

    name: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    table: str | None = None
    columns: dict[str, str | None] = Field(default_factory=dict)
    answer_map: dict[str, tuple[str, ...]] | None = None
    file: str | None = None
    clean: tuple[str, ...] = ()
    corrupted: tuple[str, ...] | None = None
    answers: tuple[str | tuple[str, ...], ...] = ()
    wrong_answers: tuple[str | tuple[str, ...], ...] = ()
    spans: dict[str, tuple[str | tuple[int, ...], ...]] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    keep: str | tuple[str, str] | None = None


class RunConfig(Config):
    """One call of a method, as ``nnattr run`` reads it.

    ``method`` is any method that returns a result; what it reads is a ``task``, or bare
    ``prompts``. ``site``, ``positions``, ``direction``, ``normalized`` and a ``metric``, with its
    ``metric_arguments``, are arguments that many methods have; ``options`` are the others. What is
    left out is as the method has it (a metric that it needs is LogitDiff). ``edits`` are those of a
    result, ``{nnattr: edits, file: before.safetensors}``, and the model runs under them. ``output``
    is a file for the result, whose ending says the format: ``.safetensors`` for all of it, ``.csv``
    for its table alone; ``top`` is how many cells are printed.
    """

    model: str
    task: TaskConfig | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()
    revision: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    method: str = "attribution_patching"
    metric: str | None = None
    metric_arguments: dict[str, Any] = Field(default_factory=dict)
    site: str | None = None
    positions: str | int | tuple[int, ...] | None = None
    direction: Literal["denoising", "noising"] | None = None
    normalized: bool | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    edits: dict[str, Any] | None = None
    output: str | None = None
    top: int = 10
