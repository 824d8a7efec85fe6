"""The screen of ``leakhunt watch``. Needs textual: import it only when it is shown."""
