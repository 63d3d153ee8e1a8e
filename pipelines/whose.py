"""Whose face is it: which of a photograph's faces belongs to which person, from distances of embeddings. Pure decisions, no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SAME = 0.6  # below: the same person, when the archive says that this person is in the photograph (dlib's threshold)
SURE = 0.5  # below: the same person, although nothing but the face says so


def assign_faces(distances: Sequence[Mapping[str, float]], named: str | None) -> list[str | None]:
    """The person of each face, None where nobody is close enough.

    distances: for each face, its smallest distance to every person's references. `named`: the person whom folder or file name says to be in
    the photograph. A photograph's only face is the named person, however badly it can be recognized: that is why it is restored. Else the
    closest pairs are taken first, each person once, below SAME for the named person and below SURE for all others, so that a stranger in
    the background is not given another one's features.
    """
    if named is not None and len(distances) == 1:
        return [named]
    pairs = sorted(
        (distance, face, person)
        for face, row in enumerate(distances)
        for person, distance in row.items()
        if distance < (SAME if person == named else SURE)
    )
    people: list[str | None] = [None] * len(distances)
    for _, face, person in pairs:
        if people[face] is None and person not in people:
            people[face] = person
    return people
