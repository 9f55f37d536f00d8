"""Train the teaching models: `python -m nnattr.teaching.train`.

Both models together take under an hour on two CPU cores. A run is seeded and deterministic: the
same versions on the same kind of machine give the same weights. Progress is printed, the weights
are saved as training goes on, and at the end the held-out metrics are computed, printed and stored
in `metrics.json` beside the weights, with the settings and the hash of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.teaching import NAMES, batches, folder, models
from nnattr.teaching.evaluate import evaluate, missed


@dataclass(frozen=True)
class Settings:
    """Everything a training run depends on."""

    seed: int = 0
    steps: int = 3000
    warmup: int = 150
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    documents: int = 64
    repeat_tokens: int = 1600
    threads: int = 2


def rate(step: int, settings: Settings) -> float:
    """The learning rate's factor: linear warm-up, then a cosine down to a twentieth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2


def optimizer_for(model: PreTrainedModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices, and leaves biases and norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Settings, out: Path
) -> None:
    """Train in place; every 250 steps print the losses and save the weights."""
    optimizer = optimizer_for(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings))
    source = batches.stream(tokenizer, settings.seed, settings.documents, settings.repeat_tokens)
    model.train()
    started, totals = time.monotonic(), torch.zeros(2)
    for step, pair in zip(range(1, settings.steps + 1), source, strict=False):
        losses = torch.stack([batches.loss(model, batch) for batch in pair])
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        totals += losses.detach()
        if step % 50 == 0:
            text, repeat = (totals / 50).tolist()
            seconds = time.monotonic() - started
            print(f"step {step}  texts {text:.3f}  repeats {repeat:.3f}  {seconds:.0f} s", flush=True)
            totals.zero_()
        if step % 250 == 0:
            save(model, tokenizer, out)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a plain Hugging Face folder."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(name: str, out: Path, settings: Settings) -> dict[str, float | str]:
    """Train one model, write its folder, and return its held-out metrics."""
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    model, tokenizer = models.build(name, settings.seed)
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    started = time.monotonic()
    fit(model, tokenizer, settings, out)
    seconds = time.monotonic() - started
    save(model, tokenizer, out)
    metrics = evaluate(model, tokenizer)
    record = {
        "model": name,
        "metrics": metrics,
        "settings": asdict(settings),
        "seconds": round(seconds),
        "sha256": digest(out / "model.safetensors"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    for key, value in metrics.items():
        print(f"  {key}: {value if isinstance(value, str) else round(value, 4)}", flush=True)
    for key, least in missed(metrics).items():
        print(f"  NOT REACHED: {key} must be at least {least}", flush=True)
    return metrics


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the teaching models.")
    parser.add_argument("--model", choices=NAMES, help="one model; both without it")
    parser.add_argument("--out", type=Path, help="where the folders go; the package without it")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    arguments = parser.parse_args()
    settings = Settings(
        seed=arguments.seed, steps=arguments.steps, threads=arguments.threads
    )
    failed = False
    for name in [arguments.model] if arguments.model else NAMES:
        out = arguments.out / name if arguments.out else folder(name)
        failed |= bool(missed(train(name, out, settings)))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
