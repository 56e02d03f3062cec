"""Find a user's function by its import path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import in_one_line


def load(path: str) -> Callable[..., Any]:
    """The object at ``package.module:name`` or ``file.py:name``.

    Raises:
        ValueError: there is no such object; the message says what was tried.
    """
    place, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{path!r} is not an import path such as 'package.module:factory' or 'file.py:factory'.")
    try:
        found: Callable[..., Any] = getattr(_module(place), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ValueError(f"Cannot load {name!r} from {place!r}: {error}.") from error
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"Cannot load {name!r} from {place!r}: {in_one_line(error)}.") from error
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).exists():
        raise ImportError(f"there is no file {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that classes defined in it can be pickled
    spec.loader.exec_module(module)
    return module
