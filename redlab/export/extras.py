"""The packages that files for other programs need, imported when they are used: redlab itself works without them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def need(module: str, extra: str) -> ModuleType:
    """The package called ``module``, which the extra ``extra`` of redlab installs.

    Raises:
        ImportError: it is not installed; the message says how to install it.

    Example:
        >>> need("json", "export").__name__
        'json'
        >>> need("no_such_package", "export")
        Traceback (most recent call last):
        ImportError: no_such_package needs the extra export: pip install 'redlab[export]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} needs the extra {extra}: pip install 'redlab[{extra}]'", name=module) from error
