"""WaveNet: a prior over one long row of tokens, such as the µ-law classes of a sound.

After van den Oord et al. 2016, WaveNet: A Generative Model for Raw Audio: gated causal convolutions of two taps,
dilated by 1, 2, 4, ... in stacks, with residual and skip connections. It knows no positions, only a past, and so takes
and draws a row of any length; a grid of several rows is taken in raster order. What differs: the input is the previous
token's embedding in place of a causal convolution of one-hot tokens, and kernels have no biases of their own, as the
conditioning, which every layer reads, has one.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldvq.models.config import WaveNetConfig
from worldvq.models.priors.contract import GridCache, Prior
from worldvq.models.priors.pixelcnn import gate
from worldvq.nn.matrix import Matrix


class DilatedLayer(nn.Module):
    """One gated layer: two taps, ``dilation`` steps apart.

    Attributes:
        dilation: Steps from the older tap to the newer.
    """

    def __init__(self, width: int, skip_width: int, dilation: int, num_layers: int):
        super().__init__()
        self.dilation = dilation
        self.taps = Matrix(2 * width, 2 * width)  # the older, the newer
        self.condition = Matrix(width, 2 * width)
        self.out = Matrix(width, width + skip_width)  # residual, skip
        for matrix in (self.taps, self.condition):
            nn.init.normal_(matrix.weight, std=matrix.in_features**-0.5)
        nn.init.zeros_(self.out.weight[:width])  # residual branches start at zero
        nn.init.normal_(self.out.weight[width:], std=(width * num_layers) ** -0.5)  # of the skips there is a sum

    def forward(self, older: Tensor, newer: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Compute n steps.

        Args:
            older: (B, n, C), the input ``dilation`` steps before each of them.
            newer: (B, n, C), their own.
            given: (B or 1, m, 2 C) of the conditioning, each for n / m steps.

        Returns:
            The layer's output (B, n, C) and its skip connection (B, n, S).
        """
        features = self.taps(torch.cat([older, newer], dim=-1))  # (B, n, 2 C)
        features = (features.unflatten(1, (given.shape[1], -1)) + given[:, :, None]).flatten(1, 2)
        residual, skip = self.out(gate(features)).split([newer.shape[-1], self.out.out_features - newer.shape[-1]], -1)
        return newer + residual, skip


