"""TESSY in JAX: teacher and student write SFT data jointly on one device mesh, and the student is fine-tuned on it.

Names of arrays end in their axes: `tokens_BT` has lanes and times. A digit is an axis of that size (V1: V + 1).

    A  active experts per token          M  sides, vocabularies, or markers that close the thinking
    B  lanes, or rows of a batch         N  query heads
    C  classes of labels or targets      P  bytes of a proposal or of a text to tokenize
    D  model                             Q  tokens to append
    E  experts                           R  latent rank
    F  feed-forward                      S  cache time
    G  query heads per key/value head    T  query time
    H  head dimension                    U  packed tokens of several lanes
    I  bytes of one marker or token      V  vocabulary
    J  periods of a repetition           W  words, or positions in a window of bytes or tokens
    K  key/value heads                   X  entries of a table or list that no other letter describes
    L  layers                            Y  bytes of a response
                                         Z  candidates of sampling
"""

__version__ = "0.2.0"
