"""What a model is for, told by its class and its configuration, and why it may not be used here.

nnattr reads causal language models: decoders in which every position predicts the next token. What
names say is looked at first, because it can be put in words that help; `nnattr.model.first_run`
then holds a module that is here against what it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from nnattr.errors import ArchError

#: By a part of a class's name, what such a model gives instead of logits of the next token.
OTHER = {
    re.compile(r"Reward|ValueHead"): "a reward model: it gives a value for a text, and "
    "has no unembedding",
    re.compile(r"Classif"): "a classifier: it gives a number for each label, and has no "
    "unembedding",
    re.compile(r"QuestionAnswering|MultipleChoice"): "made to choose among spans or answers",
    re.compile(r"MaskedLM|ForPreTraining|NextSentence"): "a masked language model: its tokens see "
    "what comes after them",
    re.compile(r"Retrieval|Embedding|SentenceTransformer"): "an embedding model: it gives a vector "
    "for a text",
}
CAUSAL = re.compile(r"CausalLM|LMHead")
NEXT = (
    "nnattr reads causal language models, decoders in which every position predicts the next "
    "token: what AutoModelForCausalLM.from_pretrained loads from a checkpoint made for it."
)


def require_causal(name: str, classes: Iterable[str], config: Any) -> None:
    """Refuse a model that is not a causal language model, by what it says of itself.

    Args:
        name: how messages call the model.
        classes: the name of its class, or those that its configuration lists.
        config: its Hugging Face configuration.

    Raises:
        ArchError: it is an encoder, an encoder-decoder, a classifier, ...
    """
    classes = tuple(classes)
    others = ", ".join(one for one in classes if one != name)
    said = f"{name} ({others})" if others else name
    kinds = [what for one in classes for told, what in OTHER.items() if told.search(one)]
    if kinds:
        raise ArchError(f"{said} is {kinds[0]}. {NEXT}")
    decoder = any(CAUSAL.search(one) for one in classes)
    if getattr(config, "is_encoder_decoder", False) and not decoder:
        raise ArchError(
            f"{said} is an encoder-decoder: its decoder reads an encoder's output, not the prompt "
            f"alone. {NEXT}"
        )
    if any(_sees_both_sides(one) for one in (config, getattr(config, "text_config", None))):
        raise ArchError(
            f"{said} is no causal language model: by its configuration a token sees what comes "
            f"after it (is_causal, use_bidirectional_attention). {NEXT}"
        )


def _sees_both_sides(config: Any) -> bool:
    """Whether a configuration opens attention to later tokens, as embedding models do."""
    open_ = getattr(config, "use_bidirectional_attention", False) is True
    return open_ or getattr(config, "is_causal", True) is False


def require_head(name: str, config: Any) -> None:
    """Refuse a checkpoint that was saved without its unembedding, where the file cannot be read.

    Raises:
        ArchError: whoever loads it would fill the unembedding with random numbers.
    """
    classes: tuple[str, ...] = tuple(getattr(config, "architectures", None) or ())
    bare = bool(classes) and all(one.endswith("Model") for one in classes)
    headless = bare and not any("Head" in one for one in classes)
    if headless and not getattr(config, "tie_word_embeddings", True):
        raise ArchError(
            f"{name} ({', '.join(classes)}) was saved without its unembedding, and a server would "
            f"fill it with random numbers. {NEXT}"
        )


def require_module(given: Any) -> None:
    """Refuse what is not a Hugging Face module with its configuration.

    Raises:
        ArchError: saying what it is, and what to pass.
    """
    from torch.nn import Module

    kind = type(given).__name__
    parts = ("model", "pretrained_model", "module", "_module")
    inner = next((one for one in parts if isinstance(getattr(given, one, None), Module)), None)
    if not isinstance(given, Module):
        hint = f" It has one at .{inner}." if inner else ""
        raise ArchError(
            f"model is a {kind}; expected a Hugging Face id, a folder, or a loaded module.{hint}"
        )
    sized = hasattr(getattr(given, "config", None), "get_text_config")
    if not sized or not hasattr(given, "device"):
        hint = f" It has a module at .{inner}: if that is one, pass it." if inner else ""
        raise ArchError(
            f"{kind} is no Hugging Face model, which has a configuration (PreTrainedConfig) at "
            f".config.{hint} To use a module of your own, make it a PreTrainedModel and pass a "
            "spec=: docs/adding_an_architecture.md shows one."
        )


def require_unembedding(module: Any) -> None:
    """Refuse a model that ends in hidden states, or that does not go on from its own tokens.

    Raises:
        ArchError: it has no unembedding, or cannot generate.
    """
    find = getattr(module, "get_output_embeddings", None)
    if find is not None and find() is None:
        raise ArchError(
            f"{type(module).__name__} has no unembedding, so it gives hidden states and no logits: "
            f"it is a bare model without a language-modelling head. {NEXT}"
        )


def require_generating(module: Any) -> None:
    """Refuse a module of which transformers makes no pipeline for text.

    Raises:
        ArchError: it is no `GenerationMixin`.
    """
    if not getattr(module, "can_generate", bool)():
        raise ArchError(
            f"{type(module).__name__} cannot generate, so it is no causal language model of "
            "transformers. A class of your own is one if it is a transformers.PreTrainedModel and "
            f"a transformers.GenerationMixin, and gives .logits. {NEXT}"
        )
