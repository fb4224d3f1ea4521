"""How commands speak: results on standard output, everything else on standard error."""

from rich.console import Console
from rich.text import Text

from infra.archives.names import is_displayable


def say(text: str) -> None:
    """Write to standard error."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Write to standard output, as it is."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def plain(text: str) -> Text:
    """Return a text that is no markup, and has no sign that a terminal obeys."""
    return Text("".join(sign if is_displayable(sign) or sign == "\n" else "\ufffd" for sign in text))


def cell(value: object) -> str:
    """Return a value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def exact(value: object) -> str:
    """Return a value as another program reads it; nothing is empty."""
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
