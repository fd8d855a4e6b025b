"""Fine-tuning an LM that does not fit one GPU: DeepSpeed ZeRO over the processes of a group, one for each GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # Read when DeepSpeed is imported.
    os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.accelerator import get_accelerator

from workflow_scripts.core.distributed import gather_rows, in_group, shard_indices
from workflow_scripts.language_model.finetuner import batches
from workflow_scripts.language_model.losses import example_losses, summed_losses
from workflow_scripts.language_model.oom_retry import explained_lack_of_memory
from workflow_scripts.language_model.tokens import TokenizedExample
from workflow_scripts.models.packing import token_budget
from workflow_scripts.models.transformers_import import PreTrainedModel


class ZeroFinetuner:
    """Fine-tunes as `Finetuner` does, in every process of the group (ZeRO, arXiv:1910.02054).

    The examples of a batch are distributed over the processes, and gradients are averaged so that the batch's loss is
    the same mean over response tokens as in one process. All processes make the same calls with the same arguments.

    Parameters
    ----------
    lm: in float32, on the CPU.
    stage: 1 splits the optimiser state over the processes, 2 the gradients too, 3 the weights too.
    offload: whether the optimiser state, and in stage 3 the weights, are kept in the CPU's memory.
    learning_rate: AdamW's learning rate, constant.
    weight_decay: AdamW's weight decay.
    batch_examples: number of examples in an optimiser step, all processes together.
    epochs: number of passes over the examples of a run.
    precision: `float32` or `bfloat16`, that of forward and backward passes.
    step_tokens: most tokens in one forward pass of training, of one process.
    evaluation_tokens: most tokens in one forward pass of evaluation, of one process.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        stage: int,
        offload: bool,
        learning_rate: float,
        weight_decay: float,
        batch_examples: int,
        epochs: int,
        precision: str,
        step_tokens: int,
        evaluation_tokens: int,
    ):
        self.batch_examples, self.epochs = batch_examples, epochs
        self.step_tokens, self.evaluation_tokens = step_tokens, evaluation_tokens
        _join_group()
        self.processes = dist.get_world_size()
        config = deepspeed_config(stage, offload, precision)
        if stage == 3:
            # One weight at a time: the whole LM may not fit one GPU.
            deepspeed.zero.Init(module=lm, config_dict_or_path=config)
            # It moves weights only, and the engine then assumes that everything was moved.
            move_buffers(lm, get_accelerator().current_device_name())
        # DeepSpeed's own AdamW would have to be compiled; PyTorch's gives the same results.
        self.optimizer = torch.optim.AdamW(lm.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.engine, self.zero, _, _ = deepspeed.initialize(model=lm, optimizer=self.optimizer, config=config)
        self.device = self.engine.device
        # As in one process, there is no dropout.
        self.engine.eval()
        # This process's parts: of the weights that the optimiser changes, and in stage 3 of those that compute.
        self.weights = (
            self.zero.fp32_partitioned_groups_flat if stage == 3 else self.zero.single_partition_of_fp32_groups
        )
        self.computing = self.zero.fp16_partitioned_groups_flat if stage == 3 else None
        # Read once a run, so they need no GPU memory.
        self.base_weights = [part.detach().to("cpu", copy=True) for part in self.weights]

    @torch.no_grad()
    def reset(self) -> None:
        """Restore the base weights and a zero optimiser state, without a new engine."""
        for part, base in zip(self.weights, self.base_weights, strict=True):
            part.copy_(base)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        if self.computing is None:
            self.zero.update_lp_params()
            return
        # Small weights stay gathered between steps: they are dropped, and gathered again from the new parts.
        self.zero.checkpoint_event_prologue()
        for computing, part in zip(self.computing, self.weights, strict=True):
            computing.copy_(part)
        self.zero.checkpoint_event_epilogue()

    def finetune(self, examples: Sequence[TokenizedExample], *seed: int | str) -> bool:
        """Train on `examples` from the base weights; return False if the run diverged. Parameters as in `Finetuner`."""
        self.reset()
        drawn = batches(len(examples), self.batch_examples, self.epochs, *seed)
        with self._explained("finetuning.step_tokens", self.step_tokens):
            return all(np.isfinite(self._step([examples[i] for i in batch])) for batch in drawn)

    @staticmethod
    def _explained(key: str, tokens: int) -> AbstractContextManager[None]:
        """Explain a lack of memory; a process can't try again with less, because the others wait for it meanwhile."""
        return explained_lack_of_memory(
            f"forward passes of {tokens:,} tokens in a process of DeepSpeed",
            f"Lower {key}, raise finetuning.zero_stage, write offload: true, or use more GPUs.",
        )

    def _step(self, batch: Sequence[TokenizedExample]) -> float:
        """One optimiser step; returns the batch's loss in nats per response token, NaN if DeepSpeed skipped it."""
        # Examples without a response token have no loss; a batch of them only has a gradient of zero.
        response_tokens = max(sum(len(example.tokens) - example.prompt_tokens for example in batch), 1)
        rounds = self._own_rounds(batch, self.step_tokens)
        total = torch.zeros((), device=self.device)
        for number, chosen in enumerate(rounds, start=1):
            losses, _ = summed_losses(self.engine, [batch[i] for i in chosen] or batch[:1])
            loss = losses.sum() * (bool(len(chosen)) / response_tokens)
            self.engine.set_gradient_accumulation_boundary(number == len(rounds))
            # DeepSpeed averages over the processes.
            self.engine.backward(loss * self.processes)
            self.engine.step()
            total += loss.detach()
        dist.all_reduce(total)
        return total.item() if self.engine.was_step_applied() else np.nan

    @torch.no_grad()
    def losses(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """Return the loss of each example under the current weights, float32 [examples] in nats, in every process."""
        rounds = self._own_rounds(examples, self.evaluation_tokens)
        own = []
        with self._explained("finetuning.evaluation_tokens", self.evaluation_tokens):
            for chosen in rounds:
                losses = example_losses(self.engine, [examples[i] for i in chosen] or examples[:1])
                own.append(losses.float()[: len(chosen)])
        return gather_rows(torch.cat(own)[:, None], np.concatenate(rounds), len(examples))[:, 0].cpu().numpy()

    def _own_rounds(self, examples: Sequence[TokenizedExample], max_batch_tokens: int) -> list[np.ndarray]:
        """Return the indices of this process's examples in each round of forward passes, int64 [examples of the round].

        Every process takes part in every round, because weights are gathered on the way. A round is empty for a process
        that has no examples left; what it computes then must not count.
        """
        lengths = np.fromiter((len(example.tokens) for example in examples), np.int64, len(examples))
        share = shard_indices(lengths)
        rounds = [share[chosen] for chosen in token_budget(lengths[share], max_batch_tokens)]
        most = torch.tensor(len(rounds), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return rounds + [share[:0]] * (most.item() - len(rounds))


def move_buffers(lm: PreTrainedModel, device: torch.device | str) -> None:
    """Move the buffers of an LM, such as rotary frequencies, to `device`; weights stay where they are."""
    for module in lm.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _join_group() -> None:
    """Let DeepSpeed use the existing process group; without one, make a group of this process alone."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if not in_group():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # Otherwise DeepSpeed tries to compile all of its kernels, in each process, only to find the one that sums over CPU
    # processes, which gloo does as well.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed()


def deepspeed_config(stage: int, offload: bool, precision: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration; other keys have DeepSpeed's defaults.

    Parameters
    ----------
    stage: ZeRO stage, 1 to 3.
    offload: whether the optimiser state, and in stage 3 the weights, are kept in the CPU's memory.
    precision: `float32` or `bfloat16`, that of forward and backward passes.
    """
    zero: dict[str, Any] = {"stage": stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        # Required, though batches are built here.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": precision == "bfloat16", "dtype": "bfloat16"},
    }