class WaveNet(Prior):
    """A WaveNet over tokens (B, h, w) of any h and w.

    Attributes:
        grid: What is drawn where nothing else is said; no weight depends on it.
        hop: Tokens that a vector of the context is for: a context is (B, h, w / hop, D).
        reach: How many tokens before its own a logit sees.
    """

    def __init__(
        self, config: WaveNetConfig, grid: tuple[int, int], num_codes: int, context_dim: int = 0, hop: int = 1
    ):
        super().__init__()
        self.grid = grid
        self.num_codes = num_codes
        self.hop = hop
        dilations = [2**layer for layer in range(config.stack_layers)] * config.num_stacks
        self.reach = 1 + sum(dilations)
        self.embed = nn.Embedding(num_codes, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(config.width))  # the same at every place
        self.from_context = nn.Linear(context_dim, config.width) if context_dim else None
        self.layers: list[DilatedLayer] = nn.ModuleList(  # type: ignore[assignment]
            DilatedLayer(config.width, config.skip_width, dilation, len(dilations)) for dilation in dilations
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Linear(config.skip_width, config.skip_width),
            nn.ReLU(),
            nn.Linear(config.skip_width, num_codes),
        )

    def _conditioning(self, context: Tensor | None) -> Tensor:
        """What every place is told, in raster order: (B, n, width), or (1, 1, width) for all places alike."""
        told = super()._conditioning(context)
        return told[None] if context is None else told.flatten(1, 2)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits (B, h, w, K) given a context (B, h, w / hop, D); see :meth:`Prior.forward`."""
        told = self._conditioning(context)
        if context is not None and tokens.shape[1:] != (context.shape[1], context.shape[2] * self.hop):
            raise ValueError(
                f"{tuple(tokens.shape[1:])} tokens and a context of {tuple(context.shape[1:3])} for {self.hop} tokens "
                "each do not fit: give a context for every token"
            )
        x = F.pad(self.embed(tokens.flatten(1))[:, :-1], (0, 0, 1, 0))  # (B, N, C), the token before each
        total = 0
        for layer in self.layers:
            older = F.pad(x, (0, 0, layer.dilation, 0))[:, : x.shape[1]]  # zeros before the first
            x, skip = layer(older, x, layer.condition(told))
            total = total + skip
        return self.head(total).unflatten(1, tokens.shape[1:])

    def start(self, batch: int, context: Tensor | None = None) -> GridCache:
        """Return an empty cache, of the weights as they are now; see :meth:`Prior.start`."""
        with torch.no_grad(), torch.autocast(self.position.device.type, enabled=False):
            return _WaveNetCache(self, batch, self._conditioning(context))


class _WaveNetCache:
    """A queue a layer, of its inputs in the last ``dilation`` places (Paine et al. 2016, Fast Wavenet Generation).

    All queues lie in one ring buffer, and are read by one operation and written by another. What the older taps
    contribute is known before a place is begun and computed for all layers in one product, which leaves four small
    operations a layer. That these are so few, one tanh computes both halves of the gate: with b' = b / 2,
    tanh(a) sigmoid(b) = (tanh(a) + tanh(a) tanh(b')) / 2, and the halves are taken into the weights, which is exact.

    Of the contract it asks a little more: a call begins no later than where the last one ended.
    """

    def __init__(self, prior: WaveNet, batch: int, told: Tensor):
        self.prior = prior
        self.device = told.device
        width = told.shape[-1]
        self.embed = prior.embed.weight.detach()
        halves = torch.ones(2 * width, dtype=told.dtype, device=told.device)
        halves[width:] = 0.5
        taps = [layer.taps.weight.T * halves for layer in prior.layers]  # (2 C, 2 C) each
        self.older = torch.stack([both[:width] for both in taps])  # (L, C, 2 C)
        self.newer = [both[width:].contiguous() for both in taps]
        self.outs = [(layer.out.weight.T / 2).contiguous() for layer in prior.layers]  # (C, C + S) each
        given = torch.stack([layer.condition(told) for layer in prior.layers])  # (L, B or 1, m, 2 C)
        self.given = given.permute(2, 0, 1, 3).expand(-1, -1, batch, -1).contiguous()  # (m, L, B, 2 C)
        self.halved = self.given * halves
        self.hop = sys.maxsize if prior.from_context is None else prior.hop

        dilations = torch.tensor([layer.dilation for layer in prior.layers])
        self.period = int(dilations.max())
        starts = dilations.cumsum(0) - dilations
        slots = starts + torch.arange(self.period)[:, None] % dilations  # (period, L), of every layer's queue
        self.slots = list(slots.to(self.device))
        self.ring = told.new_zeros(int(dilations.sum()), batch, width)
        self.settled = 0  # places whose inputs are in the queues
        self.first, self.inputs = 0, told.new_zeros(len(taps), batch, 0, width)  # of the last call, (L, B, n, C)
        self._make_room(batch)

    def _make_room(self, batch: int) -> None:
        """Allocate what a place is computed in, once for all places."""
        new, (num_layers, width, _) = self.ring.new_zeros, self.older.shape
        self.before = new(num_layers, batch, width)
        self.features = new(num_layers, batch, 2 * width)
        gated = new(batch, width)
        self.states = new(num_layers + 1, batch, self.outs[0].shape[1])  # inputs of a layer, and the skips so far
        self.embedded = self.states[0, :, :width]
        self.steps = [
            (features, state[:, :width], newer, *features.chunk(2, dim=1), gated, state, out, after)
            for features, newer, state, out, after in zip(
                self.features, self.newer, self.states[:-1], self.outs, self.states[1:], strict=True
            )
        ]

    @torch.no_grad()
    def logits(self, tokens: Tensor, first: int, last: int) -> Tensor:
        self._settle(first)
        self.first = first
        with torch.autocast(self.device.type, enabled=False):
            if last - first == 1:
                return self.prior.head(self._step(tokens, first))[:, None]
            return self.prior.head(self._window(tokens, first, last))

    def _settle(self, first: int) -> None:
        """Put the inputs of the places before ``first`` into the queues: now it is known that they stay."""
        assert self.settled <= first <= self.first + self.inputs.shape[2], "these places were not computed last"
        for place in range(max(self.settled, first - self.period), first):  # older ones would be overwritten
            self.ring.index_copy_(0, self.slots[place % self.period], self.inputs[:, :, place - self.first])
        self.settled = first

    def _step(self, tokens: Tensor, place: int) -> Tensor:
        """Compute one place: the sum of the skips (B, S)."""
        torch.index_select(self.ring, 0, self.slots[place % self.period], out=self.before)  # until it is settled
        torch.baddbmm(self.halved[place // self.hop], self.before, self.older, out=self.features)
        if place:
            torch.index_select(self.embed, 0, tokens[:, place - 1], out=self.embedded)
        else:
            self.embedded.zero_()
        for features, x, newer, a, b, gated, state, out, after in self.steps:
            features.addmm_(x, newer).tanh_()
            torch.addcmul(a, a, b, out=gated)
            torch.addmm(state, gated, out, out=after)
        width = self.before.shape[-1]
        self.inputs = self.states[:-1, :, None, :width]
        return self.states[-1, :, width:]

    def _window(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Compute several places at once: the sums of the skips (B, n, S)."""
        x = self.prior.embed(tokens[:, max(first - 1, 0) : last - 1])  # (B, n, C)
        if first == 0:
            x = F.pad(x, (0, 0, 1, 0))
        count, inputs, total = last - first, [], 0
        places = torch.arange(first, last, device=self.device)
        given = self.given[places // self.hop].permute(1, 2, 0, 3)  # (L, B, n, 2 C)
        begin = 0
        for i, layer in enumerate(self.prior.layers):
            inputs.append(x)
            queue = begin + places[: layer.dilation] % layer.dilation
            older = torch.cat([self.ring[queue].transpose(0, 1), x], dim=1)[:, :count]  # (B, n, C)
            begin += layer.dilation
            x, skip = layer(older, x, given[i])
            total = total + skip
        self.inputs = torch.stack(inputs)
        return total  # type: ignore[return-value]

    def keep(self, rows: Tensor) -> None:
        self.ring, self.inputs = self.ring[:, rows], self.inputs[:, rows]
        self.given, self.halved = self.given[:, :, rows], self.halved[:, :, rows]
        self._make_room(self.ring.shape[1])
