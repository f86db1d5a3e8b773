"""Profiles: the costs of all layers of a model's run or edit come in, sums and tables go out."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsegen.backends.counting import Work

from ..engine.stats import active_tiles
from .costs import LayerCost
from .tables import counts


@dataclass(frozen=True, repr=False)
class Profile:
    """The cost of a dense run or of an edit, of one model.

    MACs, multiply-adds and bytes are sums over the steps: an edit of a diffusion model has several, any other has one.
    """

    backend: str
    """The backend whose work is counted."""
    size: tuple[int, int, int]
    """(N, H, W) of the model's input."""
    edited_area: float
    """Share of the pixels in the mask, 0 to 1; of a dense run 1."""
    layers: tuple[LayerCost, ...]
    steps: int = 1
    computed_steps: int = 1
    """Those that compute every layer; the others carry deltas on."""
    rest: Work = field(default_factory=Work)
    """The work of no layer: embeddings, and the moments that norms measure."""
    rest_weight_bytes: int = 0
    """Of the parameters of no layer: norms and embeddings."""
    input_bytes: int = 0
    """Of the inputs' canvases."""
    input_journal_bytes: int = 0
    """Of their tiles that undoing the edit takes."""
    codebook_bytes: int = 0
    shared_bytes: int = 0
    """Of canvases that all steps share."""
    scratch_bytes: int = 0
    """Of arrays that layers without canvases compute in."""
    at_most: bool = False
    """Whether the rows of codebooks are the most that there can be, since labels are not known."""
    milliseconds: float | None = None
    """Of all steps, measured from the edited input to the output; None: nothing ran."""
    dense_milliseconds: float | None = None
    """Of as many dense steps."""

    def __repr__(self) -> str:
        macs = f"{self.macs / 1e9:.3f} G of {self.macs_dense / 1e9:.3f} G MACs"
        return f"<Profile: {self.edited_area:.2%} edited, {macs}>"

    def __str__(self) -> str:
        return "\n".join(counts(self.layers, self.steps))

    @property
    def tiles(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(height, width) -> (active, all) tiles, of the layer with the most active ones at that resolution."""
        return active_tiles(self.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of as many dense steps."""
        return sum(layer.macs_dense for layer in self.layers)

    @property
    def macs_paper(self) -> int:
        """Multiply-accumulates as the paper counts the edit."""
        return sum(layer.macs_paper for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the active tiles, by the plain formula."""
        return sum(layer.macs for layer in self.layers)

    @property
    def multiplied(self) -> int:
        """Multiply-adds that the backend performs."""
        return sum(layer.work.multiplied for layer in self.layers) + self.rest.multiplied

    @property
    def canvas_bytes(self) -> int:
        """Memory of all canvases that are kept."""
        return sum(layer.canvas_bytes for layer in self.layers) + self.input_bytes

    @property
    def journal_bytes(self) -> int:
        """Memory that undoing the edit takes."""
        return sum(layer.journal_bytes for layer in self.layers) + self.input_journal_bytes

    @property
    def weight_bytes(self) -> int:
        """Memory of all parameters, in the type that the backend stores them in."""
        return sum(layer.weight_bytes for layer in self.layers) + self.rest_weight_bytes
