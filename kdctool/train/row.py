"""The numbers of one step. They stay on the device until somebody looks."""

from collections.abc import Iterator, Mapping

from torch import Tensor


class Row(Mapping[str, float]):
    """Name -> number of a step. The first look waits for the device and brings all of them over in one transfer.

    A loop that logs every tenth step looks at every tenth row, and the device never waits for the others.
    """

    def __init__(self, names: list[str], values: Tensor, more: dict[str, float] | None = None) -> None:
        """`values` (len(names),) on any device; `more` are numbers that are known already."""
        self._names, self._values, self._more = names, values, more or {}
        self._read: dict[str, float] | None = None

    def numbers(self) -> dict[str, float]:
        """All of them as floats."""
        if self._read is None:
            self._read = dict(zip(self._names, self._values.tolist(), strict=True)) | self._more
        return dict(self._read)

    def __getitem__(self, name: str) -> float:
        return self.numbers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._names, *self._more])

    def __len__(self) -> int:
        return len(self._names) + len(self._more)
