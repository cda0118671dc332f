"""Evaluation: tasks become problems, the model answers each problem several times, and verifiers check the answers."""
