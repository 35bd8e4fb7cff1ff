"""Speed and memory, as ratios to something measured in the same process: `char-lm bench NAME`.

Each benchmark first checks that what it compares computes the same, and refuses to time what differs. Run it on a quiet
machine: contenders take turns, so that a disturbance affects all of them, but their times are still longer.
"""
