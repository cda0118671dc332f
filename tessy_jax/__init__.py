"""TESSY in JAX: teacher and student write SFT data jointly on one device mesh, and the student is fine-tuned on it.

Arrays carry their dims as a suffix: B lanes (batch), T query time, S cache time, D model, N query heads, K key/value
heads, G query heads per key/value head, H head dim, R latent rank, F feed-forward, E experts, A active experts per
token, V vocabulary, C label classes, L layers. `tokens_BT` is an integer array of lanes by time.
"""

__version__ = "0.2.0"
