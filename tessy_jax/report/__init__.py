"""Reports: figures and self-contained HTML pages of what was measured."""
