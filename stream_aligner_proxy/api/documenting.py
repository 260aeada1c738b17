"""Request bodies in the OpenAPI document: they are parsed by hand, so FastAPI knows none."""

from typing import Any

from pydantic import BaseModel

_SCHEMA_REF = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """What a route adds to its description for a body that `model` reads."""
    schema = {"$ref": _SCHEMA_REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of these bodies, and of what they are made of, by name."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_SCHEMA_REF)
        found |= {**schema.pop("$defs", {}), model.__name__: schema}
    return found
