"""What opens over the screen: one text that is made anew with every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.console import RenderableType
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static


class Pane(ModalScreen[None]):
    """A scrollable text over the whole screen; Escape closes it."""

    CSS = "Pane { background: ansi_default; } Pane Static { height: auto; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Back", key_display="esc"),
    ]

    def __init__(self, content: Callable[[], RenderableType]) -> None:
        super().__init__()
        self._content = content

    def compose(self) -> ComposeResult:
        """The text and the keys."""
        with VerticalScroll():
            yield Static(self._content(), id="content", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def renew(self) -> None:
        """Show what is known now."""
        self.query_one("#content", Static).update(self._content())
