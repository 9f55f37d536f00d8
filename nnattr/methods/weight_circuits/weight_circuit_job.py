"""The job behind weight circuits: both sides of a circuit as thin factors, and what is asked of it.

A circuit over the vocabulary is ``left @ right.T`` with sides [d_vocab, rank]. The sides are made
where the model is; the product of them never exists, only chunks of its rows. Everything here
travels: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.linalg import product_eigenvalues, product_norm, product_svd
from nnattr.maps.attention import Form, read_attention
from nnattr.maps.heads import Proof, WeightsQuestion, final_norm, head_matrices
from nnattr.maps.linear import linear_map
from nnattr.runs.as_built import as_built
from nnattr.runs.logits import require_number
from nnattr.runs.places import raw
from nnattr.runs.portions import RefusedError, answered
from nnattr.runs.tolerance import weights_tolerance

#: Numbers of the vocabulary's rows, or of the circuit's, that are made at once.
NUMBERS_AT_ONCE = 2**25


class Ends:
    """Where a circuit begins and ends: the embeddings and the unembedding.

    Attributes:
        embed, unembed: their paths.
        positions: the path of the table of position embeddings, or None.
        offset: which of its rows belongs to the first position.
        multiplier: what logits are multiplied with.
        capped: whether they are capped after that.
        size: of the vocabulary.
        context: how many positions there are.
    """

    def __init__(
        self,
        *,
        embed: str,
        unembed: str,
        positions: str | None,
        offset: int,
        multiplier: float,
        capped: bool,
        size: int,
        context: int,
    ) -> None:
        self.embed = embed
        self.unembed = unembed
        self.positions = positions
        self.offset = offset
        self.multiplier = multiplier
        self.capped = capped
        self.size = size
        self.context = context


class SideRecipe:
    """What one side of a circuit is made of.

    Attributes:
        rows: ``"embed"``, ``"positions"`` or ``"unembed"``.
        through: the heads (layer, head) whose outputs are read instead of the embedding, first to
            last.
        end: the matrix (q, k, v or o), and the heads that it is of, side by side.
    """

    def __init__(
        self,
        rows: str,
        through: tuple[tuple[int, int], ...],
        end: tuple[str, tuple[tuple[int, int], ...]],
    ) -> None:
        self.rows = rows
        self.through = through
        self.end = end


class Run:
    """What a run over the short prompt shows, by which the sides are proven; inside a trace.

    Attributes:
        table: what the table of position embeddings gave [example or 1, pos, d_model], or None.
        seen: what each layer's attention saw and made.
        entering: what entered the unembedding [example, pos, d_model].
        unembedded: what left it [example, pos, token].
        logits: the model's own.
    """

    def __init__(self, nn: Any, ends: Ends, forms: list[Form]) -> None:
        self.table = None if ends.positions is None else nn.get(ends.positions).output
        self.seen = read_attention(nn, forms)
        head = nn.get(ends.unembed)
        self.entering, self.unembedded = head.input, head.output
        self.logits = nn.output.logits


class Sides:
    """What both sides are made from; inside a trace.

    Attributes:
        nn: the nnsight model.
        ends: where the circuit begins and ends.
        norm: the final norm's path, or None; ``fold`` says whether norms' weights are put in.
        fold: see ``norm``.
        matrices: of each layer's heads, see `nnattr.maps.heads.head_matrices`.
        run: what proves them.
        like: a tensor of the residual stream's dtype and device.
    """

    def __init__(
        self,
        nn: Any,
        ends: Ends,
        question: WeightsQuestion,
        matrices: dict[int, dict[str, Tensor]],
        run: Run,
    ) -> None:
        self.nn = nn
        self.ends = ends
        self.norm = question.norm
        self.fold = question.fold
        self.matrices = matrices
        self.run = run
        self.like = run.seen[0].stream

    def made(self, recipe: SideRecipe) -> Tensor:
        """One side [row, rank]."""
        name, heads = recipe.end
        if name == "o":
            return self.unembedded(torch.cat([self.matrix(name, *head) for head in heads]))
        matrix = torch.cat([self.matrix(name, *head) for head in heads], -1)
        for head in reversed(recipe.through):
            matrix = self.matrix("v", *head) @ (self.matrix("o", *head) @ matrix)
        return self.embedded(recipe.rows, matrix)

    def matrix(self, name: str, layer: int, head: int) -> Tensor:
        """One head's q, k, v or o."""
        return self.matrices[layer][name][head].to(self.like.device)

    def embedded(self, rows: str, matrix: Tensor) -> Tensor:
        """``W_E @ matrix`` or ``W_pos @ matrix`` [row, rank], the table asked for in chunks."""
        if rows == "positions":
            return self.centred(self.position_rows().float()) @ matrix
        parts = []
        step = max(1, NUMBERS_AT_ONCE // matrix.shape[0])
        device = self.like.device
        for ids in torch.arange(self.ends.size, device=device).split(step):
            table = self.nn.get(self.ends.embed)(ids[None])[0].to(device).float()
            parts.append(self.centred(table) @ matrix)
        return torch.cat(parts)

    def position_rows(self) -> Tensor:
        """The table of position embeddings [pos, d_model], those that positions 0, 1, ... get."""
        module = self.nn.get(self.ends.positions)
        first = self.ends.offset  # OPT leaves the first rows unused
        last = first + self.ends.context
        if module.weight.is_meta or not as_built(raw(module)):
            rows = module(torch.arange(first, last, device=self.like.device)[None])[0]
        else:
            rows = module.weight[first:last].to(self.like.device)
        assert self.run.table is not None  # there are positions to ask for
        table = self.run.table.float().reshape(-1, rows.shape[-1]).to(rows.device)
        pos = self.like.shape[1]
        self.require("position embeddings", rows[:pos].float(), table[:pos])
        return rows

    def centred(self, table: Tensor) -> Tensor:
        """The rows without their mean, where norms are folded and take it away anyway."""
        if not (self.fold and final_norm(self.nn, self.norm, self.like).centred):
            return table
        return table - table.mean(-1, keepdim=True)

    def unembedded(self, rows: Tensor) -> Tensor:
        """``(rows @ W_U).T`` [d_vocab, rank], a chunk of the vocabulary at a time."""
        if self.fold:
            norm = final_norm(self.nn, self.norm, self.like)
            rows = norm.gain * (rows - rows.mean(-1, keepdim=True) if norm.centred else rows)
        module, size = self.nn.get(self.ends.unembed), self.ends.size
        step = size if module.weight.is_meta else max(1, NUMBERS_AT_ONCE // rows.shape[-1])
        parts = []
        for ids in torch.arange(size, device=self.like.device).split(step):
            matrix, bias = linear_map(module, rows.shape[-1], self.like, ids)
            self.require_unembedding(ids, matrix, bias)
            parts.append((rows @ matrix).T)
        found = self.ends.multiplier * torch.cat(parts)
        return found - found.mean(0) if self.fold and not self.ends.capped else found

    def require_unembedding(self, ids: Tensor, matrix: Tensor, bias: Tensor) -> None:
        """Hold the unembedding's map to some tokens against what the model did in the run."""
        entering, made = self.run.entering.float(), self.run.unembedded[..., ids].float()
        self.require("unembedding's outputs", entering.to(matrix.device) @ matrix + bias, made)
        if not self.ends.capped:
            logits = self.run.logits[..., ids].float()
            self.require("logits", self.ends.multiplier * made, logits)

    def require(self, what: str, found: Tensor, expected: Tensor) -> None:
        """Refuse a model that does not do what its weights say."""
        gap = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        limit = weights_tolerance(self.like.dtype)
        require_number(gap)
        if gap > limit:
            raise RefusedError(
                "arch",
                f"the {what} are not those of the weights alone: they differ by {gap:.1e} of their "
                f"size, and at most {limit:.0e} is allowed. A circuit of weights would miss what "
                "the model does besides (somebody's hook, say); activation_patching runs it.",
            )


def weight_circuit_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Answer questions about one circuit.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``ids`` [1, pos], a short prompt to prove the weights on; ``weights``, see
            `WeightsQuestion`; ``ends``, see `Ends`; ``left`` and ``right``, see `SideRecipe`;
            ``questions`` by name with their arguments, see `answer`.

    Returns:
        the answers by name.
    """
    question, ends = WeightsQuestion(**payload["weights"]), Ends(**payload["ends"])
    recipes = [SideRecipe(**payload[side]) for side in ("left", "right")]
    ids, questions = payload["ids"], payload["questions"]
    return answered(answers, nn, tick, ids, question, ends, recipes, questions)


def answers(
    nn: Any,
    tick: Any,
    ids: Tensor,
    question: WeightsQuestion,
    ends: Ends,
    recipes: list[SideRecipe],
    questions: dict[str, Any],
) -> dict[str, Any]:
    """The same, of what a payload holds."""
    with nn.trace(input_ids=ids, use_cache=False):
        with torch.no_grad():
            run = Run(nn, ends, list(question.forms.values()))
            with torch.autocast(run.seen[0].z.device.type, enabled=False):
                matrices, proof = head_matrices(nn, question, run.seen)
                sides = Sides(nn, ends, question, matrices, run)
                left, right = [sides.made(recipe) for recipe in recipes]
    require_weights_alone(proof, question.distance)
    with torch.no_grad():
        with torch.autocast(left.device.type, enabled=False):
            found = {
                name: answer(name, left, right, arguments, tick)
                for name, arguments in questions.items()
            }
    return found


def require_weights_alone(proof: Proof, distance: int) -> None:
    """Refuse scores that weights alone do not make, and a distance that means nothing."""
    proof.require()
    if proof.alibi:
        raise RefusedError(
            "arch",
            "the model adds a bias for the distance of query and key to its scores (ALiBi), which "
            "no weight holds: a QK circuit would miss what often decides where a head looks. OV "
            "circuits and composition exist.",
        )
    if distance and any(scoring.kind == "none" for scoring in proof.scorings):
        raise RefusedError(
            "arch",
            f"distance is {distance}, and the head is not turned by position (it is not rotary): "
            "its QK circuit is the same at every distance. Leave distance out.",
        )


def answer(name: str, left: Tensor, right: Tensor, arguments: Any, tick: Any) -> Any:
    """What one question about the circuit ``left @ right.T`` has for an answer."""
    if name == "copying":
        return copying(left, right, arguments["top_k"], arguments["by"], tick)
    if name == "eigenvalues":
        return product_eigenvalues(left, right.T).cpu()
    if name == "norm":
        return float(product_norm(left, right.T))
    if name == "directions":
        return directions(left, right, **arguments)
    rows, columns = (
        slice(None) if ids is None else torch.tensor(ids, device=left.device)
        for ids in (arguments["rows"], arguments["columns"])
    )
    return (left[rows] @ right[columns].T).cpu()


def copying(left: Tensor, right: Tensor, top_k: int, by: str, tick: Any) -> float:
    """The share of rows (or columns) whose own entry is among the ``top_k`` largest."""
    if by == "column":
        left, right = right, left
    hits, total = 0, len(left)
    numbers = torch.arange(total, device=left.device)
    for ids in numbers.split(max(1, NUMBERS_AT_ONCE // total)):
        values = left[ids] @ right.T
        own = values.gather(1, ids[:, None])
        hits += int(((values > own).sum(1) < top_k).sum())
        tick(int(ids[-1]) + 1, total)
    return hits / total


def directions(left: Tensor, right: Tensor, k: int, tokens: int) -> dict[str, Tensor]:
    """The strongest singular directions, and the rows and columns at either end of each.

    Returns:
        ``values`` [rank], all singular values; for ``rows`` and ``columns`` the numbers
        [direction, end, token] and ``... weight``, the entries of the singular vectors. The two
        ends are the positive and the negative one: a row's and a column's end of one sign belong
        together.
    """
    u, s, vh = product_svd(left, right.T)
    found = {"values": s.cpu()}
    for name, vectors in (("rows", u.T[:k]), ("columns", vh[:k])):
        best = [(sign * vectors).topk(min(tokens, vectors.shape[1]), -1) for sign in (1, -1)]
        found[name] = torch.stack([end.indices for end in best], 1).cpu()
        ends = [sign * end.values for sign, end in zip((1, -1), best, strict=True)]
        found[f"{name} weight"] = torch.stack(ends, 1).cpu()
    return found
