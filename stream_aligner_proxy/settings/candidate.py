"""The section `candidate`, of a route or of them all: a new aligner beside the one at work."""

from typing import Annotated, Literal

from pydantic import Field

from stream_aligner_proxy.settings.base import Name, Section


class CandidateSettings(Section):
    """`aligner`: a name from `aligners`. As a `canary` it gets `percent` of the conversations; in
    `shadow` it reviews `percent` of the sentences too, `max_concurrent` at once, and changes
    nothing."""

    aligner: Name
    as_: Annotated[Literal["shadow", "canary"], Field(alias="as")]
    percent: Annotated[float, Field(ge=0, le=100)] = 10.0
    max_concurrent: Annotated[int, Field(ge=1)] = 4

    @property
    def share(self) -> float:
        return self.percent / 100
