"""What the pack takes in memory and time, beside the authors' code. RESULTS.md keeps what was measured."""
