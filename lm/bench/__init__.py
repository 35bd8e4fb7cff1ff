"""Speed and memory, always as a ratio to something measured in the same process: `python -m lm.bench SUBCOMMAND`.

Every subcommand first checks that what it compares computes the same, and refuses to time what differs. Run it on a
quiet machine: contenders take turns, so that noise hits all alike, but it still hits.
"""
