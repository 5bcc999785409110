"""Images made by a program: they widen what a student sees far beyond a handful of photographs.

Each image is drawn from a generator of its own, so image number k of a seed is always the same one. The families
are old ones of texture modelling: 1/f noise, dead leaves, cellular noise, tilings, waves, strokes, scattered shapes
and phase-randomised photographs. All arrays here are (H, W, 3) uint8 in the end and float in [0, 1] inside.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

Field = np.ndarray  # (S, S) floats in [0, 1]
Picture = np.ndarray  # (S, S, 3) floats in [0, 1]


def stretched(field: np.ndarray) -> np.ndarray:
    """Shift and scale an array into [0, 1]."""
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-8)


def power_noise(rng: np.random.Generator, size: int) -> Field:
    """Noise whose amplitude falls as frequency^-a, a in [0.3, 2.2], perhaps stretched along one direction."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    angle, anisotropy = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.6))
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.hypot(along * anisotropy, across / anisotropy)
    radius[0, 0] = 1.0
    spectrum = radius ** -rng.uniform(0.3, 2.2) * np.exp(2j * np.pi * rng.random(radius.shape))
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return np.clip(0.5 + noise / (5 * noise.std() + 1e-8), 0, 1)


def cells(rng: np.random.Generator, size: int) -> Field:
    """Cellular noise: the distance to the nearest seed point, or how much farther the second nearest is."""
    points = rng.random((int(np.exp(rng.uniform(np.log(20), np.log(1500)))), 2)) * size
    points[:, 0] *= np.exp(rng.normal(0, 0.2))
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    distance, index = cKDTree(points).query(grid, k=2)
    kind = rng.integers(4)
    tone = rng.random(len(points))[index[:, 0]]
    edge = np.clip((distance[:, 1] - distance[:, 0]) / rng.uniform(1.5, 8), 0, 1)
    values = (
        distance[:, 0],
        distance[:, 1] - distance[:, 0],
        tone * edge,
        edge * (1 - 0.5 * stretched(distance[:, 0])),
    )[kind]
    return stretched(values.reshape(size, size))


def waves(rng: np.random.Generator, size: int) -> Field:
    """A few gratings, bent by smooth noise, smooth or square."""
    y, x = np.mgrid[0:size, 0:size] / size
    field = np.zeros((size, size))
    for _ in range(rng.integers(1, 4)):
        angle, frequency = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(size / 4)))
        bend = rng.uniform(0, 4) * rng.random() * (power_noise(rng, size) - 0.5)
        wave = np.sin(2 * np.pi * (frequency * (x * np.cos(angle) + y * np.sin(angle)) + bend + rng.random()))
        field += np.tanh(wave * rng.uniform(0.5, 8)) * rng.uniform(0.3, 1)
    return stretched(field)


def tiling(rng: np.random.Generator, size: int) -> Field:
    """Rows of rectangles with joints between them; each rectangle has a tone of its own."""
    height, width = rng.uniform(8, size / 2), rng.uniform(8, size / 2)
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    y, x = np.mgrid[0:size, 0:size].astype(float)
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wobble = rng.uniform(0, 4)
    x, y = x + wobble * (power_noise(rng, size) - 0.5), y + wobble * (power_noise(rng, size) - 0.5)
    row = np.floor(y / height)
    x = x + (row % 2) * width * rng.uniform(0, 0.6)
    column = np.floor(x / width)
    tone = rng.random(4096)[((row * 131 + column * 17).astype(int)) % 4096]
    inside = np.minimum.reduce([y - row * height, (row + 1) * height - y, x - column * width, (column + 1) * width - x])
    joint = np.clip(inside / rng.uniform(1, 4) - rng.uniform(0, 1), 0, 1)
    return stretched((0.4 + rng.uniform(0, 0.8) * tone) * joint + rng.uniform(0, 1.2) * (1 - joint))


