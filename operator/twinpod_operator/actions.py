"""Which actions of a plan may be tried now, and which of them at once. Pure.

An action that was refused is known again in a later plan by its mark. No pod is made while something that pods need
could not be: it would run with the ConfigMap or ServiceAccount of somebody else, or without its NetworkPolicy; nor
while a pod of its set, as a person's patch made it, is refused in a dry run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

from twinpod_operator.nouns import Action, Apply, Create, Delete, Emit, IssueCertificates, Prove, Ungate

__all__ = ["AT_ONCE", "ActionMark", "batches", "let_through", "mark"]

AT_ONCE = 8  # requests of one resource
ActionMark = tuple[str, str, str]  # its type, and the kind and name of what it is about
_NEEDED = (Apply.__name__, IssueCertificates.__name__)  # by pods
_SORTS: dict[type, int] = {Apply: 0, IssueCertificates: 0, Create: 1, Ungate: 2, Delete: 3, Emit: 4, Prove: 5}


def mark(action: Action) -> ActionMark:
    """What an action is about, so that it is known again in a later plan. Pure."""
    manifest = getattr(action, "manifest", None)
    if manifest is not None:
        return type(action).__name__, manifest["kind"], manifest["metadata"]["name"]
    return type(action).__name__, getattr(action, "kind", ""), getattr(action, "name", "")


def let_through(actions: tuple[Action, ...], undone: Collection[ActionMark]) -> tuple[Action, ...]:
    """What may be tried now: nothing that is undone itself, and no pod while something that pods need is. Pure."""
    sorts = {sort for sort, _, _ in undone}
    later: tuple[type, ...] = ()
    if not sorts.isdisjoint(_NEEDED):
        later = (Prove, Create)
    elif Prove.__name__ in sorts:
        later = (Create,)
    return tuple(action for action in actions if mark(action) not in undone and not isinstance(action, later))


def batches(actions: tuple[Action, ...]) -> Iterator[tuple[Action, ...]]:
    """Neighbours that may be done at once, at most AT_ONCE; what has no sort goes alone. Pure."""
    places = itertools.count(100)
    for _, group in itertools.groupby(actions, lambda action: _SORTS.get(type(action)) or _first(action, places)):
        same = list(group)
        for start in range(0, len(same), AT_ONCE):
            yield tuple(same[start : start + AT_ONCE])


def _first(action: Action, places: Iterator[int]) -> int:
    return 0 if type(action) in _SORTS else next(places)
