"""What became of the events, per policy: for a person, and as JSON for a program. Counts only, and names from policy and schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from eventveil.schemas.errors import CODES

__all__ = ["PolicySummary", "Summary", "summarize"]


@dataclass
class PolicySummary:
    """Counts of one policy. `into` = out + refused + filtered.

    Attributes:
        drift: events with fields that the schema does not know, by their deepest known parent; an event may count twice.
        rules: values treated by place in the policy; a name ending in " otherwise" counts values that could not be placed.
        gathered: events that waited for their window, by what became of it: published, withheld, conflict, repeated. What is in `out`
            and not here has left at once, or still waits. windows: how many windows.
    """

    policy: str
    version: int
    digest: str
    into: int = 0
    out: int = 0
    filtered: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    drift: dict[str, int] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)
    gathered: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)

    @property
    def refused_total(self) -> int:
        return sum(self.refused.values())

    @property
    def balanced(self) -> bool:
        return self.into == self.out + self.refused_total + self.filtered

    def as_json(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "version": self.version,
            "digest": self.digest,
            "in": self.into,
            "out": self.out,
            "filtered": self.filtered,
            "refused": dict(sorted(self.refused.items())),
            "drift": dict(sorted(self.drift.items())),
            "rules": dict(sorted(self.rules.items())),
            **({"gathered": dict(sorted(self.gathered.items())), "windows": dict(sorted(self.windows.items()))} if self.gathered else {}),
        }


@dataclass
class Summary:
    """A whole run.

    Attributes:
        seconds: of the whole command, start-up included. keys: the public fingerprint of the keyring.
    """

    job: str
    seconds: float
    keys: str
    policies: list[PolicySummary]

    def as_json(self) -> dict[str, object]:
        policies = [one.as_json() for one in self.policies]
        return {"job": self.job, "seconds": round(self.seconds, 3), "keys": self.keys, "policies": policies}

    def lines(self) -> Iterable[str]:
        """The summary for a person."""
        for one in self.policies:
            yield f"{one.policy} (version {one.version}, policy digest {one.digest[:12]})"
            parts = [f"in {one.into:,}", f"out {one.out:,}", f"refused {one.refused_total:,}"]
            if one.filtered:
                parts.append(f"filtered {one.filtered:,}")
            yield "  " + "  ".join(parts)
            for what, number in sorted(one.gathered.items()):
                yield f"  {what} {number:,} in {one.windows.get(what, 0):,} windows"
            for code, number in sorted(one.refused.items()):
                yield f"  refused {number:,}: {code} {CODES[code][0]}"
            for path, number in sorted(one.drift.items()):
                yield f"  drift {number:,}: fields that the schema does not know, at {path}"
        total = max((one.into for one in self.policies), default=0)
        rate = f", {total / self.seconds:,.0f} events/s" if self.seconds > 0 and total else ""
        yield f"{self.seconds:.1f} s{rate}, start-up included"


def summarize(job: str, seconds: float, keys: str, policies: Iterable[tuple[str, int, str]], counters: Mapping[str, int]) -> Summary:
    """Sort Beam's counters (named ``policy|what[|which]``) by policy."""
    found = {name: PolicySummary(name, version, digest) for name, version, digest in policies}
    for counter, number in counters.items():
        policy, what, *which = counter.split("|", 2)
        one = found[policy]
        if what == "in":
            one.into = number
        elif what == "out":
            one.out = number
        elif what == "filtered":
            one.filtered = number
        elif what in ("published", "withheld", "conflict", "repeated"):
            one.gathered[what] = number
        else:
            table = {"refused": one.refused, "drift": one.drift, "rule": one.rules, "windows": one.windows}[what]
            table[which[0]] = number
    return Summary(job, seconds, keys, list(found.values()))
