"""Any encoder as streams of tokens, one per modality, whose blocks can be listened to.

Distillation asks the same of teachers and students, of image models and of the audio-visual encoder: the tokens after
some blocks, the queries, keys and values within some, and nothing that is not needed for these. A stream stops after
the last block that somebody asked about.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from kdctool.batch import Batch

Grid = tuple[int, int]


@dataclass(frozen=True)
class Stream:
    """The sizes of one sequence of tokens on its way through an encoder."""

    grid: Grid
    """(rows, columns) of its patches; (0, 0) for the joint stream, which has no grid of its own."""
    width: int
    heads: int
    layers: int
    prefix: int = 0
    """Tokens before the patches: class and registers."""
    has_class: bool = False
    """Whether the first of them is a class token."""
    mlp_ratio: float = 4.0
    patch_inputs: int = 0
    """Numbers that a patch is made of."""
    first: int = 1
    """The first block that it runs through; above 1 where other streams did the work before."""

    @property
    def tokens(self) -> int:
        """Patches."""
        return self.grid[0] * self.grid[1]

    def gmacs(self, tokens: int, last: int) -> float:
        """Billions of multiply-adds of the matrix products up to block `last`, on `tokens` patches and the prefix."""
        n, d = tokens + self.prefix, self.width
        block = (4 + 2 * self.mlp_ratio) * n * d**2 + 2 * n**2 * d
        return ((last - self.first + 1) * block + self.tokens * d * self.patch_inputs) / 1e9


class Qkv(NamedTuple):
    """Queries, keys and values of a block's attention, (B, heads, N, D / heads) each."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Wanted:
    """Blocks of a stream that somebody listens to, counted from 1."""

    outputs: frozenset[int] = frozenset()
    """Tokens after these blocks; 0 is what goes into the first."""
    qkv: frozenset[int] = frozenset()
    """Queries, keys and values within these."""
    final: bool = False
    """The last block's tokens through the encoder's final norm."""

    def __or__(self, other: "Wanted") -> "Wanted":
        return Wanted(self.outputs | other.outputs, self.qkv | other.qkv, self.final or other.final)

    @property
    def last(self) -> int:
        """The last block that has to run."""
        return max(self.outputs | self.qkv, default=0)


@dataclass
class Heard:
    """What a stream gave."""

    outputs: dict[int, Tensor] = field(default_factory=dict)
    """Block -> tokens (B, N, D) after it."""
    qkv: dict[int, Qkv] = field(default_factory=dict)
    final: Tensor | None = None
    """Tokens (B, N, D) after the final norm."""


class Audible(nn.Module):
    """A layer that keeps what it put out last, until that is taken: the `qkv` layer of an attention.

    Blind to whether attention is fused or written out. A class of its own and not a forward hook: compiled blocks
    share their code, and the compiler looks at the types of layers but not at their hooks.
    """

    heard: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """What the layer does."""
        out: Tensor = super().forward(x)
        self.heard = out
        return out

    def take(self) -> Tensor:
        """The tensor, which is then forgotten."""
        heard, self.heard = self.heard, None
        assert heard is not None, "the block did not run"
        return heard


def audible(layer: nn.Module) -> Audible:
    """The same layer, its parameters and names untouched, made audible in place."""
    if not isinstance(layer, Audible):
        kind: Any = type(layer)
        layer.__class__ = _audible(kind)
    assert isinstance(layer, Audible)
    return layer


@cache
def _audible(kind: Any) -> Any:
    return type(f"Audible{kind.__name__}", (Audible, kind), {})


class Streams(Protocol):
    """An encoder that can be listened to; neither owns nor copies its parameters."""

    streams: dict[str, Stream]
    """By name: audio, video, joint. What an image model sees is called video, as it sees frames."""
    side: int
    """Side in pixels of the frames that it takes."""

    def listen(self, wanted: Mapping[str, Wanted]) -> None:
        """Prepare for `run` with these and no other wishes; to be called once, before anything is compiled."""
        ...

    def run(self, batch: Batch, keep: Mapping[str, Tensor], mask_token: Tensor | None = None) -> dict[str, Heard]:
        """What was wanted, of the tokens at `keep[stream]` (B, K), or of all where a stream is not in it.

        With `mask_token` (1, 1, D) the encoder sees all places, and those that are not kept hold this token.
        """
        ...

    def last(self, name: str) -> int:
        """The last block of a stream that `run` runs; 0 where it runs none."""
        ...

    def reached(self) -> set[str]:
        """Parameters of the encoder, by name, on which what was wanted depends."""
        ...


def resolve(layer: int, stream: Stream) -> int:
    """A block counted from 1 or from the end (-1), counted from 1; ValueError when there is none."""
    found = layer if layer > 0 else stream.layers + 1 + layer
    if not stream.first <= found <= stream.layers:
        of = f"{stream.layers} blocks" if stream.first == 1 else f"blocks {stream.first} to {stream.layers}"
        raise ValueError(f"layer {layer}: there are {of}")
    return found


def split_qkv(qkv: Tensor, heads: int) -> Qkv:
    """(B, N, 3 * D), stacked in this order as kdctool's and timm's attention have it."""
    return Qkv(*qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))


def pick(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B or 1, N, D) at ids (B, K) -> (B, K, D)."""
    index = ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.expand(len(ids), -1, -1).gather(1, index)
