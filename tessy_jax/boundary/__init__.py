"""Boundary predictors: segments of thinking, annotators, labels of tokens, training and metrics."""
