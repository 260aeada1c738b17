"""Words of Anthropic's Messages API and what they are in OpenAI's, for both directions.

Sources: Anthropic's API reference (Messages, errors) and its guide to stop reasons.
"""

from collections.abc import Mapping
from types import MappingProxyType

# Stop reasons. `pause_turn` is a server tool's long run, which no request of ours can begin. The
# first of those that mean the same is what a reply is told to have ended with.
FINISH: Mapping[str, str] = MappingProxyType(
    {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "pause_turn": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }
)
# Types of errors, and the HTTP status of each; in a stream the type is all there is.
STATUS: Mapping[str, int] = MappingProxyType(
    {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "billing_error": 402,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "api_error": 500,
        "timeout_error": 504,
        "overloaded_error": 529,
    }
)
# What `tool_choice` may ask for, by OpenAI's words (`named`: one function by its name).
TOOL_CHOICES: Mapping[str, str] = MappingProxyType(
    {"auto": "auto", "none": "none", "required": "any", "named": "tool"}
)
