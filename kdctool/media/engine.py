"""Who runs the work items: worker processes of this machine, or the machines of a Ray cluster."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.media import ray_address
from kdctool.media.messages import Task
from kdctool.media.pool import Pool
from kdctool.media.rows import Row
from kdctool.media.settings import Item, Settings, Tools
from kdctool.places import Place

Engine = Literal["local", "ray"]


class Runner(Protocol):
    """Runs tasks somewhere."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Item, Row | None]]:
        """(input, row) for each row as it is made, and (input, None) when an input is done."""
        ...


def check(engine: Engine, address: str) -> None:
    """UsageFault for an address without Ray, EnvironmentFault when Ray is wanted and not installed or not reached."""
    if address and engine != "ray":
        raise UsageFault("--ray-address says where a Ray cluster is", "add --engine ray")
    if engine == "ray":
        if importlib.util.find_spec("ray") is None:
            raise EnvironmentFault("--engine ray: Ray is not installed", "pip install 'kdctool[ray]'")
        ray_address.check(address)


def open_pool(
    engine: Engine, address: str, size: int, out: Place, settings: Settings, tools: Tools
) -> AbstractContextManager[Runner]:
    """What runs up to `size` tasks at a time."""
    if engine == "local":
        return Pool(size, out, settings, tools)
    from kdctool.media.ray_pool import RayPool

    return RayPool(address, size, out, settings, tools)
