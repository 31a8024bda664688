"""An ensemble of decoders: the mean of their word distributions.

A step of the ensemble returns the mean, so every search works on an ensemble as on one model.

Source: Sutskever et al. (2014), "Sequence to Sequence Learning with Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captioner.decoder.decoder import Decoder
from captioner.decoder.neighbours import flat
from captioner.decoder.stepping import Stepping
from captioner.search import Step


class Ensemble(nn.Module):
    """Decoders that write one caption together, with the methods that a search needs."""

    def __init__(self, members: Sequence[Decoder], columns: Sequence[Tensor]):
        """Build an ensemble of decoders with the same vocabulary.

        Args:
            members: the decoders.
            columns: for each member, the columns of `features` that it reads, int64 (F,).
        """
        super().__init__()
        self._members, self._columns = tuple(members), tuple(columns)
        self.members = nn.ModuleList(members)
        self.hidden_size = min(member.hidden_size for member in members)

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor | None:
        """Return the mean weights of the members with attention; see `Decoder.attend`."""
        weights = [member.attend(part, token_ids) for member, part in self.split(features)]
        looking = [each for each in weights if each is not None]
        return torch.stack(looking).mean(0) if looking else None

    def split(self, features: Tensor) -> list[tuple[Decoder, Tensor]]:
        """Return each member with what it reads of features, (B, F)."""
        return [*zip(self._members, _parts(features, self._columns), strict=True)]

    def stepper(self, dtype: torch.dtype = torch.float32) -> Stepping:
        """Return what starts a search of all members; see `Decoder.stepper`."""
        return _Together(
            [member.stepper(dtype) for member in self._members],
            self._columns,
            [member.num_states for member in self._members],
        )


class _Together:
    """Advances all members by one token; the hidden state holds all of theirs."""

    def __init__(self, members: Sequence[Stepping], columns: Sequence[Tensor], depths: list[int]):
        self._members, self._columns, self._depths = members, columns, depths

    def start(self, features: Tensor) -> tuple[Tensor, Step]:
        """Return the initial hidden states of images, from features (A, F), and their step."""
        parts = _parts(features, self._columns)
        pairs = [member.start(part) for member, part in zip(self._members, parts, strict=True)]
        starts, steps = zip(*pairs, strict=True)
        widths = [len(state) * state.shape[2] for state in starts]

        def step(token_ids: Tensor, hidden: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            probs: list[Tensor] = []
            next_states: list[Tensor] = []
            states = hidden[0].split(widths, dim=1)
            for member_step, depth, flat_state in zip(steps, self._depths, states, strict=True):
                state = flat_state.unflatten(1, (depth, -1)).transpose(0, 1).contiguous()
                logits, state = member_step(token_ids, state, images)
                probs.append(logits.softmax(dim=-1, dtype=torch.float32))
                next_states.append(state)
            return torch.stack(probs).mean(0).log_(), _joined(next_states)

        return _joined(starts), step


def _parts(features: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    """Return what each member reads of features, (B, F)."""
    return [features[:, each.to(features.device)] for each in columns]


def _joined(states: Sequence[Tensor]) -> Tensor:
    """Concatenate the states of the members, each (S, B, H), to (1, B, sum of S * H)."""
    return torch.cat([flat(state) for state in states], dim=1)[None]
