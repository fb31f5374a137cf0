"""What NetworkPolicies allow, by the rules of the API, for tests. Pure; there is no cluster in it.

The rules: a pod that no policy selects for a direction is open in that direction; otherwise the union of the rules of
the policies that select it is allowed and nothing else. A connection needs both its ends: egress of the source and
ingress of the target. Answers go back by themselves. What comes from a pod's own node is always let in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a connection. Without a namespace it is an address outside the cluster."""

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    own_node: bool = False  # the node that the other end runs on


def allowed(policies: Sequence[Manifest], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """True when the policies let `source` open a connection to `target` at that port."""
    if source.own_node:
        return True
    leaves = _passes(policies, source, target, "Egress", port, protocol)
    return leaves and _passes(policies, target, source, "Ingress", port, protocol)


def _passes(policies: Sequence[Manifest], here: End, there: End, direction: str, port: int, protocol: str) -> bool:
    if not here.namespace:
        return True
    mine = [policy for policy in policies if _selects(policy, here) and direction in policy["spec"]["policyTypes"]]
    side, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not mine or any(
        _at_port(rule, port, protocol) and _among(rule.get(peers), there, policy["metadata"]["namespace"])
        for policy in mine
        for rule in policy["spec"].get(side, ())
    )


def _selects(policy: Manifest, end: End) -> bool:
    same = policy["metadata"]["namespace"] == end.namespace
    return same and matches(policy["spec"]["podSelector"], end.labels)


def _at_port(rule: Manifest, port: int, protocol: str) -> bool:
    """No `ports`: any. An entry without a port: any of the protocol."""
    if not (entries := rule.get("ports")):
        return True
    for entry in entries:
        first = entry.get("port")
        if entry.get("protocol", "TCP") == protocol and (first is None or first <= port <= entry.get("endPort", first)):
            return True
    return False


def _among(peers: Sequence[Manifest] | None, end: End, namespace: str) -> bool:
    """No `from` or `to`: anybody."""
    return not peers or any(_is(peer, end, namespace) for peer in peers)


def _is(peer: Manifest, end: End, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        # Blocks are for addresses outside; whether they match pods is left to the plug-in, so a test counts on neither.
        address = ipaddress.ip_address(end.address)
        excepted = any(address in ipaddress.ip_network(net) for net in block.get("except", ()))
        return not end.namespace and address in ipaddress.ip_network(block["cidr"]) and not excepted
    if not end.namespace:
        return False
    if "namespaceSelector" in peer:
        here = matches(peer["namespaceSelector"], end.namespace_labels)
    else:
        here = end.namespace == namespace
    return here and matches(peer.get("podSelector", {}), end.labels)


def matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """A label selector; the empty one selects everything."""
    if not (selector.get("matchLabels") or {}).items() <= dict(labels).items():
        return False
    for expression in selector.get("matchExpressions", ()):
        key, operator = expression["key"], expression["operator"]
        verdict = {
            "In": labels.get(key) in expression.get("values", ()),
            "NotIn": labels.get(key) not in expression.get("values", ()),
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not verdict:
            return False
    return True
