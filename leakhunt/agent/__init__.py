"""The embedded part: it lives in somebody's production process. Standard library only."""
