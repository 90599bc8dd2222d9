"""Measurements that run wherever the package is installed: timers, limits, peers, energy, report.

`bll bench` and the suites in the source tree's ``bench/`` are made of the same parts: a `Case`
(`cases`) is gated for accuracy and timed against its peers (`measure`) by a `Timer` (`timers`),
held against measured limits (`limits`), and filed with its conditions (`conditions`).
"""