def strokes(rng: np.random.Generator, size: int) -> Field:
    """Hundreds of straight or bent strokes of various tones over each other: fibres, straw, scratches."""
    canvas = Image.new("L", (size, size), int(rng.integers(256)))
    draw = ImageDraw.Draw(canvas)
    direction, spread = rng.uniform(0, np.pi), rng.uniform(0.05, 3)
    length, width = rng.uniform(0.05, 0.6) * size, rng.uniform(1, 5)
    for _ in range(int(np.exp(rng.uniform(np.log(15), np.log(900))))):
        start, angle = rng.uniform(-0.1, 1.1, 2) * size, direction + spread * rng.normal()
        points, bend = [tuple(start)], rng.normal(0, 0.3)
        for _ in range(4):
            start = start + length / 4 * rng.uniform(0.5, 1.5) * np.array([np.cos(angle), np.sin(angle)])
            angle += bend
            points.append(tuple(start))
        draw.line(points, fill=int(rng.integers(256)), width=max(1, round(width * rng.uniform(0.5, 1.5))))
    return np.asarray(canvas, float) / 255


FIELDS: tuple[Callable[[np.random.Generator, int], Field], ...] = (power_noise, cells, waves, tiling, strokes)


def coloured(rng: np.random.Generator, field: Field) -> Picture:
    """Map tones to a random smooth path of two to four colours; now and then leave them grey."""
    if rng.random() < 0.3:
        return np.repeat(field[..., None], 3, -1)
    stops = np.clip(rng.random((1, 3)) + rng.uniform(0.1, 0.6) * rng.normal(size=(rng.integers(2, 5), 3)), 0, 1)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(field, places, stops[:, channel]) for channel in range(3)], -1)


def texture(rng: np.random.Generator, size: int, photographs: Sequence[np.ndarray]) -> Picture:
    """One texture: a field of tones in colour, one field modulating another, or a photograph's random-phase twin."""
    kind = rng.random()
    if kind < 0.2 and photographs:
        return random_phase(rng, size, photographs)
    picture = coloured(rng, FIELDS[rng.integers(len(FIELDS))](rng, size))
    if kind < 0.6:
        other = coloured(rng, FIELDS[rng.integers(len(FIELDS))](rng, size))
        mask = power_noise(rng, size) if rng.random() < 0.5 else FIELDS[rng.integers(len(FIELDS))](rng, size)
        mask = np.clip((mask - 0.5) * np.exp(rng.uniform(0, 3)) + 0.5, 0, 1)[..., None]
        picture = picture * mask + other * (1 - mask)
    return picture


