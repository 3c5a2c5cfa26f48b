"""Models held to what is known exactly about them: `fastgen verify MODEL`."""

from typing import NamedTuple


class Check(NamedTuple):
    """One thing that must hold, as text for a table."""

    name: str
    expected: str
    got: str
    ok: bool
