"""Real Hugging Face models whose weights are set by hand: each part does what it is told.

The residual stream is cut into named spaces; a head or an MLP reads some of them and writes to one.
Norms do nothing: with ``eps = 1e10`` and weights of its root, RMSNorm is the identity to 7e-8 and
LayerNorm takes the mean away, which is kept at 0 by a channel that balances every write.

What is left over are *distractors*: heads and MLPs with random weights that read the whole stream
and write to the space ``junk``, which nothing but distractors reads. They change a lot between two
runs, and matter for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

EPSILON = 1e10
#: The tokens, each with a dimension of its own, and those that the circuits never see.
LETTERS = "abcdefgh"
OTHERS = ("<pad>", "<unk>")
V, VOCAB, POSITIONS = len(LETTERS), len(LETTERS) + len(OTHERS), 12


class ByHand:
    """The residual stream's spaces, and maps that read them and write to them.

    Attributes:
        spaces: the dimensions of each named space; what is left at the end is not used, but for the
            last dimension where a family needs it to balance.
        d_model: how many dimensions there are.
        taken: which heads and MLPs (head -1) are set, by layer.
    """

    def __init__(self, d_model: int, sizes: dict[str, int]) -> None:
        ends = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
        self.spaces = {name: slice(*ends[i : i + 2]) for i, name in enumerate(sizes)}
        self.d_model = d_model
        self.taken: set[tuple[int, int]] = set()
        assert ends[-1] < d_model

    def reads(self, space: str, weights: Tensor | None = None) -> Tensor:
        """From the stream to channels [d_model, channel], which are the space's own dimensions."""
        at = self.spaces[space]
        weights = torch.eye(at.stop - at.start) if weights is None else weights
        found = torch.zeros(self.d_model, weights.shape[1])
        found[at] = weights
        return found

    def writes(self, space: str, weights: Tensor | None = None) -> Tensor:
        """From channels to the stream [channel, d_model], balanced."""
        at = self.spaces[space]
        weights = torch.eye(at.stop - at.start) if weights is None else weights
        found = torch.zeros(len(weights), self.d_model)
        found[:, at] = weights
        found[:, -1] = self.balance * weights.sum(1)
        return found

    #: What the last dimension takes of every write.
    balance = 0.0


class Gpt2ByHand(ByHand):
    """A `GPT2LMHeadModel`; positions are one-hot, so that a head can ask for one.

    Every head and MLP that is not set is a distractor once `distract` is called, and does nothing
    before.
    """

    balance = -1.0

    def __init__(self, layers: int, heads: int, d_model: int, sizes: dict[str, int]) -> None:
        sizes = {"tok": V, "pos": POSITIONS, "out": V, "junk": 3, **sizes}
        super().__init__(d_model, sizes)
        self.layers, self.heads, self.width = layers, heads, d_model // heads
        self.inner = 2 * V
        self.module = GPT2LMHeadModel(_gpt2(layers, heads, d_model, self.inner)).eval()
        _empty(self.module, ("ln_1", "ln_2", "ln_f"))
        body = self.module.transformer
        body.wte.weight[:V] = self.writes("tok")
        body.wpe.weight[:] = self.writes("pos")
        self.module.lm_head.weight[:V] = self.reads("out").T

    def head(
        self,
        layer: int,
        head: int,
        sharp: float,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        to: Tensor,
    ) -> None:
        """Set a head, all biases zero.

        Args:
            sharp: the score of a query that meets its key, behind attention's scale.
            query, key, value: from the stream to channels [d_model, channel].
            to: from the channels of the value to the stream [channel, d_model].
        """
        self.taken.add((layer, head))
        attention, first = self.module.transformer.h[layer].attn, head * self.width
        for number, map_ in enumerate((query * sharp * self.width**0.5, key, value)):
            start = number * self.d_model + first
            attention.c_attn.weight[:, start : start + map_.shape[1]] = map_
        attention.c_proj.weight[first : first + len(to)] = to

    def mlp(self, layer: int, into: Tensor, bias: Tensor, out: Tensor) -> None:
        """Set an MLP of rectified units: ``relu(stream @ into + bias) @ out``."""
        self.taken.add((layer, -1))
        mlp = self.module.transformer.h[layer].mlp
        mlp.c_fc.weight[:, : into.shape[1]] = into
        mlp.c_fc.bias[: len(bias)] = bias
        mlp.c_proj.weight[: len(out)] = out

    def back(self, steps: int) -> tuple[Tensor, Tensor]:
        """The query and key of a head that looks so many positions back."""
        asks = torch.zeros(POSITIONS, POSITIONS)
        for position in range(steps, POSITIONS):
            asks[position, position - steps] = 1
        return self.reads("pos", asks), self.reads("pos")

    def distract(self, seed: int = 0) -> None:
        """Make distractors of all heads and MLPs that are not set."""
        draw = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        for layer in range(self.layers):
            for head in range(self.heads):
                if (layer, head) not in self.taken:
                    query, key, value = (noise(self.d_model, self.width) for _ in range(3))
                    to = self.writes("junk", 0.3 * noise(self.width, 3))
                    self.head(layer, head, 0.05, query, key, value, to)
            if (layer, -1) not in self.taken:
                out = self.writes("junk", 0.3 * noise(self.inner, 3))
                self.mlp(layer, noise(self.d_model, self.inner), noise(self.inner), out)


