"""Probabilities of a batch masked by one channel each, made once however many methods ask."""

from collections.abc import Callable

from torch import Tensor


class ChannelScores:
    """What a network makes of the patches of one batch when each is masked by one channel of one layer.

    Score-CAM and its kin need thousands of passes through the network for a patch, and the same ones: a pass is made
    when it is first asked for, for all labels, and kept.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._known: Tensor | None = None
        self._probs: Tensor | None = None

    def of(self, wanted: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the scores of channels, after making those that are not at hand.

        Args:
            wanted: The channels asked for, (N, K), bool; always of the same shape.
            score: From patches and channels, both (M,), to the M probabilities of every label, (M, all labels).

        Returns:
            (N, K, all labels); what was never wanted is 0.
        """
        missing = wanted if self._known is None else wanted & ~self._known
        patches, channels = missing.nonzero(as_tuple=True)
        probs = score(patches, channels)
        if self._known is None or self._probs is None:
            self._known, self._probs = wanted, probs.new_zeros(*wanted.shape, probs.shape[1])
        # Not in place: what was kept inside inference mode cannot be written to outside.
        self._known = self._known | wanted
        self._probs = self._probs.index_put((patches, channels), probs)
        return self._probs
