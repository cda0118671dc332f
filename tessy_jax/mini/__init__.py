"""The embedded miniature: tasks with exact verifiers, two styles of solving them, two tokenizers, and checkpoints."""
