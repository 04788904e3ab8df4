"""The mesh spec: one string that says which devices perform which stages.

``5E2P1D`` is five devices encoding, two prefill instances and one decode instance. The grammar is groups of
``<count><roles>[x<tensor>]``; roles are one or more of E, P, D; a comma may separate groups, and must after a tensor
width.
"""

import dataclasses
import re

ROLES = "EPD"
STAGE_OF_ROLE = {"E": "encode", "P": "prefill", "D": "decode"}


class MeshSpecError(ValueError):
    """A mesh spec that cannot be read or cannot serve; the message points at the place."""


@dataclasses.dataclass(frozen=True)
class Group:
    """`count` instances that perform `roles`, each over `tensor` devices.

    A group with the one role E is `count` devices that encode together (IRP), unless IRP is off.
    """

    count: int
    roles: str
    tensor: int = 1

    @property
    def devices(self) -> int:
        return self.count * self.tensor

    def __str__(self) -> str:
        return f"{self.count}{self.roles}" + (f"x{self.tensor}" if self.tensor > 1 else "")


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """A parsed mesh spec.

    Attributes:
        groups: in the order written; devices are handed out in that order.
    """

    groups: tuple[Group, ...]

    @classmethod
    def parse(cls, text: str) -> "MeshSpec":
        """Read a spec such as ``5E2P1D``, ``8EPD`` or ``2E1Px2,1Dx4``.

        Raises:
            MeshSpecError: what is wrong, where, and what would be right.
        """
        spec = text.strip().replace(" ", "")
        if not spec:
            raise MeshSpecError("the mesh spec is empty; write for example 1E1P1D")
        groups, at = [], 0
        while at < len(spec):
            group, at = _read_group(spec, at)
            groups.append(group)
        missing = [role for role in ROLES if not any(role in g.roles for g in groups)]
        if missing:
            stages = " and ".join(f"{STAGE_OF_ROLE[role]} ({role})" for role in missing)
            raise MeshSpecError(f"mesh spec {spec!r} has no instance for {stages}; every stage needs one, as in 1E1P1D")
        return cls(tuple(groups))

    @property
    def devices(self) -> int:
        """Devices the whole deployment takes."""
        return sum(group.devices for group in self.groups)

    def __str__(self) -> str:
        text = ""
        for group in self.groups:
            text += ("," if re.search(r"x\d+$", text) else "") + str(group)
        return text


def _read_group(spec: str, at: int) -> tuple[Group, int]:
    """The group that starts at `at`, and where the next one starts."""
    where = f"in mesh spec {spec!r} at position {at + 1}"
    digits = re.match(r"\d+", spec[at:])
    if not digits:
        raise MeshSpecError(f"{where}: expected a count, found {spec[at]!r}; a group reads like 2P or 1Dx4")
    letters = re.match(r"[A-WYZa-wyz]+", spec[at + digits.end() :])
    if not letters:
        raise MeshSpecError(f"{where}: {digits[0]!r} is not followed by roles; write E, P, D or a combination")
    count, roles = int(digits[0]), letters[0].upper()
    bad = [c for c in roles if c not in ROLES]
    if bad:
        raise MeshSpecError(f"{where}: unknown role {bad[0]!r}; roles are E (encode), P (prefill) and D (decode)")
    if len(set(roles)) != len(roles):
        raise MeshSpecError(f"{where}: roles {roles!r} name a stage twice")
    if count == 0:
        raise MeshSpecError(f"{where}: a group needs at least one instance, not 0")
    at += digits.end() + letters.end()
    tensor = 1
    if at < len(spec) and spec[at] in "xX":
        width = re.match(r"\d+", spec[at + 1 :])
        if not width or int(width[0]) == 0:
            raise MeshSpecError(
                f"{where}: 'x' must be followed by a tensor width of at least 1, as in {count}{roles}x2"
            )
        tensor, at = int(width[0]), at + 1 + width.end()
        if at < len(spec) and spec[at] != ",":
            raise MeshSpecError(f"in mesh spec {spec!r} at position {at + 1}: a comma must follow a tensor width")
    if roles == "E" and tensor > 1:
        raise MeshSpecError(
            f"{where}: encoders share units, not tensors; write {count * tensor}E instead of {count}Ex{tensor}"
        )
    if at < len(spec) and spec[at] == ",":
        at += 1
        if at == len(spec):
            raise MeshSpecError(f"mesh spec {spec!r} ends in a comma; remove it or add a group")
    return Group(count, "".join(r for r in ROLES if r in roles), tensor), at


def auto_spec(devices: int) -> MeshSpec:
    """A reasonable split of `devices` when none is asked for: the paper's 5E2P1D proportions, scaled.

    One device is a monolith (``1EPD``); two keep prefill with decode (``1E1PD``).
    """
    if devices < 1:
        raise MeshSpecError("there are no devices to serve on")
    if devices < 3:
        return MeshSpec.parse({1: "1EPD", 2: "1E1PD"}[devices])
    decode = max(1, devices // 8)
    prefill = max(1, devices // 4)
    return MeshSpec.parse(f"{devices - prefill - decode}E{prefill}P{decode}D")
