"""Analyses of data sets and of what became of the students: numbers, figures, and a page of both."""
