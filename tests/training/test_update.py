import pytest
import torch

from captioner.config import TrainingConfig
from captioner.training import bptt
from captioner.training.update import Updater

import toys


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_search_writes_with_the_weights_of_now(ema_decay):
    """`stepper` remembers its layout until the weights change; a step of the optimizer is one."""
    decoder = toys.decoder()
    updater = Updater(decoder, TrainingConfig(ema_decay=ema_decay), 10, fp16=False)
    for step in range(3):
        bptt.backward(decoder, toys.batch())
        updater.update(step)
        for writer in filter(None, (decoder, updater.average)):
            token_ids, hidden = torch.tensor([1]), writer.init_hidden(torch.ones(1, 6)).detach()
            fast, slow = writer.stepper()(token_ids, hidden)[0], writer.step(token_ids, hidden)[0]
            torch.testing.assert_close(fast, slow.detach(), rtol=1e-5, atol=1e-6)
