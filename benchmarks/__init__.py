"""What training and evaluation cost, as ratios to plain loops; `python -m benchmarks --help`.

Times depend on the machine and are never tested. `counts` holds what does not depend on it, and is.
"""
