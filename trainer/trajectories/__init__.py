"""Trajectories: logs of sessions in which a model used tools, turned into conversations a model can learn from."""
