"""Speed and memory of `nadkit` beside a plain implementation of the same experiments, in one process.

Ratios against the reference are what to compare: absolute times differ from machine to machine and from hour to hour.
"""
