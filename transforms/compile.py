"""Policy + event schema + operators -> Plan. All that is wrong is found here, and said at once.

The event schema's maps are first narrowed to the entries that the policy names; then every rule is resolved, every
leaf must have exactly one, chains are typed from left to right, and the output's records and lists are drawn from the
names that the surviving leaves end up with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

import pyarrow as pa

from eventveil.schemas.document import read_document_text
from eventveil.schemas.errors import PolicyError, Problem, SchemaError, did_you_mean, remedy_for
from eventveil.schemas.events.avro import load_avro
from eventveil.schemas.events.paths import EACH, Path
from eventveil.schemas.events.tree import EventSchema, Leaf, MapOf
from eventveil.schemas.policy import Policy, RuleDoc, parse_chain, read_policy
from eventveil.transforms._chains import Chain, Chains, coded
from eventveil.transforms._coverage import Coverage
from eventveil.transforms._event_access import EventFields, event_steps
from eventveil.transforms._output import Emitted, Output
from eventveil.transforms._places import Place, Steps, list_of, names_of, narrowed, of_stream, walk, within
from eventveil.transforms.keys.canonical import canonical_tag
from eventveil.transforms.plan import Apply, KeyRequest, Numbered, OutputField, Plan, Step, Together
from eventveil.transforms.registry import GroupOperator, Operator, Setting
from eventveil.transforms.windows import WindowRule

__all__ = ["compile_policy", "load_plan"]

FORMAT_VERSION = 1
_INSTANT = pa.timestamp("us", "UTC")
_ONLY_SHAPES = "the number is there when the window closes: only rename and move may follow"


def load_plan(policy_file: str | FilePath) -> Plan:
    """Read a policy and the event schema that it names, and compile them.

    Raises:
        PolicyError, SchemaError: with everything that is wrong.
    """
    file = str(policy_file)
    reading = read_policy(read_document_text(file), file)
    if reading.policy is None:
        # What is wrong with the document and with the rules that could be read is told together.
        problems = list(reading.problems)
        chains = Chains(file, problems)
        for rule in reading.rules:
            chains.read(rule.steps, rule.text)
        raise PolicyError(problems)
    policy = reading.policy
    schema_file = FilePath(file).parent / policy.schema_file
    if not schema_file.is_file():
        fact = f"the event schema {policy.schema_file} cannot be read: there is no such file"
        raise SchemaError(Problem(file, policy.line_of("schema"), "EV201", fact, "correct the path: it is relative to the policy"))
    return compile_policy(policy, load_avro(schema_file))


def compile_policy(policy: Policy, schema: EventSchema) -> Plan:
    """The plan of a policy for events of a schema.

    Raises:
        PolicyError, SchemaError: with everything that is wrong; files named by the policy are read relative to it.
    """
    return _Compiler(policy, schema).plan()


@dataclass
class _Members:
    operator: GroupOperator
    given: list[int] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    levels: list[Steps] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)


class _Compiler:
    def __init__(self, policy: Policy, schema: EventSchema) -> None:
        self.policy = policy
        self.schema = schema
        self.problems: list[Problem] = []
        self.chains = Chains(policy.file, self.problems)
        self.files: dict[str, str] = {}
        self.warnings: list[str] = []
        named = [path.steps for rule in policy.rules for path in rule.paths] + event_steps(policy)
        self.places = {place.steps: place for place in [*walk(narrowed(schema.root, (), named), (), False), *of_stream(named)]}
        self.leaves = [place for place in self.places.values() if isinstance(place.node, Leaf | MapOf)]
        self.coverage = Coverage(schema, self.places, self.leaves, self.chains, self.fail)
        self.output = Output(self.places, self.coverage.shapes, self.fail, policy.line_of("fields"))
        self.first: list[tuple[Steps, Apply]] = []
        self.groups: dict[tuple[str, str], _Members] = {}
        self.then: list[tuple[Steps, Apply]] = []
        self.slots = 0
        self.classes: dict[str, list[tuple[str, str, int]]] = {}
        self.stable: dict[str, int] = {}
        self.numbered: dict[str, dict[bool, tuple[str, int]]] = {}
        self.needs_subject = False

    # -- problems ---------------------------------------------------------------------------------------------------

    def fail(self, code: str, fact: str, remedy: str = "", line: int = 0) -> None:
        self.problems.append(Problem(self.policy.file, line, code, fact, remedy or remedy_for(code)))

    def raise_problems(self) -> None:
        if self.problems:
            wrong_policy = any(problem.code.startswith("EV1") for problem in self.problems)
            raise (PolicyError if wrong_policy else SchemaError)(self.problems)

    # -- the plan ---------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        rules = self.coverage.rules_by_leaf(self.policy.rules)
        event = EventFields(self.policy, self.schema.name, self.places, self.fail).access()
        for place in self.leaves:
            if place.steps in rules and rules[place.steps] is not None:
                self._leaf(place, rules[place.steps])  # type: ignore[arg-type]
        self._check_classes()
        self.output.number_levels(level for level, _ in [*self.first, *self.then])
        output = self.output.draw() if not self.problems else None
        self.raise_problems()
        assert output is not None
        numbers = self.output.numbers
        instructions: list[Apply | Together] = [replace(one, level=numbers[level]) for level, one in self.first]
        for members in self.groups.values():
            at = tuple(numbers[level] for level in members.levels)
            given, results = tuple(members.given), tuple(members.results)
            instructions.append(Together(members.operator, given, results, at, tuple(members.paths), tuple(members.rules)))
        instructions += [replace(one, level=numbers[level]) for level, one in self.then]
        window = self.policy.window
        return Plan(
            name=self.policy.name,
            version=self.policy.version,
            digest=self._digest(),
            domain=self.policy.domain,
            schema=self.schema,
            used=frozenset(str(place) for place in self._used() if not place.is_of_stream),
            event=event,
            key_window=WindowRule(window.keys, window.zone) if window.keys and event.times else None,
            release_window=WindowRule(window.release, window.zone) if window.release and event.times else None,
            refuse_unknown=self.policy.unknown_fields == "refuse",
            keep_order=self.policy.order == "keep",
            levels=self.output.levels,
            instructions=tuple(instructions),
            slots=self.slots,
            output=output,
            fields=tuple(
                OutputField(str(Path(one.location)), str(one.type), one.source, one.operators, one.discloses) for one in self.output.emitted
            ),
            warnings=tuple(self.warnings),
            needs_subject=self.needs_subject,
            max_ahead_us=self.policy.max_ahead.shortest_us,
            lateness_us=self.policy.allowed_lateness.shortest_us if self.policy.allowed_lateness else 0,
            stream=tuple(sorted(str(place) for place in self._used() if place.is_of_stream)),
            tombstones=self.policy.tombstones,
            numbered=tuple(Numbered(one.location, one.class_) for one in self.output.emitted if one.stands_in is not None),
            event_type=(self.policy.type.field, self.policy.type.is_) if self.policy.type else None,
        )

    def _digest(self) -> str:
        document = [FORMAT_VERSION, self.policy.canonical(), self.schema.canonical, self.files]
        return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def _used(self) -> list[Place]:
        """Leaves that a rule or the event's access reads."""
        read = set(event_steps(self.policy))
        emitted = {one.path for _, one in [*self.first, *self.then]}
        return [place for place in self.leaves if isinstance(place.node, Leaf) and (str(place) in emitted or place.steps in read)]

    # -- chains -----------------------------------------------------------------------------------------------------

    def _leaf(self, place: Place, rule: RuleDoc) -> None:
        assert isinstance(place.node, Leaf)
        path = str(place)
        chain = self.chains.read(rule.steps, path)
        if chain is None:
            return
        given = place.node.type
        is_time = self.policy.time is not None and path in self.policy.time.field
        read = is_time and (pa.types.is_string(given) or pa.types.is_integer(given) or pa.types.is_floating(given))
        zone = self.policy.time.zone if read and self.policy.time is not None and pa.types.is_string(given) else None
        names = names_of(within(place.steps))
        source = Apply(-1, path, (), -1, names=names, record=_record_of(place), is_time=read, local_zone=zone)
        self._emit(place, chain, source, _INSTANT if read else given, place.own, f"fields.{path}", path, is_time, ())

    def _emit(
        self,
        place: Place,
        chain: Chain,
        source: Apply,
        given: pa.DataType,
        nullable: bool,
        label: str,
        key_path: str,
        is_time: bool,
        before: tuple[Operator, ...],
        branch: str | None = None,
    ) -> None:
        """Write the instructions of one chain, its branches included, and the leaves of the output that it makes."""
        level = list_of(place.steps)
        symbols = place.node.symbols if isinstance(place.node, Leaf) and not before else ()
        typed = self._typed(chain, given, nullable, label, key_path, is_time, symbols)
        if typed is None:
            return
        steps, result, nullable = typed
        used = (*before, *(operator for operator, _, _ in chain.operators))
        zone = source.local_zone if result == _INSTANT else None
        cut = [i for i, step in enumerate(steps) if isinstance(step.operator, GroupOperator)]
        target = self.then if source.given is not None and self._is_late(source.given) else self.first
        if len(cut) > 1 or (cut and target is self.then):
            self.fail("EV113", f"{label} numbers its values twice", "remove one of the two", chain.line)
            return
        if chain.branches is not None and _awaiting(steps)[0] is not None:
            self.fail("EV113", f"{label} is taken apart behind renumber within the window", _ONLY_SHAPES, chain.line)
            return
        final = None if chain.branches is not None else zone
        if cut:
            lead, group, tail = steps[: cut[0]], steps[cut[0]], steps[cut[0] + 1 :]
            slot = self._slot()
            target.append((level, replace(source, steps=lead, result=slot, local_zone=None)))
            assert isinstance(group.operator, GroupOperator)
            members = self.groups.setdefault((group.operator.name, group.operator.group()), _Members(group.operator))
            members.given.append(slot)
            slot = self._slot()
            members.results.append(slot)
            members.levels.append(level)
            members.paths.append(place.__str__())
            members.rules.append(group.rule)
            if tail:
                given_slot, slot = slot, self._slot()
                self.then.append((level, Apply(-1, source.path, tail, slot, given=given_slot, record=source.record, local_zone=final)))
        else:
            slot = self._slot()
            target.append((level, replace(source, steps=steps, result=slot, local_zone=final)))
        if chain.branches is not None:
            self._branches(place, chain, slot, result, nullable, label, key_path, is_time, used, zone)
            return
        if pa.types.is_struct(result):
            self.fail("EV113", f"{label} ends in several captures", "say where they go: into: {name: rule, ...}", chain.line)
            return
        if not any(operator.covers for operator in used):
            self.fail("EV114", f"{label} does not say what happens to the value", line=chain.line)
            return
        location = self.output.location_of_leaf(place, chain, branch)
        if location is not None:
            output = pa.timestamp("us") if zone is not None else result
            words = tuple(operator.name for operator in used)
            says = "; ".join(dict.fromkeys(operator.discloses() for operator in used if operator.covers))
            above = nullable or place.above
            emitted = Emitted(location, level, slot, output, above, str(place), words, says, chain.line, *_awaiting(steps))
            self.output.emitted.append(emitted)

    def _branches(
        self,
        place: Place,
        chain: Chain,
        slot: int,
        result: pa.DataType,
        nullable: bool,
        label: str,
        key_path: str,
        is_time: bool,
        used: tuple[Operator, ...],
        zone: str | None,
    ) -> None:
        captures = {one.name: one.type for one in result} if pa.types.is_struct(result) else None
        for name, value in (chain.branches or {}).items():
            line = getattr(chain.branches, "lines", {}).get(name, chain.line)
            if not isinstance(name, str) or not name or "." in name or EACH in name:
                self.fail("EV110", f"{label}: into needs plain names", line=line)
                continue
            if captures is not None and name not in captures:
                self.fail("EV204", f"{label} has no capture '{name}'", did_you_mean(name, captures), line)
                continue
            try:
                steps = parse_chain(value, f"{place}.into.{name}", line, self.policy.file)
            except PolicyError as error:
                self.problems += error.problems
                continue
            if [step.name for step in steps] == ["drop"]:
                continue
            inner = self.chains.read(steps, f"{place}.into.{name}")
            if inner is None:
                continue
            if inner.rename or inner.move or inner.branches is not None:
                self.fail("EV113", f"{label}.into.{name} has its name already", "no rename, move or into within into", line)
                continue
            taken = captures is not None
            source = Apply(-1, str(place), (), -1, names=(name,) if taken else (), given=slot, record=_record_of(place), local_zone=zone)
            of = captures[name] if captures is not None else result
            self._emit(place, inner, source, of, nullable, f"{label}.into.{name}", f"{key_path}>{name}", is_time, used, branch=name)

    def _is_late(self, slot: int) -> bool:
        """Whether a slot is only there after the groups have run."""
        results = {one for members in self.groups.values() for one in members.results}
        return slot in results or any(one.result == slot for _, one in self.then)

    def _typed(
        self, chain: Chain, given: pa.DataType, nullable: bool, label: str, key_path: str, is_time: bool, symbols: tuple[str, ...]
    ) -> tuple[tuple[Step, ...], pa.DataType, bool] | None:
        """Settle the operators of a chain from left to right; None if one does not fit."""
        steps: list[Step] = []
        window = self.policy.window.release
        zone = self.policy.time.zone if self.policy.time else "UTC"
        for operator, position, line in chain.operators:
            place = f"{label}[{position}]" if len(chain.operators) > 1 or chain.branches is not None else label
            if pa.types.is_struct(given):
                self.fail("EV113", f"{operator.name} stands behind parse in {label}", "after parse say into: {name: rule, ...}", line)
                return None
            if _awaiting(steps)[0] is not None:
                self.fail("EV113", f"{operator.name} stands behind renumber within the window in {label}", _ONLY_SHAPES, line)
                return None
            result = operator.returns(given)
            if result is None:
                self.fail("EV207", f"{operator.name} does not accept {given}, in {label}", line=line)
                return None
            setting = Setting(key_path, zone, is_time, window, given, nullable, self._read, () if steps else symbols)
            try:
                settled = operator.settle(setting)
            except ValueError as error:
                code, fact = coded(str(error), "EV217")
                self.fail(code, f"{operator.name} in {label}: {fact}", line=line)
                return None
            result = settled.returns(given) or result
            self._check_needs(settled, label, line)
            self.warnings += [f"{label}: {text}" for text in settled.warnings(setting)]
            class_ = getattr(settled, "class_", None)
            if class_ is not None:
                self.classes.setdefault(class_, []).append((canonical_tag(given), label, line))
                if settled.name == "renumber":
                    self.numbered.setdefault(class_, {}).setdefault(settled.stands_in is not None, (label, line))
                if getattr(settled, "stable", None) is not None:
                    self.stable.setdefault(class_, line)
            request = None
            if settled.purpose is not None:
                request = KeyRequest(settled.key_scope(), settled.purpose, tuple(settled.key_info(key_path, position, given)))
            steps.append(Step(settled, place, request))
            given, nullable = result, settled.nullable(nullable)
        return tuple(steps), given, nullable

    def _check_needs(self, operator: Operator, label: str, line: int) -> None:
        needs = operator.needs()
        if "id" in needs and not self.policy.id:
            self.fail("EV211", f"{operator.name} in {label} draws per event", line=line)
        if "subject" in needs:
            self.needs_subject = True
            if self.policy.subject is None:
                self.fail("EV212", f"{operator.name} in {label} draws per subject", line=line)
        keyed = operator.purpose is not None and operator.key_scope() == "window"
        if keyed and self.policy.window.keys is None:
            self.fail("EV104", f"{operator.name} in {label} uses a key, and window is missing", "write window: 1d: keys live for one", line)
        if (keyed or "time" in needs) and self.policy.time is None:
            self.fail("EV104", f"{operator.name} in {label} needs event.time", "name event.time: it decides the window", line)

    def _read(self, name: str) -> bytes:
        """A file named by the policy, relative to it; its digest goes into the policy's."""
        try:
            content = (FilePath(self.policy.file).parent / name).read_bytes()
        except (OSError, ValueError):
            raise ValueError(f"EV115 {name} cannot be read") from None
        self.files[name] = hashlib.sha256(content).hexdigest()
        return content

    def _check_classes(self) -> None:
        for name, uses in self.classes.items():
            if len({tag for tag, _, _ in uses}) > 1:
                places = ", ".join(dict.fromkeys(label for _, label, _ in uses))
                self.fail("EV208", f"class {name} is used for fields of different types: {places}", line=uses[-1][2])
        for name, scopes in self.numbered.items():
            if len(scopes) > 1:
                (in_event, _), (in_window, line) = scopes[False], scopes[True]
                fact = f"class {name} is numbered within the event in {in_event} and within the window in {in_window}"
                self.fail("EV217", fact, "write one scope for both, or name two classes", line)
        subjects = {f"fields.{path}" for path in (self.policy.subject.paths if self.policy.subject else ())}
        for name, line in self.stable.items():
            if any(label in subjects or label.split(".into.")[0] in subjects for _, label, _ in self.classes[name]):
                self.fail("EV214", f"class {name} holds the subject and is stable", line=line)

    def _slot(self) -> int:
        self.slots += 1
        return self.slots - 1


def _awaiting(steps: Sequence[Step]) -> tuple[pa.DataType | None, str]:
    """Of a chain whose result is only there when the window closes: what stands in until then, and its class."""
    last = steps[-1].operator if steps else None
    return (None, "") if last is None or last.stands_in is None else (last.stands_in, getattr(last, "class_", ""))


def _record_of(place: Place) -> Steps | None:
    """The record that a leaf stands in, by names within its list, where it may be missing."""
    names = names_of(within(place.steps))
    return names[:-1] if names and place.above else None
