"""Read-only context: clean frames of a window that ignore its noisy frames.

*Bidirectional* context (the paper's choice) is plain attention among all tokens and needs no code. In the
*read-only* variant, the paper's "AR-style" comparison, clean frames attend to clean frames only. Their
features then do not depend on the noisy frames, so their keys and values are computed in the first step
of a segment and reused in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Plain attention over (query, key, value) in the caller's layout."""


class ReadOnlyContext:
    """Cached keys and values of a window's clean frames, per conditioning and attention layer.

    Parameters
    ----------
    clean_tokens
        Leading tokens of the window that belong to clean frames.
    """

    def __init__(self, clean_tokens: int) -> None:
        self.clean_tokens = clean_tokens
        self._stored: dict[Hashable, dict[Hashable, tuple[Tensor, Tensor]]] = {}
        self._of_other_sizes: dict[int, ReadOnlyContext] = {}

    def of_size(self, clean_tokens: int) -> ReadOnlyContext:
        """Return the context of forwards that see a part of the window's area, with fewer clean tokens."""
        if clean_tokens == self.clean_tokens:
            return self
        if clean_tokens not in self._of_other_sizes:
            self._of_other_sizes[clean_tokens] = ReadOnlyContext(clean_tokens)
        return self._of_other_sizes[clean_tokens]

    def holds(self, conditioning: Hashable) -> bool:
        """Return whether keys and values of a full forward pass are cached for a conditioning."""
        return conditioning in self._stored

    def holds_layer(self, slot: tuple[Hashable, Hashable]) -> bool:
        """Return whether keys and values are kept in a slot of (conditioning, layer)."""
        conditioning, layer = slot
        return layer in self._stored.get(conditioning, {})

    def kept_bytes(self, layers: int, channels: int, element_size: int) -> int:
        """Return the bytes of the keys and values cached for one conditioning.

        Parameters
        ----------
        layers
            Attention layers of the network.
        channels
            Width of a key, summed over heads.
        element_size
            Bytes per element.
        """
        return 2 * layers * self.clean_tokens * channels * element_size

    def attend_window(
        self,
        attend: Attend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        slot: tuple[Hashable, Hashable],
        token_dim: int,
        output_dim: int,
    ) -> Tensor:
        """Attend over clean and noisy tokens and cache the clean keys and values.

        Parameters
        ----------
        attend
            Plain attention.
        query, key, value
            Whole window, clean tokens first, in any layout with tokens along ``token_dim``.
        slot
            (conditioning, layer) under which keys and values are cached.
        token_dim, output_dim
            Token axis of the inputs and of what ``attend`` returns.

        Returns
        -------
        Tensor
            As ``attend`` on the whole window, except that clean tokens attend to clean tokens only.
        """
        count = self.clean_tokens
        clean_key, clean_value = (part.narrow(token_dim, 0, count) for part in (key, value))
        clean_query = query.narrow(token_dim, 0, count)
        noisy_query = query.narrow(token_dim, count, query.shape[token_dim] - count)
        # Copies: a view would keep the keys of the whole window alive.
        conditioning, layer = slot
        self._stored.setdefault(conditioning, {})[layer] = (clean_key.clone(), clean_value.clone())
        clean = attend(clean_query, clean_key, clean_value)
        noisy = attend(noisy_query, key, value)
        return torch.cat((clean, noisy), dim=output_dim)

    def attend_noisy(
        self,
        attend: Attend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        slot: tuple[Hashable, Hashable],
        token_dim: int,
    ) -> Tensor:
        """Attend from noisy tokens to the cached clean ones and to themselves.

        Parameters as in `attend_window`, but with only the noisy tokens.
        """
        conditioning, layer = slot
        clean_key, clean_value = self._stored[conditioning][layer]
        keys = torch.cat((clean_key, key), dim=token_dim)
        values = torch.cat((clean_value, value), dim=token_dim)
        return attend(query, keys, values)
