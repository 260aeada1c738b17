"""What `/status` tells an operator: which routes there are, and how upstreams and aligners fare.

Names, states and our own error codes only: never an address, a key or a header.
"""

from typing import Any

from stream_aligner_proxy.api.service import Service, Treatment
from stream_aligner_proxy.upstream.routing.member import Member
from stream_aligner_proxy.upstream.routing.table import Aim, Route


def report(service: Service) -> dict[str, Any]:
    routes = service.table.routes if service.table is not None else ()
    return {
        "ready": service.ready and not service.admission.leaving,
        "open": service.admission.open,
        "configuration": {
            "loaded_at": round(service.loaded.at, 3),
            "reloads": service.loaded.reloads,
            "error": service.loaded.error,
            "certificate_error": service.loaded.certificate_error,
        },
        "access": service.access(),
        "routes": [
            {**_route(route), **_treatment(treatment)}
            for route, treatment in zip(routes, service.treatments, strict=False)
        ],
        "default": None if service.table is not None else _treatment(service.treatments[0]),
        "upstreams": [upstream_report(member) for member in service.directory.upstreams],
        "aligners": [
            {"name": name, "backend": service.backends[name], "state": state}
            for name, state in service.aligner_states().items()
        ],
    }


def _route(route: Route) -> dict[str, Any]:
    return {
        "model": route.pattern.text,
        "to": [{**_aim(aim), "weight": aim.weight} for aim in route.to],
        "fallback": [_aim(aim) for aim in route.fallback],
    }


def _aim(aim: Aim) -> dict[str, Any]:
    return {"upstream": aim.member.name, "model": aim.model}


def _treatment(treatment: Treatment) -> dict[str, Any]:
    candidate, rules = treatment.candidate, treatment.rules
    return {
        "aligner": treatment.aligner_name,
        "mode": rules.mode,
        "fail_open": treatment.policy(rules.mode, rules.strength).fail_open,
        "candidate": candidate
        and {"aligner": candidate.name, "as": candidate.kind, "percent": candidate.percent},
    }


def upstream_report(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        **member.found(),
        "health": member.health.state,
        "open": member.open,
        "max_concurrent": member.terms.max_concurrent,
        "last_error": member.last_error,
    }
