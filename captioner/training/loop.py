"""The training loop: steps, epochs, dev scores, checkpoints."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.config import TrainingConfig
from captioner.data.caption_table import Batch, CaptionTable, iterate
from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import dtype_of
from captioner.errors import DivergedError
from captioner.run_dir import epoch_rank
from captioner.system.signals import caught_signals
from captioner.system.world import World
from captioner.training import bptt
from captioner.training.board import SAMPLES
from captioner.training.checkpoint import (
    Progress,
    read_newest,
    read_tensors,
    restore,
    save_checkpoint,
    write_tensors,
)
from captioner.training.dev import DevSplit
from captioner.training.self_critical import SelfCritical
from captioner.training.telemetry import RunLog
from captioner.training.update import Updater, learning_rate

LOG_EVERY = 20  # steps; a run can stop only at these steps


class Stopped(Exception):  # noqa: N818 a request, not an error
    """The run stopped on a signal; its state is saved."""


class Step(NamedTuple):
    """One optimizer step; scalars stay on the device."""

    loss: Tensor  # of this process's captions
    norm: Tensor  # gradient norm before clipping
    tokens: int  # of the whole batch


class Trainer:
    """Trains a decoder on a table of captions, and writes checkpoints and a log."""

    def __init__(
        self,
        decoder: Decoder,
        table: CaptionTable,
        dev: DevSplit,
        config: TrainingConfig,
        log: RunLog,
        identity: Mapping[str, Any],
        world: World,
        critic: SelfCritical | None = None,
    ):
        """Prepare to train a decoder in place, on its device.

        With a critic, which samples the training captions, the table has one row per image.
        """
        self.decoder = decoder
        self.device = decoder.output.bias.device
        self.table = table.to(self.device)
        self.dev = dev
        self.config = config
        self.log = log
        self.identity = identity
        self.world = world
        self.critic = critic
        self.checkpoints = log.folder / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.progress = Progress()
        self.saved_step = 0
        self.undefined = ""  # reason why the last dev score is undefined
        self.said_undefined = False
        self.norms: list[float] = []  # of the epoch's steps in this process
        self.steps_per_epoch = -(-len(table) // config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        dtype = dtype_of(config.precision, self.device)
        self.autocast = torch.autocast(
            self.device.type, dtype=dtype, enabled=dtype != torch.float32
        )
        self.updater = Updater(decoder, config, self.total_steps, fp16=dtype == torch.float16)

    @property
    def evaluated(self) -> Decoder:
        """The decoder that is scored and saved: the moving average, if there is one."""
        return self.updater.average or self.decoder

    def resume(self) -> None:
        """Load the last checkpoint, if there is one.

        Raises:
            CheckpointError: if it is damaged or belongs to another run.
        """
        # The other processes may be on machines without the run folder.
        saved = self.world.broadcast(read_newest(self.checkpoints) if self.world.leads else None)
        if saved is not None:
            self.progress = restore(saved, self.updater, self.identity)
        self.saved_step = self.progress.step
        self.log.forget_after(self.progress.step if saved is not None else -1)
        self.log.say(f"resuming at step {self.progress.step:,} of {self.total_steps:,}")

    def run(self) -> None:
        """Train to the end, then load the best weights into the decoder.

        Raises:
            Stopped: on SIGINT or SIGTERM, after the state is saved.
            DivergedError: if the loss, the gradient norm or a weight is not finite; the last
                checkpoint is from before.
            CheckpointError: if the state cannot be saved.
        """
        progress, config = self.progress, self.config
        self.log.open_board(progress.step)
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            unit="step",
            smoothing=0.1,
            disable=None if self.world.leads else True,  # None: off unless stderr is a terminal
        )
        with bar, caught_signals() as stop_signals:
            if config.start_from and progress.best_score < 0:
                self._score_epoch()  # as epoch 0, so that a run never ends with a worse model
            while progress.epoch < config.epochs and not self._ran_out_of_patience():
                bar.set_description(f"epoch {progress.epoch + 1}/{config.epochs}")
                self._epoch(bar, stop_signals)
                self._score_epoch()
        best = self.world.broadcast(read_tensors(self.best).tensors if self.world.leads else {})
        self.decoder.load_state_dict(best)
        self.decoder.eval()

    def _epoch(self, bar: tqdm[NoReturn], stop_signals: list[int]) -> None:
        """Train one epoch, or the rest of a resumed one."""
        config, progress = self.config, self.progress
        self.decoder.train()
        batches = iterate(
            self.table,
            config.batch_size,
            seed=config.seed,
            epoch=progress.epoch,
            start=progress.batch,
        )
        steps: list[Step] = []
        started = time.perf_counter()
        for batch in batches:
            steps.append(self._step(batch))
            progress.batch += 1
            progress.step += 1
            if progress.step % LOG_EVERY and progress.batch < self.steps_per_epoch:
                continue
            # Reading values waits for the device, so only every LOG_EVERY steps.
            losses = self.world.sum(torch.stack([step.loss for step in steps])).double().cpu()
            norms = torch.stack([step.norm for step in steps]).cpu()
            self._check_steps(losses, norms)
            seconds = time.perf_counter() - started
            tokens = [step.tokens for step in steps]
            bar.set_postfix(self._log_steps(losses, norms, tokens, seconds), refresh=False)
            bar.update(len(steps))
            steps = []
            started = time.perf_counter()
            stop = self.world.any(bool(stop_signals), self.device)
            if stop or progress.step - self.saved_step >= config.save_every:
                self._save()
            if stop:
                raise Stopped
        progress.epoch += 1
        progress.batch = 0

    def _step(self, batch: Batch) -> Step:
        """Take one optimizer step on a batch."""
        config, world, step = self.config, self.world, self.progress.step
        torch.manual_seed(_mixed_seed(config.seed, step, world.rank))  # for dropout and sampling
        batch = batch.subset(world.rank, world.size)
        if self.critic:
            batch = self.critic.write(batch)
        loss = torch.zeros((), device=self.device)
        for index in range(config.accumulate):
            with self.autocast:
                loss += bptt.backward(
                    self.decoder,
                    batch.subset(index, config.accumulate),
                    label_smoothing=0.0 if self.critic else config.label_smoothing,
                    window=config.bptt_window,
                    scaler=self.updater.scaler,
                )
        world.sum_gradients(self.decoder.parameters())
        return Step(loss, self.updater.update(step), batch.tokens)

    def _check_steps(self, losses: Tensor, norms: Tensor) -> None:
        """Stop at the first step whose loss or gradient norm is not finite.

        In fp16 an infinite norm is not an error: the scaler skips that step.
        """
        finite = losses.isfinite()
        if not self.updater.scaler.is_enabled():
            finite &= norms.isfinite()
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            step = self.progress.step - len(losses) + bad + 1
            self._diverged(step, f"the loss is {losses[bad]:g}, the gradient norm {norms[bad]:g}")

    def _check_weights(self) -> None:
        """Stop before a weight, moving average or moment that is not finite is saved."""
        moments = self.updater.optimizer.state_dict()["state"].values()
        tensors = [tensor for moment in moments for tensor in moment.values()]
        for module in self.updater.modules.values():
            tensors += module.state_dict().values()
        if torch.stack([~tensor.isfinite().all().to(self.device) for tensor in tensors]).any():
            self._diverged(self.progress.step, "a weight is not finite")

    def _diverged(self, step: int, reason: str) -> None:
        config = self.config
        saved = f"step {self.saved_step:,} is saved" if self.saved_step else "no step was saved"
        rate = learning_rate(config, step - 1, self.total_steps)
        raise DivergedError(
            f"training diverged at step {step:,}: {reason} (learning rate {rate:g}, clip norm "
            f"{config.clip_norm:g}); {saved}; train again with training.learning_rate below "
            f"{config.learning_rate:g}, more training.warmup_steps, a smaller "
            f"training.clip_norm, or training.precision fp32"
        )

    def _log_steps(
        self, losses: Tensor, norms: Tensor, tokens: list[int], seconds: float
    ) -> dict[str, str]:
        progress = self.progress
        nats = float(losses @ torch.tensor(tokens, dtype=torch.float64))
        total = sum(tokens)
        progress.loss_sum += nats
        progress.token_sum += total
        progress.tokens += total
        progress.seconds += seconds
        self.norms += norms.tolist()
        norm, speed = float(norms.mean()), total / seconds
        rewards = self.critic.report(self.device) if self.critic else {}
        self.log.record(
            kind="step",
            epoch=progress.epoch + 1,
            step=progress.step,
            loss=nats / total,
            **rewards,
            grad_norm=norm,
            clipped=float((norms > self.config.clip_norm).float().mean()),
            learning_rate=learning_rate(self.config, progress.step - 1, self.total_steps),
            tokens_per_second=round(speed),
        )
        means = {
            name: f"{value:.3f}" for name, value in (rewards or {"loss": nats / total}).items()
        }
        return means | {"norm": f"{norm:.2f}", "tokens/s": f"{speed:,.0f}"}

    def _score_epoch(self) -> None:
        """Score the dev split after `progress.epoch` epochs, and save the weights if best."""
        self._check_weights()
        progress = self.progress
        started = time.perf_counter()
        measured = (self._dev_loss(), self._dev_scores()) if self.world.leads else (math.nan, {})
        dev_loss, scores = self.world.broadcast(measured)
        progress.seconds += time.perf_counter() - started
        mark = self._keep_best(scores[self.config.metric], dev_loss)
        losses = {"dev_loss": dev_loss}
        if progress.token_sum:  # none before the first epoch
            losses = {"train_loss": progress.loss_sum / progress.token_sum} | losses
            progress.loss_sum, progress.token_sum = 0.0, 0
        self.log.record(
            kind="epoch",
            epoch=progress.epoch,
            step=progress.step,
            **losses,
            **scores,
            signature=progress.signature,
            seconds=round(progress.seconds, 1),
        )
        if self.log.board and self.norms:  # a histogram needs a step
            examples, captions = self.dev.table.examples, self.dev.captions[:SAMPLES]
            self.log.board.epoch(progress.step, self.norms, examples, captions)
        self.norms = []
        self._save()
        loss = f"loss {losses['train_loss']:.3f}  " if "train_loss" in losses else ""
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in scores.items())
        self.log.say(f"epoch {progress.epoch}: {loss}dev loss {_shown(dev_loss)}  {shown}{mark}")

    def _keep_best(self, score: float, dev_loss: float) -> str:
        """Save the weights if they are the best so far; return the mark of the epoch's message.

        An undefined score (NaN) ranks below every number. Of equal or undefined scores, the lower
        dev loss is better.
        """
        progress = self.progress
        best = epoch_rank(progress.best_score, progress.best_loss)
        if math.isnan(score) and not self.said_undefined:
            self.said_undefined = True
            reason = f" ({self.undefined})" if self.undefined else ""
            self.log.say(
                f"dev {self.config.metric} is undefined{reason}; without a score, the lowest dev "
                f"loss chooses the best epoch"
            )
        if not progress.best_score < 0 and epoch_rank(score, dev_loss) <= best:  # not the first
            return ""
        progress.best_score, progress.best_loss = score, dev_loss
        progress.best_epoch = progress.epoch
        if self.world.leads:
            state = self.evaluated.state_dict()
            write_tensors(self.best, {k: v.clone() for k, v in state.items()}, {})
        return "  (lowest dev loss so far)" if math.isnan(score) else "  (best so far)"

    def _dev_loss(self) -> float:
        config = self.config
        smoothing = 0.0 if self.critic else config.label_smoothing
        size = -(-config.batch_size // (config.accumulate * self.world.size))  # fits the memory
        with self.autocast:
            return self.dev.loss(self.evaluated, label_smoothing=smoothing, batch_size=size)

    def _dev_scores(self) -> dict[str, float]:
        scores = self.dev.score(self.evaluated)
        score = scores[self.config.metric]
        self.progress.signature, self.undefined = score.signature, score.note
        return {name: scores[name].value for name in ("bleu_4", "cider_d")}

    def _ran_out_of_patience(self) -> bool:
        patience, progress = self.config.patience, self.progress
        return patience is not None and progress.epoch - progress.best_epoch >= patience

    def _save(self) -> None:
        self._check_weights()
        self.saved_step = self.progress.step
        if self.world.leads:
            save_checkpoint(self.checkpoints, self.updater, self.progress, self.identity)


def _shown(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _mixed_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step; a resumed run gets the same.

    A digest, because torch's generator uses only 32 bits of a seed, and similar seeds give similar
    numbers.
    """
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4)
    return int.from_bytes(digest.digest())
