"""The page at `/`: one file, no outside assets; it talks to the same API as everybody else."""

from functools import cache
from importlib.resources import files

import orjson
from fastapi import APIRouter
from starlette.responses import HTMLResponse

from stream_aligner_proxy.api.service import Service

_PLACEHOLDER = "{{CONFIG}}"
_EXAMPLES = (
    "Mia has 34 shells. She finds 27 more. How many shells does she have now?",
    "Explain in four sentences why the sky is blue.",
    "Write a short, polite reply to a customer whose parcel is late.",
)
# Only what is in the file may run or be loaded, and only this server be asked.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _template() -> str:
    return files("stream_aligner_proxy.api").joinpath("page.html").read_text(encoding="utf-8")


def page_route(service: Service) -> APIRouter:
    """The route of the page. What it is told: modes, the mode by default, example questions."""
    router = APIRouter()

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        config = orjson.dumps(
            {
                "modes": service.treatments[0].modes(),
                "mode": service.treatments[0].rules.mode,
                "examples": service.examples or _EXAMPLES,
            }
        ).decode()
        # Inside a script element only "<" could end the data.
        html = _template().replace(_PLACEHOLDER, config.replace("<", "\\u003c"))
        return HTMLResponse(html, headers={"content-security-policy": _POLICY})

    return router
