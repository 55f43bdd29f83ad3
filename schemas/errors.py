"""The error tree and its codes.

    EventveilError
    + PolicyError      the policy or job document is wrong       build time, all at once   exit 2
    + SchemaError      policy and event schema disagree          build time, all at once   exit 2
    + KeyringError     a key is missing, destroyed, malformed    start-up, worker set-up   exit 3
    + StorageError     input or output cannot be used            start-up, run time        exit 4
    + LimitError       a limit that the user set was passed      run time                  exit 1
    + RejectedEvent    one event refused                         becomes a dead letter, never a crash

Every error says code, place, fact and remedy, and never a value of an event. Codes are stable and never
reused; `CODES` is the list from which docs/errors.md is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import ClassVar

__all__ = [
    "CODES",
    "EventveilError",
    "KeyringError",
    "LimitError",
    "PolicyError",
    "Problem",
    "RejectedEvent",
    "SchemaError",
    "StorageError",
    "Unreachable",
    "did_you_mean",
    "remedy_for",
]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it.

    `fact` and `remedy` are written by us from names in the policy and the schema; neither ever holds a value of an event.
    """

    file: str
    line: int
    code: str
    fact: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise LookupError(f"unknown error code {self.code}")

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        remedy = "".join(f"\n  {line}" for line in self.remedy.splitlines())
        return f"{place}{self.code} {self.fact}{remedy}"


class EventveilError(Exception):
    """Base of all our errors. Survives pickling.

    Runners raise an error again as its type with a longer text (Beam adds the step that was running): such a copy has the text and
    no `problems`.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, problems: Problem | Iterable[Problem] | str) -> None:
        found = (problems,) if isinstance(problems, Problem) else () if isinstance(problems, str) else tuple(problems)
        self.problems: tuple[Problem, ...] = tuple(sorted(set(found)))
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, self.problems)))

    @classmethod
    def of(cls, code: str, fact: str, remedy: str = "", *, file: str = "", line: int = 0) -> EventveilError:
        return cls(Problem(file, line, code, fact, remedy))

    def __reduce__(self) -> tuple[type[EventveilError], tuple[tuple[Problem, ...] | str]]:
        return type(self), (self.problems or str(self),)


class PolicyError(EventveilError):
    """The policy or the job document is wrong in itself."""

    exit_code = 2


class SchemaError(EventveilError):
    """The policy and the event schema disagree, or the schema cannot be used."""

    exit_code = 2


class KeyringError(EventveilError):
    """A key is missing, destroyed, malformed or too widely readable."""

    exit_code = 3


class StorageError(EventveilError):
    """An input or an output cannot be used."""

    exit_code = 4


class Unreachable(StorageError):
    """Who is asked does not answer just now: the same may succeed later. Any other StorageError will come again."""


class LimitError(EventveilError):
    """A limit that the user set was passed."""

    exit_code = 1


class RejectedEvent(EventveilError):
    """One event is refused. Only raised where a caller asks for a single event; batches carry codes instead."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The remedy for a word that we do not know: the nearest known ones, if near, and the list."""
    names = sorted(known)
    # One letter of a short word is a larger part of it.
    near = get_close_matches(word, names, n=1, cutoff=0.6 if len(word) <= 4 else 0.7)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names)}"


def remedy_for(code: str) -> str:
    """What to do about a code, where no more can be said; as a part of a message, not as a sentence."""
    text = CODES[code][1]
    return text[:1].lower() + text[1:].removesuffix(".")


