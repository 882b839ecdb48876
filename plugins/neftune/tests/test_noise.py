"""The noise is what the paper's formula says, row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer_core import ModelError
from trainer_core_neftune.noise import Noise, uniform_noise

ALPHA, WIDTH = 5.0, 64


def rows(lengths, longest, draws=200, seed=0):
    """Gives noise (draws, rows, longest, width) for rows of these lengths."""
    torch.manual_seed(seed)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return torch.stack([uniform_noise(torch.zeros(len(lengths), longest, WIDTH), mask, ALPHA) for _ in range(draws)])


LENGTHS = [1, 5, 16, 24]


@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_each_row_has_the_bound_and_the_variance_of_its_own_length(row):
    length, bound = LENGTHS[row], ALPHA / math.sqrt(LENGTHS[row] * WIDTH)
    drawn = rows(LENGTHS, 24)[:, row, :length].flatten().double()
    assert drawn.abs().max() <= bound * (1 + 1e-6)
    assert drawn.abs().max() >= bound * 0.999
    # the standard error of a uniform's mean is b / sqrt(3 n), and of its variance b² sqrt(4 / 45 n); five of them
    assert drawn.mean().abs() < 5 * bound / math.sqrt(3 * len(drawn))
    assert abs(drawn.var() - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / len(drawn))


def test_padding_gets_none():
    drawn = rows(LENGTHS, 24, draws=3)
    for row, length in enumerate(LENGTHS):
        assert (drawn[:, row, length:] == 0).all()
        assert (drawn[:, row, :length] != 0).float().mean() > 0.999


def test_left_padding_counts_the_same():
    mask = torch.tensor([[0, 0, 1, 1]])
    drawn = uniform_noise(torch.zeros(1, 4, WIDTH), mask, ALPHA)
    assert (drawn[0, :2] == 0).all()
    assert ALPHA / math.sqrt(4 * WIDTH) < drawn.abs().max() <= ALPHA / math.sqrt(2 * WIDTH)


def test_without_a_mask_every_position_counts():
    torch.manual_seed(0)
    drawn = uniform_noise(torch.zeros(50, 16, WIDTH), None, ALPHA)
    bound = ALPHA / math.sqrt(16 * WIDTH)
    assert 0.999 * bound < drawn.abs().max() <= bound


def test_a_row_that_is_all_padding_stays_as_it_is():
    drawn = uniform_noise(torch.zeros(2, 3, 4), torch.tensor([[0, 0, 0], [1, 1, 1]]), ALPHA)
    assert (drawn[0] == 0).all()
    assert drawn.isfinite().all()


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.integers(1, 6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_noise_has_shape_and_type_of_what_it_is_for(dtype, length, is_masked):
    embedded = torch.zeros(2, length, 8, dtype=dtype)
    mask = torch.ones(2, length, dtype=torch.bool) if is_masked else None
    drawn = uniform_noise(embedded, mask, 1.0)
    assert (drawn.shape, drawn.dtype) == (embedded.shape, dtype)


class Giving(nn.Module):
    """Gives what it is told to instead of embeddings."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, tokens):
        return self.value


class Calling(nn.Module):
    """Calls its embedding and gives what that gives."""

    def __init__(self, value):
        super().__init__()
        self.embedding = Giving(value)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **more):
        return self.embedding(input_ids)


@pytest.fixture
def noisy():
    """Gives a function that puts noise of strength 1 on what a module called `embedding` gives."""
    made = []

    def put(model):
        made.append(Noise(model, {"embedding": model.embedding}, 1.0))
        return model

    yield put
    for noise in made:
        noise.remove()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(2, 3), r"torch.float32 \(2, 3\)"),
        (torch.zeros(2, 3, 4, dtype=torch.long), r"torch.int64 \(2, 3, 4\)"),
        ((1,), "<class 'tuple'>"),
    ],
)
def test_an_embedding_of_another_form_is_refused_when_it_shows(value, got, noisy):
    with pytest.raises(ModelError, match=f"neftune: the embedding Giving must give floats .*, got {got}. Name another"):
        noisy(Calling(value))()


MASK = torch.tensor([[1, 0]])
CALLS = {
    "named": ((), {"attention_mask": MASK}),
    "positional": ((None, MASK), {}),
    "named behind a positional": ((None,), {"attention_mask": MASK}),
}


class Open(Calling):
    """Has no name for the mask."""

    def forward(self, input_ids, **more):
        return self.embedding(input_ids)


@pytest.mark.parametrize(("kind", "call"), [*((Calling, call) for call in CALLS), (Open, "named behind a positional")])
def test_the_mask_is_found_however_it_is_passed(kind, call, noisy):
    args, kwargs = CALLS[call]
    noise = noisy(kind(torch.zeros(1, 2, 8)))(*args, **kwargs)
    assert (noise != 0).any(-1).tolist() == [[True, False]]


def test_a_call_that_does_not_fit_is_refused_by_forward_itself(noisy):
    with pytest.raises(TypeError, match=r"Open.forward\(\) takes 2 positional arguments but 3 were given"):
        noisy(Open(torch.zeros(1, 2, 8)))(None, MASK)


def test_a_mask_of_another_shape_and_embedded_inputs_are_said_once(caplog, noisy):
    model = noisy(Calling(torch.zeros(1, 2, 8)))
    for _ in range(2):
        noise = model(attention_mask=torch.ones(1, 1, 2, 2), inputs_embeds=torch.zeros(1, 2, 8))
        assert (noise != 0).any(dim=-1).all()
    assert [record.getMessage() for record in caplog.records] == [
        "neftune: inputs that come as inputs_embeds pass the embedding by and get no noise.",
        "neftune: the attention mask is not (batch, sequence); rows count with their padding, which gets noise.",
    ]


@pytest.mark.parametrize("asleep", [False, True])
def test_an_embedding_that_takes_no_part_in_training_is_said_once(asleep, caplog, noisy):
    class Passing(Calling):
        def forward(self, input_ids=None):
            return self.embedding(input_ids) if asleep else self.embedding.value

    model = noisy(Passing(torch.zeros(1, 2, 8)))
    model.embedding.train(not asleep)
    for _ in range(2):
        assert (model() == 0).all()
    assert [record.getMessage() for record in caplog.records] == [
        "neftune: the model was called without calling 'embedding' in training mode, so there was no noise. "
        "Name a module that it calls: neftune={'embedding_module': '...'}."
    ]


def test_what_records_no_gradients_gets_no_noise_and_draws_nothing(caplog, noisy):
    model = noisy(Calling(torch.zeros(1, 2, 8)))
    state = torch.get_rng_state()
    with torch.no_grad():
        assert (model(attention_mask=MASK) == 0).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert (model(attention_mask=MASK) != 0).any()
    assert caplog.messages == []


def test_the_mask_of_a_call_that_failed_is_not_that_of_the_next(noisy):
    model = noisy(Calling(torch.zeros(1, 3, 8)))
    model.embedding.value = None
    with pytest.raises(ModelError):
        model(attention_mask=torch.tensor([[1, 0, 0]]))
    model.embedding.value = torch.zeros(1, 3, 8)
    assert (model.embedding(None) != 0).any(-1).all()
    assert (model() != 0).any(-1).all()


def test_rows_without_tokens_have_no_noise():
    assert uniform_noise(torch.zeros(2, 0, 8), None, 1.0).shape == (2, 0, 8)
