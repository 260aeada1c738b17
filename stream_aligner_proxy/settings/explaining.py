"""Mistakes in the configuration, told by their key. Values are left out: one may be a secret."""

import difflib
from typing import get_args

from pydantic import BaseModel, ValidationError


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _allowed_keys(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that holds `location`."""
    section = root
    for step in location[:-1]:
        if isinstance(step, str) and step in section.model_fields:
            section = _section_of(section.model_fields[step].annotation) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_of(annotation: object) -> type[BaseModel] | None:
    """The section in an annotation such as `tuple[Section, ...]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line per mistake: the key, and what is allowed. Input values are left out."""
    lines = []
    details = error.errors(include_input=False, include_url=False)
    for detail in details:
        location = detail["loc"]
        depth = len(location)
        if any(len(e["loc"]) > depth and e["loc"][:depth] == location for e in details):
            continue  # a list is also "too short" when its items are wrong: say what is wrong
        where = _dotted(location)
        match detail["type"]:
            case "extra_forbidden":
                allowed = _allowed_keys(root, location)
                near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                what = f"unknown key; {hint}allowed: {', '.join(allowed)}"
            case "missing":
                what = "is required"
            case "model_type":
                allowed = _allowed_keys(root, (*location, ""))
                what = f"must be a section with the keys {', '.join(allowed)}"
            case "dict_type":
                what = "must be a section"
            case "tuple_type" | "list_type":
                what = "must be a list"
            case "path_type":
                what = "must be a path"
            case "too_short":
                what = "must not be empty"
            case "value_error":
                what = detail["msg"].removeprefix("Value error, ")
            case _:
                what = detail["msg"][:1].lower() + detail["msg"][1:]
        lines.append(f"{where}: {what}" if where else what)
    return lines
