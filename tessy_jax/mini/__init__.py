"""The embedded miniature world: tasks with exact verifiers, two styles to solve them in, and two tokenizers."""
