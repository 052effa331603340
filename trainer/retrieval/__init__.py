"""Documents into chunks, chunks into vectors, questions into the chunks that answer them.

An index belongs to no language model: any version can read it, and none is needed to build it. Importing this package
imports neither torch nor scikit-learn; the latter is loaded when something is embedded. Which documents are current,
and which index is active, is the ledger's business (`guard/store/indexes.py`).
"""
