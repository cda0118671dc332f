"""TESSY in JAX: teacher and student write SFT data jointly on one device mesh, and the student is fine-tuned on it.

Names of arrays end in their axes: `tokens_BT` has lanes and times. A digit is an axis of that size (V1: V + 1).
Lower-case letters are axes of one shard: its lanes b, and its packed tokens u.

    A  active experts per token          M  sides, vocabularies, markers that close the thinking, or query heads × times
    B  lanes, or rows of a batch         N  query heads, or pages of a lane
    C  classes, or columns of a page     P  bytes of a proposal or of a text to tokenize, or pages
    D  model, or shards of the lanes     Q  tokens to append
    E  experts                           R  latent rank, or rows of a pass
    F  feed-forward                      S  key time, or tokens of a lane
    G  query heads per key/value head    T  query time
    H  head dimension                    V  vocabulary
    I  bytes of one marker or token      W  words, or positions in a window of bytes or tokens
    J  periods of a repetition           X  entries of a table or list that no other letter describes
    K  key/value heads                   Y  bytes of a response
    L  layers                            Z  candidates of sampling
"""

__version__ = "0.2.0"
