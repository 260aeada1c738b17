"""The sections `breaker` of upstreams and aligners."""

from typing import Annotated

from pydantic import Field, model_validator

from stream_aligner_proxy.settings.base import Seconds, Section


class BreakerSettings(Section):
    """When a part that fails is not asked any more, and how often it is tried meanwhile.

    `failures` in a row open it; it is then tried after `pause` seconds, which double with each try
    in vain up to `longest_pause`.
    """

    enabled: bool = True
    failures: Annotated[int, Field(ge=1)] = 3
    pause: Seconds = 1.0
    longest_pause: Seconds = 60.0

    @model_validator(mode="after")
    def _pauses(self) -> "BreakerSettings":
        if self.longest_pause < self.pause:
            raise ValueError("longest_pause must be at least pause")
        return self


class UpstreamBreakerSettings(BreakerSettings):
    """`trials`: how many replies it may begin at once before the first of them has an answer."""

    trials: Annotated[int, Field(ge=1)] = 1


class AlignerBreakerSettings(BreakerSettings):
    failures: Annotated[int, Field(ge=1)] = 5
