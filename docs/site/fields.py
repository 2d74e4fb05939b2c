"""Gives the API reference the signatures of classes whose arguments are their fields, but which are no dataclasses."""

from typing import Any

import griffe

_BASES = {"nn.Module", "NamedTuple", "flax.struct.PyTreeNode"}


class Fields(griffe.Extension):
    """Adds the constructor that flax and NamedTuple make."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Adds it to a class once its fields are known."""
        if not _BASES & {str(base) for base in cls.bases}:
            return
        kind = griffe.ParameterKind.positional_or_keyword
        parameters = [griffe.Parameter("self", kind=kind)] + [
            griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
            for field in cls.attributes.values()
            if field.annotation and "property" not in field.labels
        ]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
