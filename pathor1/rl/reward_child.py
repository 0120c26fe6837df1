"""The process that a reward function of one's own runs in: `python -m pathor1.rl.reward_child`.

One JSON object a line goes in and one comes out: first what to load, then a call each. Standard library only, so that
it starts at once. It ends when whoever started it is gone, whatever the function does.
"""

from __future__ import annotations

import importlib
import json
import math
import numbers
import os
import queue
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

Function = Callable[[str, str, Mapping[str, Any]], Any]
# Characters of an error's message that are handed on.
LONGEST = 300


def load(module: str, source: str | None, name: str) -> Function:
    """The function called `name`, of an importable module, or of a file, by its path and its text."""
    if source is None:
        found: Any = importlib.import_module(module)
    else:
        found = types.ModuleType("reward_function")
        found.__file__ = module
        sys.modules[found.__name__] = found  # dataclasses and pickle look for it there
        exec(compile(source, module, "exec"), found.__dict__)
    function = getattr(found, name, None)
    if function is None:
        raise AttributeError(f"{module} has no {name}")
    if not callable(function):
        raise TypeError(f"{name} is not a function")
    return function


def call(function: Function, text: str, answer: str, sample: dict[str, Any]) -> float:
    """What the function says. Raises ValueError for anything but a number from 0 to 1, and whatever it raises."""
    value = function(text, answer, sample)
    if not isinstance(value, numbers.Real):
        raise ValueError(f"returned {value!r:.100}, which is no number")
    number = float(value)
    if math.isnan(number) or not 0 <= number <= 1:
        raise ValueError(f"returned {number:g}, which is not from 0 to 1")
    return number


def explain(error: BaseException) -> str:
    """In a line. What `call` says of a value stands for itself; what the function raised is named."""
    text = " ".join(str(error).split())[:LONGEST]
    return text if text.startswith("returned ") else f"raised {type(error).__name__}: {text}"


def main() -> None:
    """Answers until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what the function prints goes to the log, and not among the answers
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()

    def attempt(work: Callable[[], float]) -> bool:
        """Says what came of it, and whether it went well."""
        try:
            said: dict[str, Any] = {"value": work()}
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a user's code may raise anything, and that is the answer)
            said = {"error": explain(error)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        return "value" in said

    loaded: list[Function] = []

    def first() -> float:
        loaded.append(load(**json.loads(lines.get())))
        return 0.0

    if attempt(first):
        while True:
            message = json.loads(lines.get())
            attempt(lambda: call(loaded[0], **message))  # noqa: B023 (called at once)


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # nobody is there any more, and the function may be busy without end


if __name__ == "__main__":
    main()
