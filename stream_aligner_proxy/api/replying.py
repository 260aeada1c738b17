"""From a request, read as a chat request, to the response that writes the reply."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from stream_aligner_proxy.api.faces.face import Face, Shape
from stream_aligner_proxy.api.headers import treatment_headers
from stream_aligner_proxy.api.plan import Plan, decide
from stream_aligner_proxy.api.reading import forwarded, grant_of, key_of, path_of
from stream_aligner_proxy.api.relay import RelayResponse
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.api.response import ReplyResponse
from stream_aligner_proxy.api.schemas import ChatBody
from stream_aligner_proxy.api.service import Service, Treatment
from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.core.records import ChatRequest, Mode
from stream_aligner_proxy.session import Session
from stream_aligner_proxy.upstream.bodies import is_prompt
from stream_aligner_proxy.upstream.routing.lease import Lease


async def reply(
    service: Service,
    request: Request,
    raw: Mapping[str, Any],
    body: ChatBody,
    face: Face,
    *,
    relayed: bool = False,
) -> Response:
    """The reply to a chat request, in the words of `face`.

    `relayed`: the upstreams speak this API too, so that in mode `off` the upstream's answer passes
    through as it came. Raises `ProxyError`.
    """
    treatment, plan = planned(service, request, raw, body)
    first = await service.lease(plan.request)
    if plan.mode is Mode.OFF and relayed and first.relays:
        return relay(service, plan, first, face.shape)
    check_choices(service, plan)
    requests = [of_choice(plan.request, choice) for choice in range(plan.choices)]
    return await written(service, treatment, plan, face, first=first, requests=requests)


def check_choices(service: Service, plan: Plan) -> None:
    """Raises `RequestError` for more than the operator lets: each is a request of its own to the
    upstream, with sentences of its own for the aligner."""
    if plan.choices > service.max_choices:
        raise RequestError(
            f"Invalid value for 'n': must be at most {service.max_choices} here.",
            param="n",
            code="invalid_value",
        )


def planned(
    service: Service, request: Request, raw: Mapping[str, Any], body: ChatBody
) -> tuple[Treatment, Plan]:
    """How the reply is to be treated. Raises `RequestError`, and `AlignerUnavailable`."""
    service.check_messages(len(body.messages))
    grant = grant_of(request)
    if grant is not None:
        grant.check_model(body.model)
    treatment = service.treatment(body.model)
    if grant is not None:
        treatment = replace(treatment, rules=treatment.rules.within(grant.modes))
    plan = decide(
        raw,
        body,
        treatment.rules,
        scopes=treatment.aligner.scopes,
        strengths=treatment.aligner.strengths,
        headers=forwarded(request),
        request_id=request_id_of(request.scope),
    )
    chosen = treatment.for_reply(plan.request, plan.mode, plan.strength)
    own = replace(plan, path=path_of(request), key=key_of(request), route=treatment.route)
    return chosen, own


def relay(
    service: Service, plan: Plan, upstream: Lease, shape: Shape, path: str = "chat/completions"
) -> Response:
    """Mode `off` where the upstream speaks the client's API."""
    return RelayResponse(
        upstream,
        plan,
        observer=service.observer,
        opening=plan.opening(plan.request),
        request_id=plan.request.request_id,
        headers=lambda: treatment_headers(plan, upstream, show_upstream=service.show_upstream),
        count_error=service.count_error,
        patience=service.patience,
        shape=shape,
        path=path,
    )


async def written(
    service: Service,
    treatment: Treatment,
    plan: Plan,
    face: Face,
    *,
    first: Lease,
    requests: Sequence[ChatRequest],
) -> Response:
    """A session for each of the `requests`, the choices; `first` is the lease of the first one.
    Raises `ProxyError`."""

    def headers() -> dict[str, str]:
        """Known when the reply begins: until then another upstream may have to write it."""
        told = treatment_headers(
            plan,
            first,
            aligner=treatment.aligner_name,
            show_upstream=service.show_upstream,
        )
        if is_prompt(plan.request.body):
            completes = first.completes(plan.request)
            told["x-stream-aligner-prompt"] = "completed" if completes else "asked"
        return told

    aligner = "" if plan.mode is Mode.OFF else treatment.aligner_name
    leases = [first, *[await service.lease(one) for one in requests[1:]]]
    sessions = [
        Session(
            one,
            upstream=lease,
            aligner=treatment.aligner,
            policy=treatment.policy(plan.mode, plan.strength),
            observer=service.observer,
            opening=plan.opening(one, aligner),
        )
        for one, lease in zip(requests, leases, strict=True)
    ]
    return ReplyResponse(
        sessions,
        plan,
        face,
        headers=headers,
        count_error=service.count_error,
        patience=service.patience,
    )


def of_choice(request: ChatRequest, choice: int) -> ChatRequest:
    """A request of its own for each choice: with a seed of its own, or all would be the same, and
    an id of its own, or servers would take them for one."""
    if not choice:
        return request
    body, seed = dict(request.body), request.body.get("seed")
    if isinstance(seed, int):
        body["seed"] = seed + choice
    own = request.request_id and f"{request.request_id}-c{choice}"
    return replace(request, body=body, request_id=own)
