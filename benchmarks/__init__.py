"""Speed and memory of fitopt, side by side with a hand-written scan and with other libraries.

`python -m benchmarks` measures everything in one run and prints a markdown table.
"""
