"""Analyses of data sets and trained students: numbers, figures, and a report page."""
