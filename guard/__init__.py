"""The floor of the house: is this what it claims to be, and is it safely on disk?

Words and records, the error tree, durable writes, locks, fingerprints; `guard/checks/` judges and never acts,
`guard/store/` acts. Not here, ever: torch, watchdog, apscheduler, or an import of `trainer` or `daemon`.
"""
