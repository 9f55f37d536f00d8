"""Where a result comes from: everything that is needed to make it again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Provenance(BaseModel):
    """What a result was made from, and how; enough to make it again.

    ``arguments`` are the method's own, a seed among them where it draws; ``metric`` is empty where
    there is none. ``task`` says how the task was made (``"prompts"`` for bare ones), ``task_hash``
    digests its tokens, and ``examples`` is the task itself, as ``Task.save`` writes it
    (``Result.task`` reads it); all three are empty where only weights were asked, and in what
    schemas 1 and 2 did not keep. ``seconds`` is wall time; ``jobs``, bytes, queue and run seconds
    speak of requests to a server (0 if local). ``peak_memory`` is the most bytes in use at once
    where the job ran (a GPU's allocations, or the whole process's), ``rows_per_forward`` the most
    rows that one of its passes had (both 0 where they were not watched), ``fell_back`` why it left
    the engine for full passes (empty if it did not). ``caution`` is what speaks against normalised
    scores (`nnattr.results.baselines`; empty if nothing does): it is said wherever they are shown,
    as ``asked`` is, which cells were asked for: ``"12 of 144 cells were asked
    for"`` (empty if all were).
    ``quantization`` says how the weights were rounded before, e.g. ``"dequantized from x.gguf"``
    (empty if they were not). ``edits`` are the edits under which the model ran, in words (see
    `nnattr.edited`), and ``edits_given`` is what makes them again (`nnattr.jobs.plain`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    metric: str = ""
    model: str
    revision: str | None = None
    architecture: str
    backend: str
    dtype: str
    quantization: str = ""
    edits: tuple[str, ...] = ()
    edits_given: tuple[dict[str, Any], ...] = Field(default=(), repr=False)
    task: str = ""
    task_hash: str = ""
    examples: dict[str, Any] | None = Field(default=None, repr=False)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    jobs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    peak_memory: int = 0
    rows_per_forward: int = 0
    fell_back: str = ""
    caution: str = ""
    asked: str = ""

    @property
    def weights(self) -> str:
        """The weights in words: their dtype, and how they were rounded before."""
        return ", ".join(filter(None, (self.dtype, self.quantization)))

    @property
    def subject(self) -> str:
        """The model in words: its name, and the edits under which it ran."""
        return "; ".join((self.model, *self.edits))
