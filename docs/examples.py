"""An extension of griffe: docstrings' "Example:" is the section "Examples:" of Google's style.

Under the singular name, which reads better over one example, griffe takes it for prose, and `>>>`
for quotations.
"""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