class LlamaByHand(ByHand):
    """A `LlamaForCausalLM`, two query heads to a key/value head, positions by rotary turns alone.

    With a base of 1e12 the first pairs of dimensions turn fast and the last hardly at all: a head
    looks back by the first, and compares contents in the last.
    """

    HEADS, KV_HEADS, D_HEAD = 4, 2, 32

    def __init__(self, layers: int, d_model: int, sizes: dict[str, int]) -> None:
        super().__init__(d_model, {"tok": V, "one": 1, "out": V, "junk": 3, **sizes})
        self.layers, self.inner = layers, 2 * V
        self.module = LlamaForCausalLM(self._config(layers, d_model)).eval()
        _empty(self.module, ("norm", "input_layernorm", "post_attention_layernorm"))
        self.turns = self.module.model.rotary_emb.inv_freq
        self.module.model.embed_tokens.weight[:V] = self.writes("tok")
        self.module.model.embed_tokens.weight[:, self.spaces["one"]] = 1
        self.module.lm_head.weight[:V] = self.reads("out").T

    def _config(self, layers: int, d_model: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=d_model,
            intermediate_size=self.inner,
            num_hidden_layers=layers,
            num_attention_heads=self.HEADS,
            num_key_value_heads=self.KV_HEADS,
            head_dim=self.D_HEAD,
            rms_norm_eps=EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": 1e12},
            max_position_embeddings=64,
            tie_word_embeddings=False,
            pad_token_id=V,
            bos_token_id=None,
            eos_token_id=None,
        )

    def query(self, layer: int, head: int, sharp: float, map_: Tensor, to: Tensor) -> None:
        """Set what a query head asks [d_model, d_head], and where its value goes."""
        self.taken.add((layer, head))
        attention, first = self.module.model.layers[layer].self_attn, head * self.D_HEAD
        rows = slice(first, first + self.D_HEAD)
        attention.q_proj.weight[rows] = sharp * self.D_HEAD**0.5 * map_.T
        attention.o_proj.weight[:, first : first + len(to)] = to.T

    def kv(self, layer: int, head: int, key: Tensor, value: Tensor) -> None:
        """Set a key/value head: a key [d_model, d_head], a value [d_model, channel]."""
        self.taken.add((layer, -2 - head))
        attention, first = self.module.model.layers[layer].self_attn, head * self.D_HEAD
        attention.k_proj.weight[first : first + self.D_HEAD] = key.T
        attention.v_proj.weight[first : first + value.shape[1]] = value.T

    def back(self, steps: int) -> tuple[Tensor, Tensor]:
        """The query and key of a head that looks so many positions back, by two fast pairs."""
        query, key = (torch.zeros(self.d_model, self.D_HEAD) for _ in range(2))
        one, half = self.spaces["one"].start, self.D_HEAD // 2
        for pair in (0, 1):
            turn = -steps * self.turns[pair]
            query[one, pair], query[one, pair + half] = torch.cos(turn), torch.sin(turn)
            key[one, pair] = 1
        return query, key

    def meets(self, space: str) -> Tensor:
        """A query or key that is what a space holds, in dimensions that hardly turn."""
        half = self.D_HEAD // 2
        slow = [pair for pair in range(half) if self.turns[pair] < 1e-4][: V // 2]
        found = torch.zeros(self.d_model, self.D_HEAD)
        for own, channel in zip(
            range(*self.spaces[space].indices(self.d_model)),
            [*slow, *(pair + half for pair in slow)],
            strict=True,
        ):
            found[own, channel] = 1
        return found

    def distract(self, seed: int = 0) -> None:
        """Make distractors of all that is not set."""
        draw = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        for layer in range(self.layers):
            for head in range(self.HEADS):
                if (layer, head) not in self.taken:
                    to = self.writes("junk", 0.3 * noise(self.D_HEAD, 3))
                    self.query(layer, head, 0.05, noise(self.d_model, self.D_HEAD), to)
            for head in range(self.KV_HEADS):
                if (layer, -2 - head) not in self.taken:
                    self.kv(layer, head, *(noise(self.d_model, self.D_HEAD) for _ in range(2)))
            mlp = self.module.model.layers[layer].mlp
            for projection in (mlp.gate_proj, mlp.up_proj):
                projection.weight[:] = 0.3 * noise(self.inner, self.d_model)
            mlp.down_proj.weight[:] = self.writes("junk", 0.1 * noise(self.inner, 3)).T


def _gpt2(layers: int, heads: int, d_model: int, inner: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=d_model,
        n_layer=layers,
        n_head=heads,
        n_positions=POSITIONS,
        n_inner=inner,
        activation_function="relu",
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=V,
        bos_token_id=None,
        eos_token_id=None,
    )


def _empty(module: Any, norms: tuple[str, ...]) -> None:
    """Make every weight zero, and norms do nothing; no gradient is recorded from here on."""
    module.requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    for name, norm in module.named_modules():
        if name.rpartition(".")[2] in norms:
            norm.weight.fill_(EPSILON**0.5)
