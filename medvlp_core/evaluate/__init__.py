"""What evaluators share: metrics with intervals, result cards, and the table that a user reads."""
