"""The output's tree: where each surviving leaf stands, drawn from renames and moves; a name used twice is found here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eventveil.schemas.events.paths import EACH, Path, parse_path
from eventveil.schemas.events.tree import ListOf, Record
from eventveil.transforms._chains import Chain
from eventveil.transforms._places import Place, Steps, list_of, name_of, names_of, starts_with, steps_of, within
from eventveil.transforms.nested import LevelSpec, OutLeaf, OutList, OutNode, OutRecord

__all__ = ["Emitted", "Output"]


@dataclass
class Emitted:
    """A leaf of the output before the output's tree is drawn."""

    location: Steps
    level: Steps
    slot: int
    type: pa.DataType
    nullable: bool
    source: str
    operators: tuple[str, ...]
    discloses: str
    line: int
    stands_in: pa.DataType | None = None
    class_: str = ""


class Output:
    """Gathers the leaves that survive, and draws the output from them.

    Args:
        places: every node of the event schema. shapes: renames and moves of records and lists.
        fail: called with code, fact, remedy and line for what is wrong.
    """

    def __init__(self, places: Mapping[Steps, Place], shapes: Mapping[Steps, Chain], fail: Callable[..., None], line: int) -> None:
        self.places = places
        self.shapes = shapes
        self.fail = fail
        self.line = line
        self.emitted: list[Emitted] = []
        self.levels: tuple[LevelSpec, ...] = (LevelSpec(-1),)
        self.numbers: dict[Steps, int] = {(): 0}

    def _location(self, steps: Steps) -> Steps:
        """Where a node of the input stands in the output."""
        if not steps:
            return ()
        above, last = self._location(steps[:-1]), steps[-1]
        if last == EACH:
            return (*above, EACH)
        shape = self.shapes.get(steps)
        if shape is not None and shape.move is not None:
            return self._target(shape.move, steps, shape.line) or above
        return (*above, shape.rename if shape is not None and shape.rename is not None else name_of(last))

    def location_of_leaf(self, place: Place, chain: Chain, branch: str | None) -> Steps | None:
        last = place.steps[-1]
        if chain.move is not None:
            return self._target(chain.move, place.steps, chain.line)
        if place.is_of_stream:
            if branch is None and chain.rename is None:
                fact = f"{place} cannot leave under this name: no field of the output begins with $"
                self.fail("EV219", fact, "add {rename: name} to the rule", chain.line)
                return None
            return (branch or chain.rename or "",)
        if last == EACH:
            if chain.rename is not None or branch is not None:
                fact = f"{place} has no name of its own"
                self.fail("EV216", fact, f"rename {Path(place.steps[:-1])} instead", chain.line)
                return None
            return self._location(place.steps)
        return (*self._location(place.steps[:-1]), branch or chain.rename or name_of(last))

    def _target(self, move: str, steps: Steps, line: int) -> Steps | None:
        path = parse_path(move)
        inside = self._location(list_of(steps[:-1] if steps[-1] == EACH else steps))
        if path is None or path.star or path.steps[-1] == EACH or path.lists != inside:
            where = f"{Path(inside)}." if inside else "a path without []"
            self.fail("EV216", f"{Path(steps)} cannot be moved to {move}", f"the target must begin with {where}", line)
            return None
        return path.steps

    def number_levels(self, used: Iterable[Steps]) -> None:
        """Number the lists that surviving leaves stand in, parents first."""
        specs = [LevelSpec(-1)]
        for level in used:
            for n in range(1, len(level) + 1):
                steps = level[:n]
                if steps[-1] == EACH and steps not in self.numbers:
                    self.numbers[steps] = len(specs)
                    specs.append(LevelSpec(self.numbers[list_of(steps[:-1])], names_of(within(steps[:-1]))))
        self.levels = tuple(specs)

    def draw(self) -> OutRecord | None:
        """Draw the output's tree from the locations of the leaves that survive."""
        if not self.emitted:
            self.fail("EV221", "no field is left", line=self.line)
            return None
        tree: dict[str, Any] = {}
        clash = False
        for one in self.emitted:
            at = tree
            for step in one.location[:-1]:
                at = at.setdefault(step, {})
                if not isinstance(at, dict):
                    break
            if not isinstance(at, dict) or one.location[-1] in at:
                self.fail("EV206", f"the output name '{Path(one.location)}' is used twice", line=one.line)
                clash = True
                continue
            at[one.location[-1]] = one
        if clash:
            return None
        nodes: dict[Steps, list[Place]] = {}
        for place in self.places.values():
            if isinstance(place.node, Record | ListOf):
                nodes.setdefault(self._location(place.steps), []).append(place)
        drawn = self._draw(tree, (), nodes)
        return drawn if isinstance(drawn, OutRecord) else None

    def _draw(self, tree: Any, at: Steps, nodes: Mapping[Steps, list[Place]]) -> OutNode:
        if isinstance(tree, Emitted):
            return OutLeaf(tree.slot, tree.stands_in or tree.type, tree.nullable)
        sources = [place for place in nodes.get(at, ()) if place.steps and self._survives(place)]
        if len(sources) > 1:
            places = ", ".join(map(str, sources))
            self.fail("EV206", f"the output name '{Path(at)}' is used twice: {places}", line=self.line)
        source = sources[0] if sources else None
        if EACH in tree:
            assert source is not None
            item = self._draw(tree[EACH], (*at, EACH), nodes)
            return OutList(self.numbers[(*source.steps, EACH)], item, source.nullable)
        fields = tuple((name, self._draw(below, (*at, name), nodes)) for name, below in tree.items())
        if source is None:
            return OutRecord(fields, None, False)
        if source.nullable:
            self._check_moved_in(source, at)
        return OutRecord(fields, names_of(within(source.steps)) if source.nullable else None, source.nullable)

    def _check_moved_in(self, record: Place, at: Steps) -> None:
        """A leaf that is moved into a record that may be missing would be lost with it."""
        for one in self.emitted:
            if starts_with(one.location, at) and not starts_with(steps_of(one.source), record.steps):
                fact = f"{one.source} is moved into {Path(at)}, which may be missing: its value would be lost with it"
                self.fail("EV216", fact, "move it elsewhere", one.line)

    def _survives(self, place: Place) -> bool:
        """Whether a leaf of the output comes from below this node and was not moved out of it."""
        location = self._location(place.steps)
        return any(
            starts_with(steps_of(one.source), place.steps) and len(one.location) > len(location) and starts_with(one.location, location)
            for one in self.emitted
        )
