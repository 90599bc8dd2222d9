"""Running the blocks of a network: schedules, and what they cost."""
