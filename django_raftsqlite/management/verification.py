"""What the members of a group found when they verified their content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .status import table


@dataclass(frozen=True)
class Found:
    """What is known so far. ``complete``: nobody is at work any more. ``status`` is the exit status: 0 equal, 1
    different, 2 where not all members answered.

    ``told`` has a dict for each member: address, answer ("equal", "DIFFERENT", "differs" where nobody can tell who is
    wrong, "suspect", "no answer", "at work" or "FAILED"), index, digest, seconds, bytes, problem.
    """

    told: list[dict[str, Any]]
    complete: bool
    status: int

    def render(self) -> str:
        """A table, and what it means."""
        rows = [["member", "content", "log index", "hash", "bytes", "seconds"]]
        for each in self.told:
            shown = [_known(each[key])[:16] for key in ("answer", "index", "digest", "bytes", "seconds")]
            rows.append([each["address"], *shown])
        problems = [f"{each['address']}: {each['problem']}" for each in self.told if each["problem"]]
        return "\n".join([*table(rows), *problems, "", _VERDICTS[self.status]])


_VERDICTS = {
    0: "All members have the same content.",
    1: "The members do NOT have the same content.",
    2: "Not all members answered; those that did have the same content.",
}


def outcome_of(
    verification: str, members: Iterable[Mapping[str, Any]], seen: dict[str, Mapping[str, Any]] | None = None
) -> Found:
    """What is known of a verification, from the ``members`` of a status.

    ``seen`` keeps what was found between calls: a member that differs forgets it when it has another content.
    """
    seen = {} if seen is None else seen
    found = []
    for member in members:
        verified = member.get("verified")
        if verified is not None and verified["id"] == verification:
            seen[member["address"]] = verified
        verified = seen.get(member["address"], {})
        found.append(
            {
                "address": member["address"],
                "answer": _answer(member, verified),
                **{key: verified.get(key) for key in ("index", "digest", "seconds", "bytes", "problem")},
            }
        )
    digests = Counter(each["digest"] for each in found if each["digest"] is not None)
    if len(digests) > 1:
        (most, count), *_ = digests.most_common(1)
        for each in found:
            if each["digest"] is not None and count <= len(found) // 2:
                each["answer"] = "differs"  # and nobody can tell who is wrong
            elif each["digest"] not in (None, most):
                each["answer"] = "DIFFERENT"
    answered = sum(digests.values())
    waiting = any(each["answer"] == "at work" for each in found)
    status = 1 if len(digests) > 1 else 2 if answered < len(found) else 0
    return Found(found, not waiting, status)


def _answer(member: Mapping[str, Any], verified: Mapping[str, Any]) -> str:
    if verified.get("digest") is not None:
        return "equal"
    if verified.get("problem"):
        return "FAILED"
    if member.get("suspect"):
        return "suspect"
    if not member.get("reachable") or member.get("failed"):
        return "no answer"
    return "at work"


def _known(value: object) -> str:
    return "" if value is None else str(value)
