"""Which API's errors a path speaks."""

from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.faces.messages_errors import AnthropicErrors
from stream_aligner_proxy.api.faces.openai_errors import OpenAiErrors
from stream_aligner_proxy.api.faces.responses import ResponsesErrors

_OPENAI = OpenAiErrors()
_OTHERS: dict[str, Shape] = {
    "/v1/messages": AnthropicErrors(),
    "/v1/responses": ResponsesErrors(),
}


def shape_of(path: str) -> Shape:
    """By the beginning of the path; OpenAI's for all that is not another's."""
    return next((shape for prefix, shape in _OTHERS.items() if path.startswith(prefix)), _OPENAI)
