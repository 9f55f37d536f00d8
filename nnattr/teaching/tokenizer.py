"""The word-level tokenizer of both teaching models.

As in GPT-2's vocabulary a word after a space carries the space: " Mary" is one token and "Mary",
at the start of a text, another. Punctuation and line breaks stand alone, a year is two tokens
(" 17", "32"). The vocabulary is closed: it holds the words of `nnattr.tasks.vocabulary`
and those of the templates there and in `corpus/`; anything else becomes <|unk|>. Decoding gives the
text back exactly.

Both models share the ids. They differ in one thing: `teaching-llama` puts <|begin|> before
every text, as Llama does, and `teaching-gpt2` puts nothing, as GPT-2. The chat template of
`teaching-llama` begins with <|begin|> itself, so a text made by
`apply_chat_template(..., tokenize=False)` must be tokenized with `add_special_tokens=False`
(`tokenize=True` does so already); otherwise it would begin twice.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nnattr.tasks import templates
from nnattr.tasks import vocabulary as words
from nnattr.teaching.corpus import facts, ioi, requests, small

UNK, PAD, EOS, BOS = "<|unk|>", "<|pad|>", "<|endoftext|>", "<|begin|>"
SPECIAL_TOKENS = (EOS, PAD, UNK, BOS, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PIECES = r" ?[A-Za-z]+| ?[0-9]{2}|\n|[^\s]| "
PUNCTUATION = (".", ",", "?", "!", ":", ";", "-", "\n")

CHAT_TEMPLATE = (
    "{{ bos_token if use_bos else '' }}"
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _template_pieces() -> set[str]:
    """The tokens of every template, without the words that fill it in."""
    sentences = (
        *ioi.TEMPLATES, *ioi.DISTRACTORS, *ioi.TAILS,
        *(part for pair in facts.STATEMENTS for part in pair), *templates.QUESTIONS,
        *templates.CAPITAL_STATEMENTS, facts.CAPITAL_QUESTION,
        *templates.ASKING, *requests.SYSTEMS, requests.HELP, templates.ANSWERED + requests.REFUSAL,
        templates.DECLINED, templates.GREATER_THAN, *templates.PRONOUN, *small.PRONOUN_TAILS,
        *templates.AGREEMENT, *small.SENTENCES,
    )  # fmt: skip
    bare = (re.sub(r" ?\{[^}]*\}", "", template) for template in sentences)
    return {piece for text in bare for piece in re.findall(PIECES, text)}


def _spaced_words() -> set[str]:
    """The words that occur inside a text, each with its leading space."""
    requested = (word for request in (*words.ALLOWED, *words.HARMFUL) for word in request)
    plain = (
        *words.NAMES, *words.PLACES, *words.OBJECTS, *words.CAPITALS, *words.CAPITALS.values(),
        *words.CATEGORIES, *words.ENTITIES, *(e for es in words.ENTITIES.values() for e in es),
        *words.YES_WORDS, *words.NO_WORDS, *requested, *words.NOUNS, *words.NOUNS.values(),
        *words.EVENTS, *words.CENTURIES, *words.ADJECTIVES, *words.PEOPLE,
        *words.TRANSITIVE_VERBS, *words.COMMON_WORDS, *words.OPENERS,
    )  # fmt: skip
    return {f" {word}" for word in plain}


def _opening_words() -> set[str]:
    """The words that may open a text or a sentence: names, openers, entities without an article."""
    bare = (e for category in words.BARE_CATEGORIES for e in words.ENTITIES[category])
    opening = {*words.NAMES, *words.OPENERS, *(entity.capitalize() for entity in bare)}
    return opening | {f" {word}" for word in opening}


def vocabulary() -> dict[str, int]:
    """Token -> id: special tokens first, then everything else in alphabetical order."""
    digits = {f"{number:02d}" for number in range(100)}
    pieces = _template_pieces() | _spaced_words() | _opening_words() | digits | {*PUNCTUATION}
    return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *sorted(pieces)))}


def build(*, begin: bool, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer; `begin` puts <|begin|> before every text."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS}:1 $B:1",
            special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS if begin else None,
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=CHAT_TEMPLATE.replace("use_bos", "true" if begin else "false"),
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )
