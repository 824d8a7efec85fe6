"""The prover: clients that really die, and what the server did about it."""
