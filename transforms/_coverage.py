"""Coverage: every leaf of the event schema has exactly one rule, and every rule meets a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eventveil.schemas.errors import did_you_mean
from eventveil.schemas.events.paths import EACH, Path
from eventveil.schemas.events.tree import EventSchema, Leaf, ListOf, MapOf
from eventveil.schemas.policy import RuleDoc
from eventveil.transforms._chains import Chain, Chains
from eventveil.transforms._places import Place, Steps, starts_with

__all__ = ["Coverage"]


class Coverage:
    """Meets rules with fields.

    Attributes:
        shapes: the renames and moves of records and lists.
    """

    def __init__(
        self, schema: EventSchema, places: Mapping[Steps, Place], leaves: Sequence[Place], chains: Chains, fail: Callable[..., None]
    ) -> None:
        self.schema = schema
        self.places = places
        self.leaves = leaves
        self.chains = chains
        self.fail = fail
        self.shapes: dict[Steps, Chain] = {}

    def rules_by_leaf(self, rules: Sequence[RuleDoc]) -> dict[Steps, RuleDoc | None]:
        """For each leaf its rule; None where it is dropped."""
        own: dict[Steps, RuleDoc] = {}
        dropped: dict[Steps, RuleDoc] = {}
        stars: list[tuple[Path, RuleDoc]] = []
        found: dict[Steps, RuleDoc | None] = {}
        for rule in rules:
            for path in rule.paths:
                place = self.places.get(path.steps)
                is_drop = [step.name for step in rule.steps] == ["drop"]
                if path.star:
                    stars.append((path, rule))
                    if not is_drop and self.chains.read(rule.steps, rule.text) is not None:
                        self.fail("EV209", f"{rule.text} covers a sub-tree, and {_words(rule)} is not drop", line=rule.line)
                    continue
                if place is None:
                    self._no_such_field(path, rule)
                    continue
                if path.steps in own or path.steps in dropped or path.steps in self.shapes:
                    self.fail("EV205", f"{path} has two rules", line=rule.line)
                elif is_drop:
                    dropped[path.steps] = rule
                elif isinstance(place.node, Leaf):
                    own[path.steps] = rule
                else:
                    self._shape(place, rule)
        for place in self.leaves:
            above = [dropped[place.steps[:n]] for n in range(1, len(place.steps) + 1) if place.steps[:n] in dropped]
            starred = [path for path, _ in stars if _covers(path, place)]
            if place.steps in own:
                if above:
                    line = own[place.steps].line
                    self.fail("EV205", f"{place} has a rule, and {above[0].text} drops it", "remove one, or drop with a star", line)
                found[place.steps] = own[place.steps]
            elif above or starred or place.is_of_stream:
                found[place.steps] = None
            elif isinstance(place.node, MapOf):
                self.fail("EV218", f"map {place} has no rule", f"write {place}: drop, or name entries: {place}{{key}}: ...")
            else:
                self.fail("EV203", f"field {place} has no rule", "add a rule, or say `keep` on purpose")
        return found

    def _no_such_field(self, path: Path, rule: RuleDoc) -> None:
        names = [str(place) for place in self.places.values() if place.steps]
        self.fail("EV204", f"{path} is no field of {self.schema.name}", did_you_mean(str(path), names), rule.line)

    def _shape(self, place: Place, rule: RuleDoc) -> None:
        words = {step.name for step in rule.steps}
        if not words <= {"rename", "move"}:
            kind = "map" if isinstance(place.node, MapOf) else "list" if isinstance(place.node, ListOf) else "record"
            remedy = f"a {kind} takes drop, rename or move; write rules for the fields below it"
            self.fail("EV209", f"{place} is a {kind}, and {_words(rule)} treats values", remedy, rule.line)
            return
        if place.steps[-1] == EACH:
            self.fail("EV216", f"{place} has no name of its own", f"rename {Path(place.steps[:-1])}", rule.line)
            return
        chain = self.chains.read(rule.steps, str(place))
        if chain is not None:
            self.shapes[place.steps] = chain


def _covers(star: Path, place: Place) -> bool:
    """Whether a leaf stands below a star; a map none of whose entries is named has nothing but what is below."""
    whole_map = isinstance(place.node, MapOf) and place.steps == star.steps
    return whole_map or (starts_with(place.steps, star.steps) and len(place.steps) > len(star.steps))


def _words(rule: RuleDoc) -> str:
    return ", ".join(step.name for step in rule.steps)
