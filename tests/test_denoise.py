import math
from dataclasses import replace

import pytest
import torch

from bench.errors import TrialFailed
from bench.evaluation import ModelPredictor
from bench.settings import build
from bench.training import train
from defenses.denoise import Denoise, DenoisedPictures, DenoiseSettings
from defenses.diffusion import (
    Denoiser,
    cosine_schedule,
    denoise_images,
    linear_schedule,
    names_by_content,
    noise_by_name,
    noise_of,
    one_shot,
    step_for,
)

TABLE = {0.1: (475, 225, 58, 27), 0.25: (1158, 597, 145, 73), 0.5: (1984, 1158, 259, 145), 1.0: (2809, 1984, 396, 259)}
"""sigma -> t* of cosine T = 4000 at s = 2 sigma and s = sigma, of linear T = 1000 at the same."""


@pytest.mark.parametrize("sigma", TABLE)
def test_the_step_is_the_first_with_noise_enough(sigma):
    cosine, linear = cosine_schedule(), linear_schedule()
    assert (len(cosine), len(linear)) == (4000, 1000)
    found = [step_for(schedule, k * sigma) for schedule in (cosine, linear) for k in (2, 1)]
    assert tuple(found) == TABLE[sigma]
    for schedule, k in ((cosine, 2), (linear, 1)):
        step = step_for(schedule, k * sigma)
        assert noise_of(schedule)[step] >= k * sigma > noise_of(schedule)[step - 1]


def test_the_linear_schedule_begins_with_its_first_loss():
    assert float(linear_schedule()[0]) == pytest.approx(1 - 1e-4)
    assert float(linear_schedule()[1]) == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))


def test_a_noise_beyond_the_schedule_is_refused():
    with pytest.raises(TrialFailed, match="ends at 157"):
        step_for(linear_schedule(), 1000)


# One-shot denoising.


def denoiser_of(predict, alphas=None, **more):
    return Denoiser(predict, cosine_schedule() if alphas is None else alphas, {"source": "test"}, **more)


def test_a_denoiser_that_knows_the_noise_gives_the_picture_back(make_images):
    images, chance = make_images(6).images, torch.Generator().manual_seed(1)
    noise = torch.randn(6, 3, 8, 8, generator=chance)
    pixels = images.float() / 255
    found = one_shot(denoiser_of(lambda x, step: noise), pixels, noise, 1158)
    assert torch.allclose(found, pixels, atol=1e-5)
    assert not torch.allclose(
        one_shot(denoiser_of(lambda x, step: 0.9 * noise), pixels, noise, 1158), pixels, atol=0.01
    )


@pytest.mark.parametrize("sigma", TABLE)
def test_what_the_network_sees_has_noise_sigma_in_units_of_the_pixels(sigma):
    """x_t / sqrt(abar), back on [0, 1], is the picture with noise of deviation sigma: doubled once and only once."""
    seen = {}

    def look(x, step):
        seen[step] = x
        return torch.zeros_like(x)

    found = denoiser_of(look)
    step = step_for(found.alphas, 2 * sigma)
    pixels, chance = torch.full((4, 3, 32, 32), 0.7), torch.Generator().manual_seed(0)
    one_shot(found, pixels, torch.randn(pixels.shape, generator=chance), step)
    noisy = (seen[step] / math.sqrt(float(found.alphas[step])) + 1) / 2
    assert float(noisy.mean()) == pytest.approx(0.7, abs=4 * sigma / math.sqrt(noisy.numel()))
    assert float(noisy.std()) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("sigma", TABLE)
def test_gaussian_pictures_come_back_as_their_posterior_mean(sigma):
    """For pixels N(m, d^2), each apart, E[x | x + sigma z] is known in closed form."""
    schedule, mean, deviation = cosine_schedule(), 0.1, 0.05  # of [-1, 1]
    chance = torch.Generator().manual_seed(0)

    def predict(x, step):
        kept, added = float(schedule[step]) ** 0.5, float(1 - schedule[step]) ** 0.5
        clean = mean + kept * deviation**2 / (kept**2 * deviation**2 + added**2) * (x - kept * mean)
        return (x - kept * clean) / added

    pixels = (1 + mean + deviation * torch.randn(4, 3, 8, 8, generator=chance)) / 2
    noise = torch.randn(pixels.shape, generator=chance)
    step = step_for(schedule, 2 * sigma)
    true = float(noise_of(schedule)[step]) / 2  # the grid's, a little above sigma
    prior, noisy = (deviation / 2) ** 2, pixels + true * noise
    expected = (prior * noisy + true**2 * (1 + mean) / 2) / (prior + true**2)
    assert torch.allclose(one_shot(denoiser_of(predict), pixels, noise, step), expected.clamp(0, 1), atol=1e-5)


def test_values_that_are_not_finite_end_the_trial():
    with pytest.raises(TrialFailed, match="not finite"):
        one_shot(denoiser_of(lambda x, step: x / 0), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 100)


def test_pixels_stay_in_range_and_are_rounded_half_up():
    images, ids = torch.tensor([0, 9, 128, 255]).repeat(48).view(1, 3, 8, 8).to(torch.uint8), torch.tensor([5])
    kept = linear_schedule(1, 0.5)  # abar 0.5
    shift = 0.5 / 127.5  # half a level on [-1, 1]

    def predict(x, step):
        """Noise such that what is left is the picture and half a level."""
        noise = noise_by_name(3, [5], images)
        return noise - shift * math.sqrt(0.5) / math.sqrt(0.5)

    out = denoise_images(denoiser_of(predict, kept), images, ids, 0, 3, 1)
    assert out.dtype == torch.uint8
    assert int(out.min()) >= 0 and int((out.int() - images.int()).max()) <= 1
    loud = denoise_images(denoiser_of(lambda x, step: -9 * torch.ones_like(x), kept), images, ids, 0, 3, 1)
    assert torch.equal(loud, torch.full_like(images, 255))


def smooth(x, step):
    """Predicts as noise what differs from the picture's mean."""
    return x - x.mean((1, 2, 3), keepdim=True)


def test_neither_chunk_nor_order_nor_other_pictures_matter(make_images):
    data = make_images(10)
    whole = denoise_images(denoiser_of(smooth), data.images, data.ids, 1158, 4, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    mixed = denoise_images(denoiser_of(smooth), data.images[order], data.ids[order], 1158, 4, 3)
    assert (whole[order].int() - mixed.int()).abs().max() <= 1
    other = denoise_images(denoiser_of(smooth), data.images, data.ids, 1158, 5, 10)
    assert (whole.int() - other.int()).abs().max() > 8


def test_every_picture_has_noise_of_its_own():
    noise = noise_by_name(0, [1, 2, 1, "1"], torch.zeros(4, 3, 16, 16))
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert abs(float((noise[0] * noise[1]).mean())) < 0.15
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_sizes_that_the_denoiser_cannot_take_are_named():
    for size, network, words in [(10, {"multiple": 4}, "multiples of 4"), (16, {"size": 32}, "pictures of 32 pixels")]:
        with pytest.raises(TrialFailed, match=words):
            denoiser_of(smooth, **network).must_take(size)
    denoiser_of(smooth, multiple=4, size=32).must_take(32)
