"""Running the blocks of a network: schedules, what they cost, and an executor for the CPU."""
