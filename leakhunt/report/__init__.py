"""What a person or another program reads: terminal, JSON, JUnit, Markdown."""
