"""The acts on a home: ledger, views, intake, births, index switches, vault, trash, rollback, recovery.

Every multi-step act writes its intent first and can be finished from wherever it stopped.
"""
