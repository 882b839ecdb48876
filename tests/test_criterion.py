import pytest

from tests.toys import Classifier, named_rows, trainer_for


class Silent:
    """A plugin that is asked for the loss and leaves it to the trainer."""

    def __init__(self):
        self.asked = 0

    def compute_loss(self, trainer, model, inputs):
        self.asked += 1


def summed(outputs, labels, count):
    return outputs["logits"].sum() * 0


@pytest.mark.parametrize(
    ("given", "options"), [({}, {}), ({"compute_loss_func": summed}, {}), ({}, {"label_smoothing_factor": 0.1})]
)
def test_a_plugin_is_asked_for_the_loss_once_a_micro_batch(tmp_path, given, options):
    plugin = Silent()
    given = {**given, "plugins": [plugin]}
    trainer = trainer_for(tmp_path, Classifier(), named_rows(8), given=given, max_steps=2, **options)
    trainer.train()
    assert plugin.asked == 2 * trainer.args.gradient_accumulation_steps
