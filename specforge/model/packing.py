"""Several sequences side by side in one row of tokens, none seeing another: no padding to compute on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Packing:
    """Where the sequences lie: N tokens in all, of S sequences.

    `starts` int32 [S+1] are cumulative lengths from 0 to N, `positions` int64 [N] count within each sequence, and
    `longest` is the longest sequence's length.
    """

    starts: Tensor
    positions: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Packing":
        sizes = torch.tensor(lengths, dtype=torch.int64)
        ends = sizes.cumsum(0)
        positions = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - sizes, sizes)
        return cls(F.pad(ends, (1, 0)).int().to(device), positions.to(device), max(lengths))

    @property
    def count(self) -> int:
        """S."""
        return len(self.starts) - 1

    @cached_property
    def sequence(self) -> Tensor:
        """Which sequence each token is of, int64 [N]."""
        sizes = self.starts.diff().long()
        return torch.repeat_interleave(torch.arange(self.count, device=sizes.device), sizes)

    @cached_property
    def cells(self) -> Tensor:
        """Where each token sits in a padded grid of [S, longest], counted row by row: int64 [N]."""
        return self.sequence * self.longest + self.positions

    def spread(self, rows: Tensor, index: Tensor | None = None) -> Tensor:
        """Rows [N, H, ...], or only those of the tokens `index` [M], to a grid [S, H, longest, ...]; else zero."""
        cells = self.cells if index is None else self.cells[index]
        if self.count == 1 and index is None:
            return rows.unsqueeze(0).transpose(1, 2)
        grid = rows.new_zeros(self.count * self.longest, *rows.shape[1:]).index_copy_(0, cells, rows)
        return grid.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def gather(self, grid: Tensor, index: Tensor | None = None) -> Tensor:
        """Inverse of `spread`."""
        cells = self.cells if index is None else self.cells[index]
        return grid.transpose(1, 2).flatten(0, 1).index_select(0, cells)

    def to(self, device: torch.device) -> "Packing":
        return Packing(
            self.starts.to(device, non_blocking=True), self.positions.to(device, non_blocking=True), self.longest
        )