def random_phase(rng: np.random.Generator, size: int, photographs: Sequence[np.ndarray]) -> Picture:
    """Noise with the spectrum and colours of a photograph's crop: its grain without its shapes."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = int(min(*photograph.shape[:2], rng.integers(size // 2, 2 * size)))
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in photograph.shape[:2])
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    crop = crop.resize((size, size), Image.Resampling.BILINEAR)
    picture = np.asarray(crop, float) / 255
    mean = picture.mean((0, 1))
    # One random phase for all channels keeps their correlation, so the colours stay the photograph's.
    phase = np.angle(np.fft.rfft2(rng.normal(size=(size, size))))[..., None]
    spectrum = np.fft.rfft2(picture - mean, axes=(0, 1)) * np.exp(1j * phase)
    return np.clip(mean + np.fft.irfft2(spectrum, s=(size, size), axes=(0, 1)), 0, 1)


def polygon(rng: np.random.Generator, radius: float) -> list[tuple[float, float]]:
    """Corners of a random ellipse, rectangle or rough pebble around the origin."""
    corners = int(rng.choice([3, 4, 4, 6, 10, 16, 24]))
    angles = np.sort(2 * np.pi * (np.arange(corners) + rng.uniform(0, 0.6, corners)) / corners)
    radii = radius * (1 + rng.uniform(0, 0.35) * rng.normal(size=corners)).clip(0.3, 1.7)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.35, 1)
    x, y = radii * np.cos(angles), radii * np.sin(angles) * flat
    return list(zip(x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), strict=True))


def leaves(rng: np.random.Generator, size: int, photographs: Sequence[np.ndarray]) -> Picture:
    """Dead leaves: shapes of all sizes covering each other, shaded, each filled with a colour or a piece of texture."""
    picture = texture(rng, size, photographs)
    fillings = [texture(rng, size, photographs) for _ in range(rng.integers(0, 3))]
    smallest, largest = rng.uniform(2, 12), rng.uniform(16, size / 3)
    spread = rng.uniform(0.05, 0.5)
    palette = rng.random((1, 3)) + spread * rng.normal(size=(12, 3)) + rng.normal(0, 0.15, (12, 1))
    palette = np.clip(palette, 0, 1)
    shading, light = rng.uniform(0, 0.6), rng.uniform(0, 2 * np.pi)
    count = int(rng.choice([30, 150, 500]))
    for _ in range(count):
        # Radii with density r^-3 make the picture look the same at every scale.
        u = rng.random()
        radius = (smallest**-2 * (1 - u) + largest**-2 * u) ** -0.5
        half = int(np.ceil(radius * 1.8)) + 1
        stamp = Image.new("L", (2 * half, 2 * half), 0)
        ImageDraw.Draw(stamp).polygon([(x + half, y + half) for x, y in polygon(rng, radius)], fill=255)
        top, left = (int(value) for value in rng.integers(-half, size, 2))
        rows = slice(max(top, 0), min(top + 2 * half, size))
        columns = slice(max(left, 0), min(left + 2 * half, size))
        mask = (
            np.asarray(stamp, float)[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None
            ]
            / 255
        )
        if fillings and rng.random() < 0.5:
            filling = fillings[rng.integers(len(fillings))][rows, columns] * rng.uniform(0.6, 1.3)
        else:
            filling = palette[rng.integers(len(palette))][None, None]
        yy, xx = np.mgrid[rows, columns]
        slope = ((xx - left - half) * np.cos(light) + (yy - top - half) * np.sin(light)) / max(radius, 1)
        filling = np.clip(filling * (1 + shading * slope.clip(-1, 1))[..., None], 0, 1)
        picture[rows, columns] = picture[rows, columns] * (1 - mask) + filling * mask
    if rng.random() < 0.5:
        picture = np.clip(picture + rng.uniform(0, 0.15) * (power_noise(rng, size)[..., None] - 0.5), 0, 1)
    return picture


def scene(rng: np.random.Generator, size: int, photographs: Sequence[np.ndarray]) -> Picture:
    """A calm ground with a few large shapes on it, soft or sharp, as objects in front of a background."""
    y, x = np.mgrid[0:size, 0:size] / size
    ramp = stretched(x * rng.normal() + y * rng.normal())[..., None]
    picture = rng.random(3) * ramp + rng.random(3) * (1 - ramp)
    for _ in range(rng.integers(1, 12)):
        stamp = Image.new("L", (size, size), 0)
        centre = rng.uniform(0, size, 2)
        corners = [(px + centre[0], py + centre[1]) for px, py in polygon(rng, rng.uniform(0.03, 0.4) * size)]
        ImageDraw.Draw(stamp).polygon(corners, fill=255)
        mask = ndimage.gaussian_filter(np.asarray(stamp, float) / 255, rng.choice([0.0, 0.7, 4.0]))[..., None]
        filling = texture(rng, size, photographs) if rng.random() < 0.4 else rng.random(3)
        picture = picture * (1 - mask) + filling * mask
    return picture


FAMILIES: tuple[tuple[float, Callable[[np.random.Generator, int, Sequence[np.ndarray]], Picture]], ...] = (
    (0.45, texture),
    (0.40, leaves),
    (0.15, scene),
)


def program_image(seed: int, number: int, size: int = 256, photographs: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Make image `number` of a seed.

    Arguments:
        seed: Seed of the whole run.
        number: Which image, from 0.
        size: Side in pixels.
        photographs: uint8 RGB images whose spectra the random-phase textures borrow; none: no such textures.

    Returns:
        (size, size, 3) uint8.

    Example:
        >>> image = program_image(seed=0, number=3, size=32)
        >>> image.shape, image.dtype, bool((image == program_image(0, 3, 32)).all())
        ((32, 32, 3), dtype('uint8'), True)
    """
    rng = np.random.default_rng([seed, number])
    chances = np.array([chance for chance, _ in FAMILIES])
    family = FAMILIES[rng.choice(len(FAMILIES), p=chances / chances.sum())][1]
    return (np.clip(family(rng, size, photographs), 0, 1) * 255).round().astype(np.uint8)
