"""Turn accepted data into one new version: tokenizers, shards, batches, the model, the loop, snapshots, evaluation.

Importing this package, or its planning half (`recipe`, `selection`, `hardware`, `estimate`), imports no torch: the
daemon plans with it. Torch lives only in the modules that train (`model`, `loss`, `loop`, `evaluate`, `generate`,
`snapshot`, `version_files`, `train_job`), which run in children. Nothing here knows the daemon.
"""
