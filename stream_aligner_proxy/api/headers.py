"""The headers of a reply: how it is treated, and, where it is sent whole, what that cost."""

from collections.abc import Sequence

from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.core.records import Finished, Mode
from stream_aligner_proxy.upstream.routing.lease import Lease


def treatment_headers(
    plan: Plan, upstream: Lease, *, show_upstream: bool, aligner: str = ""
) -> dict[str, str]:
    """Known when the reply begins. `aligner`: its configured name, where one works."""
    headers = {"x-stream-aligner-mode": str(plan.mode), "x-stream-aligner-continuation": "none"}
    if plan.mode is not Mode.OFF:
        headers["x-stream-aligner-aligner"] = aligner
    if plan.mode is Mode.STREAM:
        continuation = upstream.way(plan.request)
        headers["x-stream-aligner-continuation"] = continuation.way
        headers["x-stream-aligner-class"] = continuation.found
    if show_upstream:
        headers["x-stream-aligner-upstream"] = upstream.name
    if plan.passthrough is not None:
        headers["x-stream-aligner-passthrough"] = plan.passthrough
    return headers


def cost_headers(finished: Sequence[Finished]) -> dict[str, str]:
    """Known when all choices have ended: counts of all, and the time of the one that took most."""
    if finished[0].mode is Mode.OFF:
        return {}
    costs = [one.cost for one in finished]
    counts = {
        "corrections": sum(cost.corrections for cost in costs),
        "branches": sum(cost.branches for cost in costs),
        "discarded-tokens": sum(cost.discarded_tokens for cost in costs),
        "aligner-tokens": sum(
            cost.aligner_prompt_tokens + cost.aligner_completion_tokens for cost in costs
        ),
        "added-ms": round(1000 * max(one.added_seconds for one in finished)),
    }
    return {f"x-stream-aligner-{name}": str(count) for name, count in counts.items()}