# code -> (what it means, what to do). Never change the meaning of a code; add a new one.
CODES = MappingProxyType(
    {
        # 1xx: the policy or job document in itself
        "EV101": ("unknown operator", "Use one of the operators in docs/operators.md."),
        "EV102": ("unknown entry", "Remove the entry, or correct its name: nothing unknown is ignored."),
        "EV103": ("a value has the wrong type or lies outside its range", "Give a value as the message says."),
        "EV104": ("a required entry is missing", "Add the entry."),
        "EV105": ("the document is not YAML 1.2", "Correct the syntax at the line shown."),
        "EV106": ("a key stands twice", "Remove one of the two: a later one would silently win."),
        "EV107": ("an entry is empty", "Say what is meant; to remove a field write `drop`."),
        "EV108": ("an unquoted boolean or number stands where text is expected", "Put the text in quotes."),
        "EV109": ("a duration cannot be read", "Write a whole number and one of the units s min h d w mo q y."),
        "EV110": ("a path cannot be read", "Write paths as a.b, a[].b, a[], a{key}; `.*` only at the end, for drop."),
        "EV111": ("not available yet", "This version does not have this part of the policy language."),
        "EV112": ("unknown time zone", "Use a name of the IANA time zone database, as Europe/London."),
        "EV113": ("a rule's chain cannot be run in this order", "Reorder the chain as the message says."),
        "EV114": ("a rule shapes a field but does not say what happens to its value", "Add `keep` on purpose."),
        "EV115": ("a file that the document names cannot be read", "Correct the path; it is relative to the document."),
        "EV116": ("a feature of YAML that we do not accept", "Write the value out: no anchors, tags or second documents."),
        "EV117": ("an environment variable that the job names is not set", "Set it, or write a value."),
        "EV118": ("a secret stands in the job document", "Put it in a file or an environment variable and name that."),
        "EV119": ("refused events would be lost", "Name a folder for dead letters and a custodian's public key, or say --allow-loss."),
        "EV120": ("arguments do not fit together", "See --help."),
        # 2xx: policy against event schema
        "EV201": ("the event schema cannot be read", "Give an Avro schema (.avsc)."),
        "EV202": (
            "the event schema has a form that cannot be protected",
            "Recursive types and unions of several types have no fixed set of leaves; give each case a field.",
        ),
        "EV203": ("a field has no rule", "Add a rule, or say `keep` on purpose."),
        "EV204": ("a rule matches no field", "Correct the path."),
        "EV205": ("two rules for one field", "Remove one; several outputs of one field are written with `into`."),
        "EV206": ("an output name is used twice", "Rename one of the two."),
        "EV207": ("an operator does not accept the field's type", "Use another operator, or `cast` before it."),
        "EV208": ("one class over fields of different types", "Use `cast` so that both have one type, or name two classes."),
        "EV209": ("only drop may cover a sub-tree", "Write rules for the fields below it."),
        "EV210": ("the event time cannot be taken from this field", "Name a timestamp, an ISO 8601 text, or a number with its unit."),
        "EV211": ("a rule draws noise per event, and events have no id", "Name `event.id`; `$position` where events have none."),
        "EV212": ("a rule needs the event's subject", "Name `event.subject`."),
        "EV213": (
            "the event time is shifted further than the window is wide",
            "Shift less, or widen the window: names and headers disclose the window.",
        ),
        "EV214": ("a pseudonym of a person may not be stable", "Remove `stable`, or give the class of things a name of its own."),
        "EV215": ("`otherwise: other` is for text results only", "Use refuse or nullify."),
        "EV216": ("a field cannot be moved there", "Give an output path within the same list."),
        "EV217": ("the parameters do not fit the field", "See the operator's reference."),
        "EV218": ("a map has neither rules for entries nor drop", "Drop it, or name entries as in properties{version}."),
        "EV219": ("an output name cannot be written in this format", "Rename the field: Avro names are letters, digits and underscores."),
        "EV220": (
            "the policies of one job disagree about event types",
            "Give every policy of the job the same `event.type` field with another value.",
        ),
        "EV221": ("nothing is left of the event", "Keep at least one field."),
        # 3xx: keys
        "EV301": ("a keyring is missing", "Make one with `eventveil keys new`, or name one with --keys."),
        "EV302": ("a key file can be read by others", "chmod 600 the file; if others may have read it, make a new one."),
        "EV303": ("a key file or variable is malformed", "Restore it from a backup; keys are never repaired."),
        "EV304": ("a key file exists already", "Keys are never overwritten: choose another name."),
        "EV305": ("a key variable is not set", "Set the environment variable."),
        "EV306": ("a custodian's key cannot be used", "Make a pair with `eventveil keys custodian`."),
        "EV307": (
            "a sealed letter cannot be opened",
            "Use the private key that belongs to the public key of the run; if it is the right one, the letter was changed.",
        ),
        "EV308": (
            "a dead letter was not written with this keyring",
            "It was changed or forged, or belongs to another keyring: do not replay it.",
        ),
        # 4xx: input and output
        "EV401": ("no input matches", "Correct the path or pattern."),
        "EV402": ("an input cannot be read", "Check that it exists and may be read, and is not changed during the run."),
        "EV403": ("an input is damaged", "Restore the file; nothing behind the damage was read."),
        "EV404": ("an output cannot be written", "Check that the folder exists and may be written, and the disk is not full."),
        "EV405": ("the output folder holds something else", "Choose an empty folder: output of two policies must not mix."),
        "EV406": ("the format is not known", "Name it with --input-format or input.format: jsonl, avro or parquet."),
        "EV407": ("a file's columns do not fit the event schema", "Correct the schema or the file."),
        "EV408": ("an output part came in incomplete", "Run on a runner that keeps a range in one bundle; no part of it was published."),
        "EV409": (
            "the checkpoint belongs to another job, policy or keyring",
            "Name the checkpoint of this job, or begin anew from what comes now with --from-now.",
        ),
        "EV410": ("the checkpoint is in use", "Another process runs this job; stop that one, or name another folder."),
        "EV411": ("the checkpoint is damaged", "Restore the folder from a copy; nothing is guessed."),
        "EV412": (
            "events were removed at the source before they were read",
            "Lengthen the retention of the stream; to go on behind the gap, say --from-now.",
        ),
        "EV413": ("the stream cannot be read", "Check its address, its name and the client's settings."),
        "EV414": ("the schema registry cannot be used", "Check its address and the client's settings."),
        "EV415": ("a message cannot be delivered", "Check the topic, its limits and the client's settings."),
        "EV416": (
            "a window was published with another content",
            "The first one stands; whatever came later was kept sealed. Two versions of one window would show their difference.",
        ),
        "EV417": ("the address for metrics cannot be used", "Name another with --metrics: a free port of this machine."),
        "EV418": ("the engine cannot be reached", "Check its address, and that it runs; what it has begun goes on without us."),
        "EV419": ("the engine cannot be used", "Look into its log: its own texts are not shown, because they may quote an event."),
        "EV420": ("a subscription cannot be read", "Check its name, and what the client's credentials may do there."),
        "EV421": (
            "a topic of Pub/Sub does not take messages",
            "Check the topic, its limits, and what the client's credentials may do there.",
        ),
        "EV422": ("a table cannot be reached or written", "Check its address, the client's settings and permissions."),
        "EV423": ("the table holds something else", "Name a table that is not there yet: output of two policies must not mix."),
        "EV424": ("Dataflow does not take the job", "Check project, region, bucket and permissions: see deploy/dataflow/README.md."),
        # 5xx: one event refused, at run time; `code` and known path only
        "EV501": ("not one JSON object", "The producer wrote something that is not one complete JSON object on one line."),
        "EV502": ("a value has another type than the schema says", "Correct the producer or the schema."),
        "EV503": ("a required field is missing or null", "Correct the producer, or make the field nullable."),
        "EV504": ("text is not UTF-8", "Correct the producer."),
        "EV505": ("a number is not finite or lies outside its type's range", "Correct the producer."),
        "EV506": (
            "a value is not of the form that the schema names (enum, fixed, uuid, date, time, timestamp, decimal)",
            "Correct the producer.",
        ),
        "EV507": ("the event can be read in two ways (a key twice, or a number no type holds)", "Correct the producer."),
        "EV508": (
            "the event has a field that the schema does not know",
            "Add it to the schema and the policy, or say `unknown_fields: drop`.",
        ),
        "EV509": ("no policy is for this type of event", "Write a policy for it, or filter it out before."),
        "EV510": ("the event time is missing or cannot be read", "Correct the producer, or state unit and zone."),
        "EV511": ("the local time does not exist (skipped by daylight saving)", "State an offset in the producer."),
        "EV512": ("the event id is missing", "Correct the producer."),
        "EV513": ("the subject is missing", "Say `missing: unprotected`, or correct the producer."),
        "EV514": ("the event is dated too far ahead", "Correct the producer's clock, or raise `max_ahead`."),
        "EV515": ("the event is larger than the limit", "Raise the limit, or correct the producer."),
        "EV516": ("not a datum of the writer's schema", "Correct the producer."),
        "EV517": ("the message has no value", "Say `tombstones: drop`, or correct the producer."),
        "EV518": ("the event is late: its window is closed", "Raise `allowed_lateness`; the custodian may replay it."),
        "EV519": ("a key or header of the message is not text, or stands twice", "Correct the producer."),
        "EV520": ("the value is not on the list of allowed values", "Extend `allow`, or say `otherwise`."),
        "EV521": ("the value is not in the hierarchy", "Extend the hierarchy, or say `otherwise`."),
        "EV522": ("the value lies in no bin", "Extend the edges, or say `otherwise`."),
        "EV523": ("the text does not have the form", "Correct the form, or say `otherwise`."),
        "EV524": ("the value cannot be cast without loss", "Cast to a wider type, or say `otherwise`."),
        "EV525": ("the text is not an IP address", "Say `otherwise`."),
        "EV526": ("a null where noise needs a value", "Say what a null becomes with `null`."),
        "EV527": ("the value is not one of the choices", "Extend `choices`."),
        "EV528": ("the number overflows or is not finite", "Clamp the input first."),
        "EV529": ("the time falls outside what can be represented", "Correct the producer."),
        # 6xx: limits
        "EV601": ("more events were refused than --max-refused allows", "Look at the dead letters; correct producer, schema or policy."),
        "EV602": (
            "so many events were refused that the job has stopped",
            "Look at the dead letters: has the producer changed? Then correct schema or policy, or raise --stop-when-refused.",
        ),
        "EV603": ("a window is larger than may be decided at once", "Raise `max_window_bytes`, or choose a shorter release window."),
        # 9xx: ours
        "EV901": ("internal error", "A defect of eventveil: report it with this message, which holds no data."),
    }
)
